# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Multi-task LoRA, as measured in Polyhistor (arXiv:2210.03265, Table 1): LoRA (arXiv:2106.09685) of every task.

PEFT's own LoRA, one adapter per task, has neither the norm nor the common projection down.
"""

import math
from dataclasses import dataclass, field
from itertools import groupby
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..checks import check_number, check_positive
from ..config import MultiTaskConfig
from ..models.blocks import Block
from ..registry import register
from ..tuner.layer import AdapterLayer, base_of
from ..tuner.site import Site, is_linear
from ..tuner.tuner import AdapterTuner


@dataclass(frozen=True)
class ProjectionSite(Site):
    """The site of a `LowRankLayer`.

    Args:
        outputs: Channels of the projection's output.
    """

    outputs: int


@dataclass
class MultiTaskLoraConfig(MultiTaskConfig):
    """Settings of multi-task LoRA: a low-rank update of queries, keys and values together.

    Args:
        rank: Width of the low-rank update.
        scale: Factor of the update.

    Parameters, per task and attention of width d and rank r: d r + 3 d r + 2 d.
    """

    method: ClassVar[str] = "MTL_LORA"

    rank: int = field(default=4, metadata={"help": "Width of the low-rank update."})
    scale: float = field(default=4.0, metadata={"help": "Factor of the update."})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("rank", self.rank)
        check_number("scale", self.scale)

    def make_generator(self, sites: list[ProjectionSite]) -> nn.Module:
        groups = [list(group) for _, group in groupby(sites, key=lambda site: site.block)]
        return MultiTaskLora(len(self.tasks), groups, self.rank, self.scale, self.init_weights)


class LowRankWeights(NamedTuple):
    """Weights of one projection for several tasks, each with a leading axis of tasks."""

    down: Tensor  # (tasks, rank, width)
    up: Tensor  # (tasks, outputs, rank), the factor included
    norm_weight: Tensor  # (tasks, width)
    norm_bias: Tensor  # (tasks, width)


class LowRankUpdate(nn.Module):
    """The weights of one attention: scale up(down(norm(x))), its outputs cut for the projections that take part.

    Args:
        tasks: Number of tasks.
        width: Channels of the input.
        outputs: Channels of each projection.
        rank, scale: Width and factor of the update.
        identity: Start with an update of zero.
    """

    def __init__(self, tasks: int, width: int, outputs: list[int], rank: int, scale: float, identity: bool):
        super().__init__()
        self.outputs = outputs
        self.scale = scale
        self.down = nn.Parameter(torch.randn(tasks, rank, width) / math.sqrt(width))
        self.up = nn.Parameter(torch.randn(tasks, sum(outputs), rank) * (not identity))
        self.norm_weight = nn.Parameter(torch.ones(tasks, width))
        self.norm_bias = nn.Parameter(torch.zeros(tasks, width))

    def forward(self, tasks: Tensor) -> list[LowRankWeights]:
        """Indices `(tasks,)` to the weights of every projection."""
        common = {
            "down": self.down[tasks],
            "norm_weight": self.norm_weight[tasks],
            "norm_bias": self.norm_bias[tasks],
        }
        return [LowRankWeights(up=up, **common) for up in (self.scale * self.up[tasks]).split(self.outputs, dim=1)]


class MultiTaskLora(nn.ModuleList):
    """One `LowRankUpdate` per attention.

    Args:
        groups: The projections of each attention, all of the same width.
        The others are those of `LowRankUpdate`.
    """

    def __init__(self, tasks: int, groups: list[list[ProjectionSite]], rank: int, scale: float, identity: bool):
        super().__init__(
            LowRankUpdate(tasks, group[0].width, [site.outputs for site in group], rank, scale, identity)
            for group in groups
        )

    def forward(self, tasks: Tensor) -> list[LowRankWeights]:
        """Indices `(tasks,)` to the weights of every projection."""
        return [weights for update in self for weights in update(tasks)]


class LowRankLayer(AdapterLayer):
    """Adds the low-rank update of a linear layer's input to its output."""

    obstacle = "norm the input of a projection by statistics of its own, which no weight of the projection can"

    def forward(self, x: Tensor) -> Tensor:
        output = self.base_layer(x)
        for w, _ in self.active_weights(x):
            output = output + apply_low_rank(x, w).view_as(output).to(output.dtype)
        return output


def apply_low_rank(x: Tensor, w: LowRankWeights) -> Tensor:
    """up(down(norm(x))) of every task; `(tasks * batch, ..., width)` to `(tasks, tokens, outputs)`."""
    tasks, _, width = w.down.shape
    tokens = F.layer_norm(x.to(w.down.dtype).reshape(tasks, -1, width), (width,))
    # The norm's weight and bias are folded into the projection: one pass less over the tokens.
    hidden = torch.baddbmm(w.norm_bias[:, None] @ w.down.mT, tokens, (w.down * w.norm_weight[:, None]).mT)
    return hidden @ w.up.mT


class MultiTaskLoraModel(AdapterTuner[MultiTaskLoraConfig]):
    """PEFT tuner of multi-task LoRA."""

    prefix = "mtl_lora_"

    def known_sites(self, model: nn.Module, blocks: list[Block], config: MultiTaskLoraConfig) -> list[Site]:
        without = [block.self_attention for block in blocks if not block.projections]
        if without and config.target_modules is None:
            raise ValueError(
                f"In '{without[0]}' of {type(model).__name__} no layer is called to make queries, keys and values, so "
                "there is nothing for LoRA to update. Name other linear layers in `target_modules`."
            )
        return [
            self.site_at(base_of(model.get_submodule(name)), name, index, config)
            for index, block in enumerate(blocks)
            for name in block.projections
        ]

    def site_at(self, module: nn.Module, name: str, index: int, config: MultiTaskLoraConfig) -> Site:
        if not is_linear(module):
            raise ValueError(
                f"'{name}' ({type(module).__name__}) is no linear layer, which is what LoRA updates. Name linear "
                "layers in `target_modules`."
            )
        return ProjectionSite(name, LowRankLayer, module.in_features, index, module.out_features)


register(MultiTaskLoraConfig.method, MultiTaskLoraConfig, MultiTaskLoraModel)
