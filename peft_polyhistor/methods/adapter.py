# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Adapter and Low-rank Adapter: one set of weights per task (baselines of Polyhistor, arXiv:2210.03265, Table 1).

The adapter is that of Houlsby et al. (arXiv:1902.00751), in the place and with the norm that Polyhistor gives all
bottleneck methods.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

from torch import nn

from ..adapter.matrices import DenseMatrix, LowRankMatrix, Sites, TaskWeights
from ..adapter.site import Site
from ..adapter.tuner import AdapterTuner
from ..config import BottleneckConfig, check_positive
from ..registry import register


@dataclass
class AdapterConfig(BottleneckConfig):
    """Settings of Adapter: dense weights, learned for every task.

    Parameters, per task and site of width d and bottleneck n: 2 d n + n + 3 d.
    """

    method: ClassVar[str] = "MTL_ADAPTER"

    reduction_factor: int = field(default=2, metadata={"help": "Width of a layer over its bottleneck."})

    def make_generator(self, sites: list[Site]) -> nn.Module:
        return Sites(
            TaskWeights(len(self.tasks), site.width, self.bottleneck_of(site.width), DenseMatrix, self.init_weights)
            for site in sites
        )


@dataclass
class LowRankAdapterConfig(BottleneckConfig):
    """Settings of Low-rank Adapter: every weight is a product of two factors.

    Args:
        rank: Rank of a weight; `None` takes `max(1, bottleneck // rank_divisor)`.
        rank_divisor: Bottleneck over rank where `rank` is not given.

    Parameters, per task and site of width d, bottleneck n and rank r: 2 r (d + n) + n + 3 d.
    """

    method: ClassVar[str] = "MTL_LOW_RANK_ADAPTER"

    rank: int | None = field(default=None, metadata={"help": "Rank of a weight; None: by rank_divisor."})
    rank_divisor: int = field(default=4, metadata={"help": "Bottleneck over rank where rank is not given."})

    def __post_init__(self):
        super().__post_init__()
        check_positive("rank_divisor", self.rank_divisor)
        if self.rank is not None:
            check_positive("rank", self.rank)

    def make_generator(self, sites: list[Site]) -> nn.Module:
        return Sites(self._weights_of(site) for site in sites)

    def _weights_of(self, site: Site) -> TaskWeights:
        bottleneck = self.bottleneck_of(site.width)
        rank = self.rank or max(1, bottleneck // self.rank_divisor)
        make_matrix = partial(LowRankMatrix, rank=rank)
        return TaskWeights(len(self.tasks), site.width, bottleneck, make_matrix, self.init_weights)


class AdapterModel(AdapterTuner):
    """PEFT tuner of Adapter."""

    prefix = "mtl_adapter_"


class LowRankAdapterModel(AdapterTuner):
    """PEFT tuner of Low-rank Adapter."""

    prefix = "mtl_low_rank_adapter_"


register(AdapterConfig.method, AdapterConfig, AdapterModel)
register(LowRankAdapterConfig.method, LowRankAdapterConfig, LowRankAdapterModel)
