# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Polyhistor and Polyhistor-Lite (arXiv:2210.03265, NeurIPS 2022).

The paper's letters and our names:

    t, l            task, site (one per transformer block)
    z, v            task embedding (raw, then projected), `embedding_dim` is the length of v
    rho             `reduction_factor`
    W_d, W_u        down, up
    r               `rank`
    W-bar, alpha    template kernel, scaling kernel
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..checks import check_positive
from ..config import LowRankConfig
from ..layers.bottleneck import BottleneckTuner, BottleneckWeights
from ..layers.factors import (
    HIDDEN,
    RAW_EMBEDDING,
    SMALL_STD,
    Hypernetworks,
    Projector,
    ScalingKernels,
    around_one,
    group_equal,
    scale_up,
)
from ..registry import register
from ..tuner.site import Site


@dataclass
class HypernetworkConfig(LowRankConfig):
    """Settings of the methods that generate low-rank adapter weights from embeddings.

    Args:
        embedding_dim: Length k of a projected embedding.
    """

    embedding_dim: int = field(default=64, metadata={"help": "Length of a projected embedding."})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("embedding_dim", self.embedding_dim)

    def shapes_of(self, width: int) -> dict[str, tuple[int, ...]]:
        """Shapes of what the hypernetworks emit for a layer of this width; errors as in `bottleneck_of`."""
        bottleneck, rank = self.bottleneck_of(width), self.rank_of(width)
        return {
            "down_left": (bottleneck, rank),
            "down_right": (rank, width),
            "down_bias": (bottleneck,),
            "up_left": (width, rank),
            "up_right": (rank, bottleneck),
            "up_bias": (width,),
            "norm_weight": (width,),
            "norm_bias": (width,),
        }


@dataclass
class PolyhistorConfig(HypernetworkConfig):
    """Settings of Polyhistor: decomposed hypernetworks in every layer (arXiv:2210.03265, Sec. 4.1, Eq. 3)."""

    method: ClassVar[str] = "POLYHISTOR"

    def make_generator(self, sites: list[Site]) -> nn.Module:
        shapes = [self.shapes_of(site.width) for site in sites]
        return Polyhistor(len(self.tasks), shapes, self.embedding_dim, self.init_weights)


@dataclass
class PolyhistorLiteConfig(HypernetworkConfig):
    """Settings of Polyhistor-Lite: one set of hypernetworks for all layers (arXiv:2210.03265, Sec. 4.2, Eq. 4-6)."""

    method: ClassVar[str] = "POLYHISTOR_LITE"

    reduction_factor: int = field(default=2, metadata={"help": "Width of a layer over its bottleneck."})

    def make_generator(self, sites: list[Site]) -> nn.Module:
        """Raises ValueError where a width is no multiple of the smallest one."""
        width = min(site.width for site in sites)
        for site in sites:
            if site.width % width:
                raise ValueError(
                    f"Polyhistor-Lite scales one kernel to every layer: widths must be multiples of the smallest, "
                    f"{width}, and '{site.name}' has {site.width}. Name modules of such widths in `target_modules`, "
                    "or use PolyhistorConfig."
                )
        scales = [site.width // width for site in sites]
        return PolyhistorLite(len(self.tasks), scales, self.shapes_of(width), self.embedding_dim, self.init_weights)


class Polyhistor(nn.Module):
    """Generates every adapter weight as a product of two factors, each linear in the task embedding.

        W(t, l) = left_l(v) right_l(v),    v = projector_l(z_t)    (arXiv:2210.03265, Eq. 3)

    Biases and norms are linear in v. Every layer has a projector and hypernetworks of its own; the embeddings z are
    shared by all layers.

    Args:
        tasks: Number of tasks.
        shapes: What the hypernetworks of each site emit, as in `HypernetworkConfig.shapes_of`.
        embedding_dim: Length k of v.
        identity: Start with an adapter output of exactly zero.

    Parameters: 512 per task, and for a site of width d, bottleneck n and rank r at k = 64
    74,048 + 65 (2 r (d + n) + n + 3 d).
    """

    def __init__(self, tasks: int, shapes: list[dict[str, tuple[int, ...]]], embedding_dim: int, identity: bool):
        super().__init__()
        self.task_embedding = nn.Parameter(torch.randn(tasks, RAW_EMBEDDING))
        self.projectors = nn.ModuleList(make_projector(RAW_EMBEDDING, embedding_dim, tasks) for _ in shapes)
        self.hypernetworks = nn.ModuleList(
            Hypernetworks(embedding_dim, shape, tasks, start_of(shape, identity)) for shape in shapes
        )

    def forward(self, tasks: Tensor) -> list[BottleneckWeights]:
        """Indices `(tasks,)` to the weights of every site."""
        raw = self.task_embedding[tasks]
        return [
            around_one(multiply_factors(hypernetworks(projector(raw))))
            for projector, hypernetworks in zip(self.projectors, self.hypernetworks, strict=True)
        ]


class PolyhistorLite(nn.Module):
    """Generates small template kernels with one set of hypernetworks and scales them up to every layer.

        W(t, l) = sum_i  template_i(t, l) (x) scaling_i(l),    i = 1 .. s    (arXiv:2210.03265, Eq. 5)
        template_i(t, l) = left(v) right(v),    v = projector([z_t, z_l,i])

    s is the layer's scale, its width over that of the first stage; layers of scale 1 use their template as it is.
    Biases and norms are scaled in the same way by kernels that are vectors.

    Note:
        The paper writes the scaling kernels as alpha^{t,i}, one per task. Its parameter counts have one set per
        layer, shared by all tasks and by down and up; another set of vectors serves both biases and a third the norm.
        We follow the counts.

    Args:
        tasks: Number of tasks.
        scales: Scale s of each site.
        shapes: What the hypernetworks emit at the smallest width, as in `HypernetworkConfig.shapes_of`.
        embedding_dim: Length k of v.
        identity: Start with an adapter output of exactly zero.
    """

    def __init__(
        self,
        tasks: int,
        scales: list[int],
        shapes: dict[str, tuple[int, ...]],
        embedding_dim: int,
        identity: bool,
    ):
        super().__init__()
        self.scales = scales
        self.groups = group_equal(scales)
        self.task_embedding = nn.Parameter(torch.randn(tasks, RAW_EMBEDDING))
        # One row per summand of every site, site by site.
        self.layer_embedding = nn.Parameter(torch.randn(sum(scales), RAW_EMBEDDING))
        inputs = tasks * sum(scales)
        self.projector = make_projector(2 * RAW_EMBEDDING, embedding_dim, inputs)
        self.hypernetworks = Hypernetworks(embedding_dim, shapes, inputs, start_of(shapes, identity))
        scaling = nn.ModuleList(ScalingKernels(scale) for scale in scales)
        self.scaling: Sequence[ScalingKernels] = scaling  # type: ignore[assignment]  # torch does not say of what

    def forward(self, tasks: Tensor) -> list[BottleneckWeights]:
        """Indices `(tasks,)` to the weights of every site."""
        by_site = self.layer_embedding.split(self.scales)
        rows = torch.cat([by_site[site] for group in self.groups for site in group])
        pairs = (len(tasks), len(rows), RAW_EMBEDDING)
        raw = torch.cat([self.task_embedding[tasks][:, None].expand(pairs), rows.expand(pairs)], dim=-1)
        # One product for all tasks, sites and summands: (tasks, sum of scales, ...).
        templates = multiply_factors(self.hypernetworks(self.projector(raw)))
        sizes = [len(group) * self.scales[group[0]] for group in self.groups]
        by_group = zip(*(tensor.split(sizes, dim=1) for tensor in templates), strict=True)
        weights: dict[int, BottleneckWeights] = {}
        for group, group_templates in zip(self.groups, by_group, strict=True):
            kernels = [self.scaling[site] for site in group]
            weights |= zip(group, scale_up(BottleneckWeights(*group_templates), kernels), strict=True)
        return [weights[site] for site in range(len(self.scales))]


def start_of(shapes: dict[str, tuple[int, ...]], identity: bool) -> dict[str, float]:
    """Standard deviations of the outputs at the start, by name.

    down starts like a linear layer, and up at zero in its left factor, which gradient still reaches. A right factor of
    N(0, 1 / rank) lets the product move as fast as its left factor.
    """
    rank, width = shapes["down_right"]
    right = 1 / math.sqrt(rank)
    stds = dict.fromkeys(shapes, SMALL_STD) | {"down_right": right, "up_right": right}
    zero = {"up_left": 0.0, "up_bias": 0.0} if identity else {}
    return stds | {"down_left": 1 / math.sqrt(3 * width)} | zero


def make_projector(raw: int, embedding_dim: int, inputs: int) -> nn.Module:
    """`(..., raw)` to `(..., embedding_dim)`; the counts of Polyhistor have a norm behind Hyperformer's projector."""
    return nn.Sequential(Projector(raw, HIDDEN, embedding_dim, inputs), nn.LayerNorm(embedding_dim))


def multiply_factors(outputs: dict[str, Tensor]) -> BottleneckWeights:
    """Turns the outputs of hypernetworks into weights; leading axes stay as they are."""
    return BottleneckWeights(
        down=outputs["down_left"] @ outputs["down_right"],
        down_bias=outputs["down_bias"],
        up=outputs["up_left"] @ outputs["up_right"],
        up_bias=outputs["up_bias"],
        norm_weight=outputs["norm_weight"],
        norm_bias=outputs["norm_bias"],
    )


class PolyhistorModel(BottleneckTuner):
    """PEFT tuner of Polyhistor."""

    prefix = "polyhistor_"


class PolyhistorLiteModel(BottleneckTuner):
    """PEFT tuner of Polyhistor-Lite."""

    prefix = "polyhistor_lite_"


register(PolyhistorConfig.method, PolyhistorConfig, PolyhistorModel)
register(PolyhistorLiteConfig.method, PolyhistorLiteConfig, PolyhistorLiteModel)
