# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The training steps and the predictions that the benchmarks compare, by name."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
from contestants import Problem, make_adapted, make_dense, make_lora
from measurement import Step
from torch import Tensor, nn

from peft_polyhistor.models.blocks import find_blocks


BOUND, BOUND_TOGETHER = "frozen encoder, a pass per task", "frozen encoder, all tasks in a batch"
LORA, LORA_OURS = "PEFT LoRA, the paper's decoders", "PEFT LoRA"
LORA_PER_TASK = "PEFT LoRA, the paper's decoders, a backward pass per task"
FULL, FULL_OURS = "full fine-tuning, the paper's decoders", "full fine-tuning"
PLAIN = "plain plugin"
VMT, VMT_ENCODER, VMT_ENCODER_ONE = "vmt_adapter", "vmt_adapter, encoder alone", "vmt_adapter, encoder alone, 1 task"
TOGETHER, IN_TURN, PER_TASK = ", all tasks in a batch", ", one task after the other", ", a backward pass per task"
GENERATION = ", generation alone"
BAKED, GENERATED = ", baked", ", generated in every call"
PASSES, PASSES_OURS = "a model per task, the paper's decoders", "a model per task"


class Contestant(NamedTuple):
    """A step that takes part, and the model whose parameters it does not have to pay for."""

    step: Step
    model: nn.Module


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
        method + GENERATION: lambda: generate(ours, problem),
        VMT: lambda: train(make_adapted(problem, VMT)),
        VMT_ENCODER: lambda: encode(make_adapted(problem, VMT), pixels, problem.tasks),
        VMT_ENCODER_ONE: lambda: encode(make_adapted(problem, VMT), pixels, problem.tasks[:1]),
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


def generate(model: nn.Module, problem: Problem) -> Contestant:
    """The weights of all adapters, and the gradient from them to what generates them."""
    adapters = model.base_model.router
    gradients = []

    def step() -> None:
        sites = adapters.weights_of(["default"], tasks=problem.tasks)
        weights = [tensor for parts in sites.values() for part, _ in parts for tensor in part if tensor.requires_grad]
        if not gradients:  # of the first step, which does not count
            gradients.extend(map(torch.ones_like, weights))
        torch.autograd.backward(weights, gradients)
        model.zero_grad()

    return Contestant(step, model)


def encode(model: nn.Module, pixels: Tensor, tasks: list[str]) -> Contestant:
    """The adapted encoder alone, forward and backward."""
    model.train()
    encoder = model.base_model.model.encoder

    def step() -> None:
        maps = [stage_map for of_task in encoder(pixels, tasks=tasks).values() for stage_map in of_task]
        torch.autograd.backward(maps, [torch.ones_like(stage_map) for stage_map in maps])
        model.zero_grad()

    return Contestant(step, model)


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
