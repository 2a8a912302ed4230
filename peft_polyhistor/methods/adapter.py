# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Adapter, Shared Adapter and Low-rank Adapter: one set of weights per task, or one set for all tasks.

These are baselines of Polyhistor (arXiv:2210.03265, Table 1). The adapter is that of Houlsby et al.
(arXiv:1902.00751), with the placement and the norm of Polyhistor.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor, nn

from ..checks import check_positive
from ..config import BottleneckConfig, LowRankConfig, setting
from ..layers.baked import BakedLayer
from ..layers.bottleneck import BottleneckTuner, BottleneckWeights
from ..layers.matrices import DenseMatrix, LowRankMatrix, SiteGenerators, TaskWeights
from ..layers.parameters import ParameterAdditions, ParameterSite, parameter_sites
from ..models.blocks import Block
from ..registry import register
from ..tuner.site import Site


@dataclass
class AdapterConfig(BottleneckConfig):
    """Config of Adapter: dense weights, learned for each task.

    Parameters, per task and site of width d and bottleneck n: 2 d n + n + 3 d.
    """

    method: ClassVar[str] = "MTL_ADAPTER"

    reduction_factor: int = 2
    bottlenecks: Sequence[int] | None = setting(
        None,
        "Bottleneck of each site in the order of the model, in place of `reduction_factor`. `bake` sets it to keep "
        "the bottlenecks of another method.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.bottlenecks, list | tuple | None):
            raise ValueError(f"`bottlenecks` must be a list of integers, or None, got {self.bottlenecks!r}.")
        for bottleneck in self.bottlenecks or []:
            check_positive("bottlenecks", bottleneck)

    def make_generator(self, sites: list[Site]) -> nn.Module:
        return self.make_weights(len(self.tasks), sites)

    def make_weights(self, sets: int, sites: list[Site]) -> SiteGenerators:
        """Makes `sets` sets of weights for each site.

        Raises:
            ValueError: `bottlenecks` does not have one entry per site.
        """
        bottlenecks = self.bottlenecks or [self.bottleneck_of(site.width) for site in sites]
        if len(bottlenecks) != len(sites):
            raise ValueError(
                f"`bottlenecks` must have one entry for each of the {len(sites)} sites, got {len(bottlenecks)}."
            )
        return SiteGenerators(
            TaskWeights(sets, site.width, bottleneck, DenseMatrix, self.init_weights)
            for site, bottleneck in zip(sites, bottlenecks, strict=True)
        )


@dataclass
class SharedAdapterConfig(AdapterConfig):
    """Config of Shared Adapter: one adapter for all tasks; the LayerNorms of the encoder train too.

    The tasks share one pass of the encoder and differ only in their decoders. With `target_modules` all norms stay
    frozen, and with `layers_to_transform` the norms outside of the chosen blocks.

    Parameters, per site of width d and bottleneck n: 2 d n + n + 3 d; plus 2 d per LayerNorm of the encoder.
    """

    method: ClassVar[str] = "MTL_SHARED_ADAPTER"
    shares_pass: ClassVar[bool] = True

    def make_generator(self, sites: list[Site]) -> nn.Module:
        norms = [site for site in sites if isinstance(site, ParameterSite)]
        adapted = [site for site in sites if not isinstance(site, ParameterSite)]
        return SharedAdapter(
            self.make_weights(1, adapted), ParameterAdditions(1, norms), [site in norms for site in sites]
        )


class SharedAdapter(nn.Module):
    """The generator of Shared Adapter. `is_norm` tells for each site whether it belongs to `norms` or `adapters`."""

    def __init__(self, adapters: SiteGenerators, norms: ParameterAdditions, is_norm: list[bool]):
        super().__init__()
        self.adapters = adapters
        self.norms = norms
        self.is_norm = is_norm

    def forward(self, tasks: Tensor) -> list[BottleneckWeights | dict[str, Tensor]]:
        """Returns the weights of each site, `(1, ...)`; the task indices `(tasks,)` have no effect."""
        the_set = tasks.new_zeros(1)
        adapters, norms = iter(self.adapters(the_set)), iter(self.norms(the_set))
        return [next(norms if is_norm else adapters) for is_norm in self.is_norm]


@dataclass
class LowRankAdapterConfig(LowRankConfig):
    """Config of Low-rank Adapter: each weight is a product of two factors.

    Parameters, per task and site of width d, bottleneck n and rank r: 2 r (d + n) + n + 3 d.
    """

    method: ClassVar[str] = "MTL_LOW_RANK_ADAPTER"

    def make_generator(self, sites: list[Site]) -> nn.Module:
        return SiteGenerators(self._weights_of(site) for site in sites)

    def _weights_of(self, site: Site) -> TaskWeights:
        make_matrix = partial(LowRankMatrix, rank=self.rank_of(site.width))
        return TaskWeights(len(self.tasks), site.width, self.bottleneck_of(site.width), make_matrix, self.init_weights)


class AdapterModel(BottleneckTuner):
    """PEFT tuner of Adapter."""

    residual_layer = BakedLayer
    prefix = "mtl_adapter_"


class SharedAdapterModel(BottleneckTuner):
    """PEFT tuner of Shared Adapter."""

    prefix = "mtl_shared_adapter_"

    def known_sites(self, model: nn.Module, blocks: list[Block], config: BottleneckConfig) -> list[Site]:
        adapted = super().known_sites(model, blocks, config)
        if not blocks or config.target_modules is not None:
            return adapted
        norms = parameter_sites(model, blocks, lambda name, owner: isinstance(owner, nn.LayerNorm))
        taken = {site.name for site in adapted} & {site.name for site in norms}
        if taken:
            raise ValueError(
                f"{config.method} trains the norms of {type(model).__name__} and puts adapters at the same modules: "
                f"{sorted(taken)} cannot do both. Choose another method, e.g. MTL_ADAPTER."
            )
        return adapted + norms


class LowRankAdapterModel(BottleneckTuner):
    """PEFT tuner of Low-rank Adapter."""

    prefix = "mtl_low_rank_adapter_"


register(AdapterConfig.method, AdapterConfig, AdapterModel)
register(SharedAdapterConfig.method, SharedAdapterConfig, SharedAdapterModel)
register(LowRankAdapterConfig.method, LowRankAdapterConfig, LowRankAdapterModel)
