# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The training steps and the predictions that the benchmarks compare: ours, and references on equal encoders."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from encoders import ENCODERS
from measurement import Step
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F

from peft_polyhistor import METHODS, TASKS, MultiTaskDenseModel, register_task
from peft_polyhistor.config import PASCAL_TASKS
from peft_polyhistor.models.blocks import find_blocks
from peft_polyhistor.models.decoder import DenseDecoder
from peft_polyhistor.per_task import adapt_per_task


BOUND, BOUND_TOGETHER = "frozen encoder, a pass per task", "frozen encoder, all tasks in a batch"
LORA, LORA_OURS = "PEFT LoRA, the paper's decoders", "PEFT LoRA"
LORA_PER_TASK = "PEFT LoRA, the paper's decoders, a backward pass per task"
FULL, FULL_OURS = "full fine-tuning, the paper's decoders", "full fine-tuning"
PLAIN = "plain plugin"
VMT = "vmt_adapter"
TOGETHER, IN_TURN, PER_TASK = ", all tasks in a batch", ", one task after the other", ", a backward pass per task"
BAKED, GENERATED = ", baked", ", generated in every call"
PASSES, PASSES_OURS = "a model per task, the paper's decoders", "a model per task"


@dataclass
class Problem:
    """What is to be computed: pictures with labels, and the model's sizes."""

    encoder: str
    tasks: list[str]
    image_size: int
    batch_size: int
    decoder_width: int
    device: torch.device
    dtype: torch.dtype

    def pictures(self) -> Tensor:
        size = (self.batch_size, 3, self.image_size, self.image_size)
        return torch.randn(size, device=self.device, dtype=self.dtype)

    def labels(self) -> dict[str, Tensor]:
        size = (self.batch_size, self.image_size, self.image_size)
        ones = torch.ones(self.batch_size, 3, *size[1:], device=self.device)
        makers = {
            "semseg": lambda: torch.randint(0, 21, size, device=self.device),
            "human_parts": lambda: torch.randint(0, 7, size, device=self.device),
            "saliency": lambda: (torch.rand(size, device=self.device) > 0.5)[:, None].float(),
            "normals": lambda: F.normalize(torch.randn_like(ones), dim=1),
        }
        return {task: makers[task.rpartition("__")[0] or task]() for task in self.tasks}


class Contestant(NamedTuple):
    """A step that takes part, and the model whose parameters it does not have to pay for."""

    step: Step
    model: nn.Module


def name_tasks(count: int) -> list[str]:
    """As many tasks: those of PASCAL-Context, over again where there are more than four."""
    names = []
    for i in range(count):
        base = PASCAL_TASKS[i % len(PASCAL_TASKS)]
        names.append(base if i < len(PASCAL_TASKS) else f"{base}__{i // len(PASCAL_TASKS) + 1}")
        if names[-1] not in TASKS:
            register_task(replace(TASKS[base], name=names[-1]))
    return names


class PaperDecoder(DenseDecoder):
    """The decoder as papers write it: every map is projected and enlarged, and all together are fused."""

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        enlarged = []
        for stage_map, norm, projection in zip(maps, self.norms, self.projections, strict=True):
            projected = projection(norm(stage_map.movedim(1, -1))).movedim(-1, 1)
            enlarged.append(F.interpolate(projected, maps[0].shape[-2:], mode="bilinear", align_corners=False))
        fused = self.batch_norm(self.fuse(torch.cat(enlarged, dim=1)))
        return self.classifier(self.dropout(F.relu(fused)))


def make_dense(problem: Problem, papers_decoders: bool = False, **kwargs) -> MultiTaskDenseModel:
    torch.manual_seed(0)
    model = MultiTaskDenseModel.from_encoder(
        ENCODERS[problem.encoder](), problem.tasks, decoder_width=problem.decoder_width, **kwargs
    )
    if papers_decoders:
        for head in model.decoders.heads.values():
            head.__class__ = PaperDecoder  # the same parameters
    return model.to(problem.device, problem.dtype)


def make_adapted(problem: Problem, method: str, papers_decoders: bool = False) -> nn.Module:
    config = METHODS[method]
    dense = make_dense(problem, papers_decoders, shared_norms=config.shares_pass)
    return get_peft_model(dense, config(tasks=problem.tasks)).to(problem.device, problem.dtype)


def make_lora(problem: Problem, papers_decoders: bool) -> nn.Module:
    """PEFT's LoRA of rank 4 on queries, keys and values, one adapter per task."""
    model = make_dense(problem, papers_decoders)
    names = [name.removeprefix("encoder.") for block in find_blocks(model) for name in block.projections]
    return adapt_per_task(model, LoraConfig(r=4, target_modules=names)).to(problem.device, problem.dtype)


def training_steps(problem: Problem, method: str, names: Sequence[str] | None = None) -> dict[str, Contestant]:
    """Forward and backward passes of all tasks, without an optimiser, by name; `names` chooses some."""
    pixels, labels = problem.pictures(), problem.labels()

    def train(model: nn.Module, tasks_per_pass: int | None = None) -> Contestant:
        model.train()

        def step() -> None:
            if hasattr(model, "peft_config"):
                model.peft_config["default"].tasks_per_pass = tasks_per_pass
            model(pixels, labels, full_resolution=False).loss.backward()
            model.zero_grad()

        return Contestant(step, model)

    def train_per_task(model: nn.Module) -> Contestant:
        model.train()

        def step() -> None:
            with getattr(model, "generate_once", nullcontext)():
                for task in problem.tasks:
                    model(pixels, labels, tasks=[task], full_resolution=False).loss.backward()
            model.zero_grad()

        return Contestant(step, model)

    def train_plainly(model: nn.Module) -> Contestant:
        model.train()

        def step() -> None:
            sum(model(pixels, labels, tasks=[task], full_resolution=False).loss for task in problem.tasks).backward()
            model.zero_grad()

        return Contestant(step, model)

    ours = make_adapted(problem, method)
    makers = {
        BOUND: lambda: bound(problem, [pixels] * len(problem.tasks)),
        BOUND_TOGETHER: lambda: bound(problem, [pixels.repeat(len(problem.tasks), 1, 1, 1)]),
        method: lambda: train(ours),
        method + TOGETHER: lambda: train(ours, len(problem.tasks)),
        method + IN_TURN: lambda: train(ours, 1),
        method + PER_TASK: lambda: train_per_task(ours),
        PLAIN: lambda: train_plainly(make_adapted(problem, method, papers_decoders=True)),
        LORA: lambda: train(make_lora(problem, papers_decoders=True)),
        LORA_PER_TASK: lambda: train_per_task(make_lora(problem, papers_decoders=True)),
        LORA_OURS: lambda: train(make_lora(problem, papers_decoders=False)),
        FULL: lambda: train(make_dense(problem, papers_decoders=True)),
        FULL_OURS: lambda: train(make_dense(problem)),
        VMT: lambda: train(make_adapted(problem, VMT)),
    }
    return {name: make() for name, make in makers.items() if names is None or name in names}


def bound(problem: Problem, batches: list[Tensor]) -> Contestant:
    """The frozen encoder on each batch, and the gradient from its maps to its first block: no step does without."""
    encoder = make_dense(problem).encoder.requires_grad_(False).train()
    first_block = encoder.get_submodule(find_blocks(encoder)[0].name)
    with torch.no_grad():
        gradients = [torch.ones_like(stage_map) for stage_map in encoder(batches[0])]

    def start_gradient(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        args[0].requires_grad_()

    first_block.register_forward_pre_hook(start_gradient)

    def step() -> None:
        for pixels in batches:
            torch.autograd.backward(encoder(pixels), gradients)

    return Contestant(step, encoder)


def predictions(problem: Problem, method: str) -> dict[str, Contestant]:
    """Logits of all tasks, by name."""
    pixels = problem.pictures()

    def predict(model: nn.Module) -> Contestant:
        model.eval()
        return Contestant(lambda: model(pixels, tasks=problem.tasks, full_resolution=False), model)

    def predict_in_turn(model: nn.Module) -> Contestant:
        model.eval()

        def step() -> None:
            for task in problem.tasks:
                model(pixels, tasks=[task], full_resolution=False)

        return Contestant(step, model)

    ours = make_adapted(problem, method)
    return {
        PASSES: predict_in_turn(make_dense(problem, papers_decoders=True)),
        PASSES_OURS: predict_in_turn(make_dense(problem)),
        method + GENERATED: predict(ours),
        method + BAKED: predict(ours.bake()),
        VMT: predict(make_adapted(problem, VMT)),
        LORA_OURS: predict(make_lora(problem, papers_decoders=False)),
    }


@contextmanager
def registered(count: int) -> Iterator[list[str]]:
    """The names of as many tasks, which are rows of `TASKS` within this block."""
    before = dict(TASKS)
    try:
        yield name_tasks(count)
    finally:
        TASKS.clear()
        TASKS.update(before)
