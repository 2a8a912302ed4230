# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""PHM layer (arXiv:2102.08597) and Compacter (arXiv:2106.04647): adapter weights as sums of Kronecker products.

The papers' letters and our names:

    n               `order`, number of summands and side of a rule
    A_i             rule
    B_i = s_i t_i   kernel, of rank one in Compacter
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

from torch import Tensor, nn

from ..checks import check_positive
from ..config import SUBLAYERS, BottleneckConfig
from ..layers.bottleneck import BottleneckTuner, BottleneckWeights
from ..layers.matrices import KroneckerMatrix, SiteGenerators, TaskWeights, new_rule
from ..registry import register
from ..tuner.site import Site


@dataclass
class KroneckerConfig(BottleneckConfig):
    """Settings of the methods whose weights are sums of Kronecker products.

    Args:
        order: Number D of summands, and side of a rule; divides every width and bottleneck.
    """

    order: int = field(default=2, metadata={"help": "Number of summands, and side of a rule."})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("order", self.order)

    def bottleneck_of(self, width: int) -> int:
        """Bottleneck of a layer of this width, in channels.

        Raises:
            ValueError: The reduction factor is larger than the width, or the order divides not both sizes.
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
    """Settings of PHM layer: dense kernels, and rules of its own for every weight.

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
    """Settings of Compacter++, which leaves attention alone.

    Kernels have rank one, and the rules of a task are shared by all its weights (arXiv:2106.04647, Sec. 4).

    Parameters, per task: D^3, and for a site of width d and bottleneck n 2 (d + n) + n + 3 d.
    """

    method: ClassVar[str] = "MTL_COMPACTER_PLUS_PLUS"

    reduction_factor: int = field(default=2, metadata={"help": "Width of a layer over its bottleneck."})

    def make_generator(self, sites: list[Site]) -> nn.Module:
        make_matrix = partial(KroneckerMatrix, order=self.order, own_rule=False, rank=1)
        weights = (
            TaskWeights(len(self.tasks), site.width, self.bottleneck_of(site.width), make_matrix, self.init_weights)
            for site in sites
        )
        return Compacter(len(self.tasks), self.order, SiteGenerators(weights))


@dataclass
class CompacterConfig(CompacterPlusPlusConfig):
    """Settings of Compacter: Compacter++ with adapters beside attention too."""

    method: ClassVar[str] = "MTL_COMPACTER"

    sublayers: Sequence[str] = field(
        default=SUBLAYERS, metadata={"help": "Where adapters sit: 'feed_forward', 'attention' or both."}
    )


class Compacter(nn.Module):
    """The rules of every task, and the sites whose weights they are part of."""

    def __init__(self, tasks: int, order: int, sites: SiteGenerators):
        super().__init__()
        self.rule = new_rule(tasks, order)
        self.sites = sites

    def forward(self, tasks: Tensor) -> list[BottleneckWeights]:
        """Indices `(tasks,)` to the weights of every site."""
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
