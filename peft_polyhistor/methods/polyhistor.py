# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Polyhistor and Polyhistor-Lite (arXiv:2210.03265, NeurIPS 2022).

The start. Inputs v and v' share the hypernetwork W. A step along the gradient of W v moves W v' by a multiple of
v . v', so the weights of one task and layer disturb those of others. All inputs therefore start as multiples of unit
vectors: one per task in Polyhistor, and one per template of a layer in Polyhistor-Lite, whose task embeddings start
near each other. The paper draws random embeddings and projectors. The functions that the methods can express, and
their numbers of parameters, are the same (recipes/results/learning.md has the effect).

Letters of the paper and names in this file:

    t, l            task, site (one per transformer block)
    z, v            task embedding, raw and projected; `embedding_dim` is the length of v
    rho             `reduction_factor`
    W_d, W_u        down, up
    r               `rank`
    W-bar, alpha    template kernel, scaling kernel
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..checks import check_positive
from ..config import LowRankConfig, setting
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


RIGHT_SIZE = 2.0  # of right factors at the start, in multiples of 1 / sqrt(rank)
TASK_STD = 0.1  # of the entries of task embeddings in Polyhistor-Lite around their common vector, which is N(0, 1)


def check_embedding_dim(name: str, value: Any) -> None:
    """Raises ValueError for embeddings so short that a norm makes those of different tasks equal."""
    check_positive(name, value)
    if value < 3:
        raise ValueError(
            f"`{name}` must be at least 3, got {value}: the norm behind the projector maps embeddings of length 1 to "
            "one value, and those of length 2 to one of two, so that tasks would have the same adapter."
        )


@dataclass
class HypernetworkConfig(LowRankConfig):
    """Base of the configs of methods that generate low-rank adapter weights from embeddings."""

    embedding_dim: int = setting(
        64, "Length of a projected embedding, at least 3: the norm behind the projector leaves no more than two "
        "directions to embeddings of length 2.", check_embedding_dim,
    )  # fmt: skip

    def shapes_of(self, width: int) -> dict[str, tuple[int, ...]]:
        """Returns the shapes of the hypernetworks' outputs for a layer of this width, by name.

        Raises:
            ValueError: The reduction factor is larger than the width.
        """
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
    """Config of Polyhistor: decomposed hypernetworks for each layer (arXiv:2210.03265, Sec. 4.1, Eq. 3).

    Parameters: 512 per task, plus 74,048 + 65 (2 r (d + n) + n + 3 d) for each site of width d, bottleneck n and
    rank r, with the default `embedding_dim`.
    """

    method: ClassVar[str] = "POLYHISTOR"

    def make_generator(self, sites: list[Site]) -> nn.Module:
        shapes = [self.shapes_of(site.width) for site in sites]
        return Polyhistor(len(self.tasks), shapes, self.embedding_dim, self.init_weights)


@dataclass
class PolyhistorLiteConfig(HypernetworkConfig):
    """Config of Polyhistor-Lite: one set of hypernetworks for all layers (arXiv:2210.03265, Sec. 4.2, Eq. 4-6).

    The width of each adapted layer must be a multiple of the smallest width.
    """

    method: ClassVar[str] = "POLYHISTOR_LITE"

    reduction_factor: int = 2

    def make_generator(self, sites: list[Site]) -> nn.Module:
        """Builds the generator.

        Raises:
            ValueError: A width is not a multiple of the smallest width.
        """
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
    """Generates each adapter weight as a product of two factors that are linear in the task embedding.

        W(t, l) = left_l(v) right_l(v),    v = projector_l(z_t)    (arXiv:2210.03265, Eq. 3)

    Biases and norms are linear in v. Each layer has its own projector and hypernetworks; all layers share the
    embeddings z.

    Args:
        tasks: Number of tasks.
        shapes: For each site, the outputs of its hypernetworks, from `HypernetworkConfig.shapes_of`.
        embedding_dim: Length k of v.
        identity: Start with an adapter output of exactly zero.
    """

    def __init__(self, tasks: int, shapes: list[dict[str, tuple[int, ...]]], embedding_dim: int, identity: bool):
        super().__init__()
        self.task_embedding = nn.Parameter(torch.randn(tasks, RAW_EMBEDDING))
        self.projectors = nn.ModuleList(make_projector(self.task_embedding, embedding_dim, tasks) for _ in shapes)
        self.hypernetworks = nn.ModuleList(make_hypernetworks(embedding_dim, shape, identity) for shape in shapes)

    def forward(self, tasks: Tensor) -> list[BottleneckWeights]:
        """Maps indices `(tasks,)` to the weights of each site."""
        raw = self.task_embedding[tasks]
        return [
            around_one(multiply_factors(hypernetworks(projector(raw))))
            for projector, hypernetworks in zip(self.projectors, self.hypernetworks, strict=True)
        ]


class PolyhistorLite(nn.Module):
    """Generates small template kernels with one set of hypernetworks and scales them up to each layer.

        W(t, l) = sum_i  template_i(t, l) (x) scaling_i(l),    i = 1 .. s    (arXiv:2210.03265, Eq. 5)
        template_i(t, l) = left(v) right(v),    v = projector([z_t, z_l,i])

    The scale s is the width of the layer divided by the smallest width; a layer of scale 1 uses its template unscaled.
    Kernels of vectors scale biases and norms in the same way.

    Note:
        The paper writes the scaling kernels as alpha^{t,i}, one per task. Its parameter counts have one set of
        matrices per layer, which all tasks and both down and up share, one set of vectors for both biases, and one for
        the norm. The code follows the counts.

    Args:
        tasks: Number of tasks.
        scales: Scale s of each site.
        shapes: The outputs of the hypernetworks at the smallest width, from `HypernetworkConfig.shapes_of`.
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
        self.task_embedding = nn.Parameter(torch.randn(RAW_EMBEDDING) + TASK_STD * torch.randn(tasks, RAW_EMBEDDING))
        # One row per summand of each site, site by site.
        self.layer_embedding = nn.Parameter(torch.randn(sum(scales), RAW_EMBEDDING))
        mean = self.task_embedding.mean(0).expand(self.layer_embedding.shape)
        pairs = torch.cat([mean, self.layer_embedding], dim=-1)
        self.projector = make_projector(pairs, embedding_dim, inputs=tasks * len(pairs))
        self.hypernetworks = make_hypernetworks(embedding_dim, shapes, identity)
        scaling = nn.ModuleList(ScalingKernels(scale) for scale in scales)
        self.scaling: Sequence[ScalingKernels] = scaling  # type: ignore[assignment]  # a ModuleList has no item type

    def forward(self, tasks: Tensor) -> list[BottleneckWeights]:
        """Maps indices `(tasks,)` to the weights of each site."""
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
    """Returns the standard deviations of the outputs at the start, by name.

    down starts like a linear layer. The left factor of up starts at zero, with a gradient that is not zero. A right
    factor with entries of 1 / sqrt(rank) lets the product change as fast as its left factor. Here it starts larger, so
    that the left factor learns faster than the right one, as in LoRA+ (arXiv:2402.12354).
    """
    rank, width = shapes["down_right"]
    right = RIGHT_SIZE / math.sqrt(rank)
    stds = dict.fromkeys(shapes, SMALL_STD) | {"down_right": right, "up_right": right}
    zero = {"up_left": 0.0, "up_bias": 0.0} if identity else {}
    return stds | {"down_left": 1 / (RIGHT_SIZE * math.sqrt(3 * width))} | zero


def make_projector(raw: Tensor, embedding_dim: int, inputs: int) -> nn.Module:
    """Makes Hyperformer's projector with a norm behind it, which the parameter counts of Polyhistor contain.

    It maps row i of `raw` to the unit vector of entry i mod k, times k / sqrt(k - 1), for k = `embedding_dim`. More
    than some 100 rows are fitted by least squares.

    Args:
        raw: Raw embeddings `(rows, length)`.
        embedding_dim: Length of a projected embedding.
        inputs: Number of different embeddings, for `PacedLinear`.
    """
    projector, norm = Projector(raw.shape[1], HIDDEN, embedding_dim, inputs), nn.LayerNorm(embedding_dim)
    units = torch.eye(embedding_dim, device=raw.device)[torch.arange(len(raw)) % embedding_dim]
    projector.fit(raw, math.sqrt(embedding_dim) * units)
    nn.init.constant_(norm.bias, 1 / math.sqrt(max(1, embedding_dim - 1)))  # the norm maps zeros to minus this
    return nn.Sequential(projector, norm)


def make_hypernetworks(embedding_dim: int, shapes: dict[str, tuple[int, ...]], identity: bool) -> Hypernetworks:
    """Makes hypernetworks for the outputs of `make_projector`."""
    stds, size = start_of(shapes, identity), 1 / math.sqrt(embedding_dim)
    return Hypernetworks(embedding_dim, shapes, inputs=1, stds=stds, size=size)


def multiply_factors(outputs: dict[str, Tensor]) -> BottleneckWeights:
    """Multiplies the factors among the outputs of hypernetworks; leading axes do not change."""
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
