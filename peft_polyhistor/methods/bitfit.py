# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""BitFit (arXiv:2106.10199) and relative bias: parameters of the encoder itself, one set per task.

Both are baselines of Polyhistor (arXiv:2210.03265, Table 1). The trained values are added to the frozen parameters and
start at zero.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from ..config import MultiTaskConfig
from ..layers.parameters import (
    ParameterAdditions,
    ParameterLayer,
    ParameterSite,
    last_axis,
    parameter_shapes,
    parameter_sites,
)
from ..models.blocks import Block
from ..registry import register
from ..tuner.site import Site
from ..tuner.tuner import AdapterTuner


POSITION_TABLES = ("relative_position_bias_table",)  # the name in Swin of transformers and timm
RANDOM_STD = 0.1  # standard deviation at the start with init_weights=False


@dataclass
class ParameterConfig(MultiTaskConfig):
    """Base of the configs of methods that train parameters of the encoder itself, one set per task."""

    trains: ClassVar[tuple[str, ...]]  # endings of the names of the trained parameters

    def make_generator(self, sites: list[ParameterSite]) -> nn.Module:
        return ParameterAdditions(len(self.tasks), sites, 0.0 if self.init_weights else RANDOM_STD)


@dataclass
class BitFitConfig(ParameterConfig):
    """Config of BitFit: trains all biases of the encoder and its tables of relative positions.

    A module in `target_modules` must be called with the batch on the first axis of its first tensor.
    `layers_to_transform` leaves out modules outside of the blocks, such as the patch embedding.

    Parameters, per task: as many as the encoder has of these, including norms, patch embedding and patch merging.
    """

    method: ClassVar[str] = "MTL_BITFIT"
    trains: ClassVar[tuple[str, ...]] = ("bias", *POSITION_TABLES)


@dataclass
class RelativeBiasConfig(ParameterConfig):
    """Config of relative bias: trains the tables of relative positions of windowed attention.

    A module in `target_modules` must be called with the batch on the first axis of its first tensor.

    Parameters, per task and block with window w and h heads: (2 w - 1)^2 h.
    """

    method: ClassVar[str] = "MTL_RELATIVE_BIAS"
    trains: ClassVar[tuple[str, ...]] = POSITION_TABLES


class ParameterTuner(AdapterTuner[ParameterConfig]):
    """PEFT tuner of BitFit and relative bias."""

    def known_sites(self, model: nn.Module, blocks: list[Block], config: ParameterConfig) -> list[ParameterSite]:
        if not blocks:
            return []
        sites = parameter_sites(model, blocks, lambda name, owner: name.endswith(config.trains))
        if not sites and config.target_modules is None:
            raise ValueError(
                f"{config.method} trains parameters called {' or '.join(config.trains)}, and {type(model).__name__} "
                "has none. Choose another method, or another encoder, e.g. Swin."
            )
        return sites

    def site_at(self, module: nn.Module, name: str, index: int, config: ParameterConfig) -> Site:
        shapes = parameter_shapes(module, lambda own, owner: own.endswith(config.trains), recurse=True)
        if not shapes:
            raise ValueError(
                f"{config.method} trains parameters called {' or '.join(config.trains)}, and '{name}' "
                f"({type(module).__name__}) has none. Name modules that have such parameters."
            )
        return ParameterSite(name, ParameterLayer, last_axis(shapes), index, shapes)


class BitFitModel(ParameterTuner):
    """PEFT tuner of BitFit."""

    prefix = "mtl_bitfit_"


class RelativeBiasModel(ParameterTuner):
    """PEFT tuner of relative bias."""

    prefix = "mtl_relative_bias_"


register(BitFitConfig.method, BitFitConfig, BitFitModel)
register(RelativeBiasConfig.method, RelativeBiasConfig, RelativeBiasModel)
