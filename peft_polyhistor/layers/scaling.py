# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Small templates scaled up to the layers of an encoder, as in Polyhistor-Lite."""

from collections.abc import Iterator

import torch
from torch import nn

from .bottleneck import BottleneckWeights
from .factors import around_one, kronecker_sum, kronecker_sum_of_vectors


class ScalingKernels(nn.Module):
    """The learned kernels that scale the templates of one site, shared by all tasks; s^3 + 2 s^2 parameters.

    A site of scale 1 has none: its template is its weight.
    """

    def __init__(self, scale: int):
        super().__init__()
        if scale > 1:
            self.weight = nn.Parameter(torch.randn(scale, scale, scale))
            self.bias = nn.Parameter(torch.randn(scale, scale))
            self.norm = nn.Parameter(torch.randn(scale, scale))
        self.scale = scale


def scale_up(templates: BottleneckWeights, kernels: list[ScalingKernels]) -> Iterator[BottleneckWeights]:
    """Weights of sites of one scale, each `(tasks, ...)`, in one product for all.

    Args:
        templates: `(tasks, sites * scale, ...)`, site by site.
        kernels: One per site.
    """
    # (sites, tasks, scale, ...)
    t = BottleneckWeights(*(template.unflatten(1, (len(kernels), -1)).transpose(0, 1) for template in templates))
    if kernels[0].scale == 1:
        weights = BottleneckWeights(*(template.squeeze(2) for template in t))
    else:
        weight, bias, norm = (
            torch.stack([getattr(kernel, name) for kernel in kernels])[:, None] for name in ("weight", "bias", "norm")
        )
        biases = kronecker_sum_of_vectors(torch.cat([t.down_bias, t.up_bias], dim=-1), bias)
        norms = kronecker_sum_of_vectors(torch.cat([t.norm_weight, t.norm_bias], dim=-1), norm)
        down, up = kronecker_sum(t.down, weight), kronecker_sum(t.up, weight)
        down_bias, up_bias = biases.split([down.shape[-2], up.shape[-2]], dim=-1)
        weights = BottleneckWeights(down, down_bias, up, up_bias, *norms.chunk(2, dim=-1))
    return map(BottleneckWeights._make, zip(*around_one(weights), strict=True))


def group_equal(values: list[int]) -> list[list[int]]:
    """Indices of equal values together."""
    return [[i for i, other in enumerate(values) if other == value] for value in dict.fromkeys(values)]
