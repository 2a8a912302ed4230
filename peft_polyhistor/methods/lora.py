# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Multi-task LoRA, a baseline of Polyhistor (arXiv:2210.03265, Table 1): LoRA (arXiv:2106.09685) for each task.

Unlike PEFT's LoRA, it has a norm, and queries, keys and values share the projection down.
"""

import math
from dataclasses import dataclass
from itertools import groupby
from typing import ClassVar, NamedTuple

import torch
from peft.tuners.tuners_utils import check_target_module_exists
from torch import Tensor, nn
from torch.nn import functional as F

from ..checks import check_number, check_positive
from ..config import MultiTaskConfig, setting
from ..models.blocks import Block
from ..registry import register
from ..tuner.layer import AdapterLayer, base_layer_of
from ..tuner.site import Site, is_linear
from ..tuner.tuner import AdapterTuner


@dataclass(frozen=True)
class ProjectionSite(Site):
    """The site of a `MultiTaskLoraLayer`."""

    outputs: int  # output channels of the projection


@dataclass
class MultiTaskLoraConfig(MultiTaskConfig):
    """Config of multi-task LoRA: one low-rank update for queries, keys and values together.

    Parameters, per task and attention of width d and rank r: d r + 3 d r + 2 d.
    """

    method: ClassVar[str] = "MTL_LORA"

    rank: int = setting(4, "Rank of the update (arXiv:2106.09685, Sec. 4.1), at least 1.", check_positive)
    scale: float = setting(4.0, "Factor of the update.", check_number)

    def make_generator(self, sites: list[ProjectionSite]) -> nn.Module:
        groups = [list(group) for _, group in groupby(sites, key=lambda site: site.block)]
        return MultiTaskLora(len(self.tasks), groups, self.rank, self.scale, self.init_weights)


class LoraWeights(NamedTuple):
    """Weights of one projection for several tasks."""

    down: Tensor  # (tasks, rank, width)
    up: Tensor  # (tasks, outputs, rank), multiplied by the scale
    norm_weight: Tensor  # (tasks, width)
    norm_bias: Tensor  # (tasks, width)


class LoraUpdate(nn.Module):
    """The weights of one attention module: scale up(down(norm(x))), with the outputs split by projection.

    With `identity`, the update starts at exactly zero.
    """

    def __init__(self, tasks: int, width: int, outputs: list[int], rank: int, scale: float, identity: bool):
        super().__init__()
        self.outputs = outputs
        self.scale = scale
        self.down = nn.Parameter(torch.randn(tasks, rank, width) / math.sqrt(width))
        self.up = nn.Parameter(torch.randn(tasks, sum(outputs), rank) * (not identity))
        self.norm_weight = nn.Parameter(torch.ones(tasks, width))
        self.norm_bias = nn.Parameter(torch.zeros(tasks, width))

    def forward(self, tasks: Tensor) -> list[LoraWeights]:
        """Maps indices `(tasks,)` to the weights of each projection."""
        common = {
            "down": self.down[tasks],
            "norm_weight": self.norm_weight[tasks],
            "norm_bias": self.norm_bias[tasks],
        }
        return [LoraWeights(up=up, **common) for up in (self.scale * self.up[tasks]).split(self.outputs, dim=1)]


class MultiTaskLora(nn.ModuleList):
    """The generator of multi-task LoRA, with one `LoraUpdate` per group: the projections of an attention module."""

    def __init__(self, tasks: int, groups: list[list[ProjectionSite]], rank: int, scale: float, identity: bool):
        super().__init__(
            LoraUpdate(tasks, group[0].width, [site.outputs for site in group], rank, scale, identity)
            for group in groups
        )

    def forward(self, tasks: Tensor) -> list[LoraWeights]:
        """Maps indices `(tasks,)` to the weights of each projection."""
        return [weights for update in self for weights in update(tasks)]


class MultiTaskLoraLayer(AdapterLayer):
    """Adds the low-rank update, computed from the input of a linear layer, to its output."""

    obstacle = "normalise the input of a projection, which no weight of the projection can do"

    def forward(self, x: Tensor) -> Tensor:
        output = self.base_layer(x)
        for w, _ in self.active_weights(x):
            self.check_width(x)
            output = output + apply_lora(x, w).view_as(output).to(output.dtype)
        return output


def apply_lora(x: Tensor, w: LoraWeights) -> Tensor:
    """Computes up(down(norm(x))) for each task; `(tasks * batch, ..., width)` to `(tasks, tokens, outputs)`."""
    tasks, _, width = w.down.shape
    tokens = F.layer_norm(x.to(w.down.dtype).reshape(tasks, -1, width), (width,))
    # Folding the norm's weight and bias into the projection saves one pass over the tokens.
    hidden = torch.baddbmm(w.norm_bias[:, None] @ w.down.mT, tokens, (w.down * w.norm_weight[:, None]).mT)
    return hidden @ w.up.mT


class MultiTaskLoraModel(AdapterTuner[MultiTaskLoraConfig]):
    """PEFT tuner of multi-task LoRA."""

    prefix = "mtl_lora_"

    def known_sites(self, model: nn.Module, blocks: list[Block], config: MultiTaskLoraConfig) -> list[Site]:
        uncalled = [name for block in blocks for name in block.uncalled]
        if config.target_modules is not None:
            uncalled = [name for name in uncalled if check_target_module_exists(config, name)]
        if uncalled:
            raise ValueError(
                f"Attention of {type(model).__name__} reads the weight of '{uncalled[0]}' and calls no layer to make "
                "queries, keys and values, so LoRA would have no effect there. Name other linear layers in "
                "`target_modules`."
            )
        return [
            self.site_at(base_layer_of(model.get_submodule(name)), name, index, config)
            for index, block in enumerate(blocks)
            for name in block.projections
        ]

    def site_at(self, module: nn.Module, name: str, index: int, config: MultiTaskLoraConfig) -> Site:
        if not is_linear(module):
            raise ValueError(
                f"'{name}' ({type(module).__name__}) is not a linear layer, and LoRA updates linear layers only. Name "
                "linear layers in `target_modules`."
            )
        return ProjectionSite(name, MultiTaskLoraLayer, module.in_features, index, module.out_features)


register(MultiTaskLoraConfig.method, MultiTaskLoraConfig, MultiTaskLoraModel)
