# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""PHM layer (arXiv:2102.08597) and Compacter (arXiv:2106.04647): adapter weights as sums of Kronecker products.

Letters of the papers and names in this file:

    n               `order`, number of summands and side of a rule; D in the formulas of this package
    A_i             rule
    B_i = s_i t_i   kernel, of rank one in Compacter
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor, nn

from ..checks import check_positive
from ..config import SUBLAYERS, BottleneckConfig, setting
from ..layers.bottleneck import BottleneckTuner, BottleneckWeights
from ..layers.matrices import KroneckerMatrix, SiteGenerators, TaskWeights, new_rule
from ..registry import register
from ..tuner.site import Site


@dataclass
class KroneckerConfig(BottleneckConfig):
    """Base of the configs of methods whose weights are sums of Kronecker products."""

    order: int = setting(
        2,
        "Number D of Kronecker products in a sum, and side of the rules. Must divide each width and bottleneck.",
        check_positive,
    )

    def bottleneck_of(self, width: int) -> int:
        """Returns the bottleneck of a layer of this width, in channels.

        Raises:
            ValueError: The reduction factor is larger than the width, or the order does not divide both sizes.
        """
        bottleneck = super().bottleneck_of(width)
        if width % self.order or bottleneck % self.order:
            raise ValueError(
                f"`order` {self.order} must divide width {width} and bottleneck {bottleneck} (at reduction_factor "
                f"{self.reduction_factor}): choose another order or reduction factor."
            )
        return bottleneck


@dataclass
class PhmConfig(KroneckerConfig):
    """Config of PHM layer: each weight has dense kernels and its own rules (arXiv:2102.08597, Eq. 4).

    Parameters, per task and site of width d and bottleneck n: 2 d n / D + 2 D^3 + n + 3 d.
    """

    method: ClassVar[str] = "MTL_PHM"

    def make_generator(self, sites: list[Site]) -> nn.Module:
        make_matrix = partial(KroneckerMatrix, order=self.order)
        return SiteGenerators(
            TaskWeights(len(self.tasks), site.width, self.bottleneck_of(site.width), make_matrix, self.init_weights)
            for site in sites
        )


@dataclass
class CompacterPlusPlusConfig(KroneckerConfig):
    """Config of Compacter++: Compacter without adapters beside attention (arXiv:2106.04647, Sec. 4).

    Kernels have rank one, and all weights of a task share its rules.

    Parameters, per task: D^3, plus 2 (d + n) + n + 3 d for each site of width d and bottleneck n.
    """

    method: ClassVar[str] = "MTL_COMPACTER_PLUS_PLUS"

    reduction_factor: int = 2

    def make_generator(self, sites: list[Site]) -> nn.Module:
        make_matrix = partial(KroneckerMatrix, order=self.order, own_rule=False, rank=1)
        weights = (
            TaskWeights(len(self.tasks), site.width, self.bottleneck_of(site.width), make_matrix, self.init_weights)
            for site in sites
        )
        return Compacter(len(self.tasks), self.order, SiteGenerators(weights))


@dataclass
class CompacterConfig(CompacterPlusPlusConfig):
    """Config of Compacter: Compacter++ with adapters beside attention too (arXiv:2106.04647, Sec. 4)."""

    method: ClassVar[str] = "MTL_COMPACTER"

    sublayers: Sequence[str] = SUBLAYERS


class Compacter(nn.Module):
    """The generator of Compacter: the rules of each task, and the kernels of each site."""

    def __init__(self, tasks: int, order: int, sites: SiteGenerators):
        super().__init__()
        self.rule = new_rule(tasks, order)
        self.sites = sites

    def forward(self, tasks: Tensor) -> list[BottleneckWeights]:
        """Maps indices `(tasks,)` to the weights of each site."""
        return self.sites(tasks, self.rule[tasks])


class PhmModel(BottleneckTuner):
    """PEFT tuner of PHM layer."""

    prefix = "mtl_phm_"


class CompacterPlusPlusModel(BottleneckTuner):
    """PEFT tuner of Compacter++."""

    prefix = "mtl_compacter_plus_plus_"


class CompacterModel(BottleneckTuner):
    """PEFT tuner of Compacter."""

    prefix = "mtl_compacter_"


register(PhmConfig.method, PhmConfig, PhmModel)
register(CompacterPlusPlusConfig.method, CompacterPlusPlusConfig, CompacterPlusPlusModel)
register(CompacterConfig.method, CompacterConfig, CompacterModel)
