# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Models, images and labels of the benchmarks: adapted models and references on equal encoders."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F

from peft_polyhistor import METHODS, PASCAL_TASKS, TASKS, MultiTaskDenseModel, load_encoder, register_task
from peft_polyhistor.config import BottleneckConfig
from peft_polyhistor.methods.per_task import adapt_per_task
from peft_polyhistor.models.blocks import find_blocks
from peft_polyhistor.models.decoder import DenseDecoder
from peft_polyhistor.studies.paper import SWINS, make_encoder


Step = Callable[[], Any]
ENCODERS = {"swin-mini": partial(load_encoder, "swin-mini"), **{name: partial(make_encoder, name) for name in SWINS}}
CAN_BAKE = [name for name, c in METHODS.items() if issubclass(c, BottleneckConfig) and not c.shares_pass]


class Contestant(NamedTuple):
    """A step to measure, and its model, whose parameters do not count as memory of the step."""

    step: Step
    model: nn.Module


@dataclass
class Problem:
    """Sizes of a model and its random images and labels."""

    encoder: str
    tasks: list[str]
    image_size: int
    batch_size: int
    decoder_width: int
    device: torch.device
    dtype: torch.dtype

    def images(self) -> Tensor:
        size = (self.batch_size, 3, self.image_size, self.image_size)
        return torch.randn(size, device=self.device, dtype=self.dtype)

    def labels(self) -> dict[str, Tensor]:
        size = (self.batch_size, self.image_size, self.image_size)
        labels = {
            "semseg": torch.randint(0, 21, size, device=self.device),
            "human_parts": torch.randint(0, 7, size, device=self.device),
            "saliency": torch.randint(0, 2, size, device=self.device)[:, None].float(),
            "normals": F.normalize(torch.randn(size[0], 3, *size[1:], device=self.device), dim=1),
        }
        return {task: labels[task.partition("__")[0]] for task in self.tasks}


@contextmanager
def registered(count: int) -> Iterator[list[str]]:
    """Yields the names of `count` tasks that are registered within the block; beyond four, PASCAL's tasks repeat."""
    before, names = dict(TASKS), list(PASCAL_TASKS[:count])
    for i in range(len(names), count):
        base = PASCAL_TASKS[i % len(PASCAL_TASKS)]
        names.append(f"{base}__{i // len(PASCAL_TASKS) + 1}")
        register_task(replace(TASKS[base], name=names[-1]))
    try:
        yield names
    finally:
        TASKS.clear()
        TASKS.update(before)


class PaperDecoder(DenseDecoder):
    """The decoder as papers describe it: each map is projected and enlarged, then the concatenated maps are fused."""

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        enlarged = []
        for stage_map, norm, projection in zip(maps, self.norms, self.projections, strict=True):
            projected = projection(norm(stage_map.movedim(1, -1))).movedim(-1, 1)
            enlarged.append(F.interpolate(projected, maps[0].shape[-2:], mode="bilinear", align_corners=False))
        fused = self.batch_norm(self.fuse(torch.cat(enlarged, dim=1)))
        return self.classifier(self.dropout(F.relu(fused)))


def make_dense(problem: Problem, papers_decoders: bool = False, **kwargs: Any) -> MultiTaskDenseModel:
    torch.manual_seed(0)
    encoder = ENCODERS[problem.encoder]()
    model = MultiTaskDenseModel.from_encoder(encoder, problem.tasks, decoder_width=problem.decoder_width, **kwargs)
    if papers_decoders:
        for head in model.decoders.heads.values():
            head.__class__ = PaperDecoder  # has the same parameters
    return model.to(problem.device, problem.dtype)


def make_adapted(problem: Problem, method: str, papers_decoders: bool = False) -> nn.Module:
    config = METHODS[method]
    dense = make_dense(problem, papers_decoders, shared_norms=config.shares_pass)
    return get_peft_model(dense, config(tasks=problem.tasks)).to(problem.device, problem.dtype)


def make_lora(problem: Problem, papers_decoders: bool) -> nn.Module:
    """Creates a model with PEFT's LoRA of rank 4 on queries, keys and values, one adapter per task."""
    model = make_dense(problem, papers_decoders)
    names = [name.removeprefix("encoder.") for block in find_blocks(model) for name in block.projections]
    return adapt_per_task(model, LoraConfig(r=4, target_modules=names)).to(problem.device, problem.dtype)
