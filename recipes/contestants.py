# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The models that the benchmarks compare, ours and references on equal encoders, and what they compute."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from encoders import ENCODERS
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F

from peft_polyhistor import METHODS, TASKS, MultiTaskDenseModel, register_task
from peft_polyhistor.config import PASCAL_TASKS
from peft_polyhistor.methods.per_task import adapt_per_task
from peft_polyhistor.models.blocks import find_blocks
from peft_polyhistor.models.decoder import DenseDecoder


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


@contextmanager
def registered(count: int) -> Iterator[list[str]]:
    """The names of as many tasks, which are rows of `TASKS` within this block."""
    before = dict(TASKS)
    try:
        yield name_tasks(count)
    finally:
        TASKS.clear()
        TASKS.update(before)
