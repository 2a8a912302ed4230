# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The algebra that generators are built from: hypernetworks, Kronecker sums, and templates scaled up to a layer."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from .bottleneck import BottleneckWeights


# Sizes in Hyperformer and Polyhistor, from the parameter counts of Polyhistor, arXiv:2210.03265, Tables 1 and 2.
RAW_EMBEDDING = 512  # length of a learned embedding (E)
HIDDEN = 128  # hidden width of the projector (H)
INIT_STD = 0.01  # standard deviation of the hypernetworks' weights, as in Hyperformer


class Projector(nn.Sequential):
    """Turns raw embeddings into the short ones that hypernetworks read; `(..., raw)` to `(..., embedding_dim)`.

        v = W2 relu(W1 z)    (Hyperformer, arXiv:2106.04489, Sec. 2.2; sizes of arXiv:2210.03265)

    Parameters: (raw + 1) * hidden + (hidden + 1) * embedding_dim.
    """

    def __init__(self, raw: int, hidden: int, embedding_dim: int):
        super().__init__(nn.Linear(raw, hidden), nn.ReLU(), nn.Linear(hidden, embedding_dim))


class Hypernetworks(nn.Module):
    """A family of linear hypernetworks that read the same embedding, evaluated in one product.

        output_j = reshape(W_j v + b_j)    for every named output j

    Args:
        embedding_dim: Length of the embedding v.
        shapes: Shape of each output, by name.

    Parameters: (embedding_dim + 1) * sum of the sizes of the outputs.
    """

    def __init__(self, embedding_dim: int, shapes: dict[str, tuple[int, ...]]):
        super().__init__()
        self.shapes = shapes
        self.sizes = [math.prod(shape) for shape in shapes.values()]
        self.linear = nn.Linear(embedding_dim, sum(self.sizes))

    def reset_parameters(self, std: float, zero: tuple[str, ...] = ()) -> None:
        """Draws the weights from N(0, std^2), zeroes all biases and every hypernetwork named in `zero`."""
        nn.init.normal_(self.linear.weight, std=std)
        nn.init.zeros_(self.linear.bias)
        with torch.no_grad():
            for name, rows in zip(self.shapes, self.linear.weight.split(self.sizes), strict=True):
                if name in zero:
                    rows.zero_()

    def forward(self, embedding: Tensor) -> dict[str, Tensor]:
        """`(..., embedding_dim)` to one tensor `(..., *shape)` per output."""
        outputs = self.linear(embedding).split(self.sizes, dim=-1)
        return {
            name: output.unflatten(-1, shape)
            for (name, shape), output in zip(self.shapes.items(), outputs, strict=True)
        }


def around_one(weights: BottleneckWeights) -> BottleneckWeights:
    """Reads the generated norm weight as a change of one, so that the norm starts near the identity."""
    return weights._replace(norm_weight=1 + weights.norm_weight)


def kronecker_sum(templates: Tensor, kernels: Tensor) -> Tensor:
    """Sums Kronecker products, template first: sum_i templates[..., i, :, :] (x) kernels[..., i, :, :].

    (Polyhistor, arXiv:2210.03265, Eq. 5; PHM, arXiv:2102.08597, Eq. 4)

    Args:
        templates: `(..., summands, rows, cols)`.
        kernels: `(..., summands, kernel rows, kernel cols)`; leading axes as in broadcasting.

    Returns:
        `(..., rows * kernel rows, cols * kernel cols)`.
    """
    return torch.einsum("...iab,...icd->...acbd", templates, kernels).flatten(-2).flatten(-3, -2)


def kronecker_sum_of_vectors(templates: Tensor, kernels: Tensor) -> Tensor:
    """`kronecker_sum` of vectors: `(..., summands, length)` and `(..., summands, kernel length)` to
    `(..., length * kernel length)`.
    """
    return torch.einsum("...ia,...ic->...ac", templates, kernels).flatten(-2)


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

    def forward(self) -> tuple[Tensor, Tensor, Tensor]:
        """Kernels of the matrices `(scale, scale, scale)`, of the biases and of the norm, both `(scale, scale)`."""
        return self.weight, self.bias, self.norm


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
        weight, bias, norm = (torch.stack(parts)[:, None] for parts in zip(*(k() for k in kernels), strict=True))
        biases = kronecker_sum_of_vectors(torch.cat([t.down_bias, t.up_bias], dim=-1), bias)
        norms = kronecker_sum_of_vectors(torch.cat([t.norm_weight, t.norm_bias], dim=-1), norm)
        down, up = kronecker_sum(t.down, weight), kronecker_sum(t.up, weight)
        down_bias, up_bias = biases.split([down.shape[-2], up.shape[-2]], dim=-1)
        weights = BottleneckWeights(down, down_bias, up, up_bias, *norms.chunk(2, dim=-1))
    return map(BottleneckWeights._make, zip(*around_one(weights), strict=True))


def group_equal(values: list[int]) -> list[list[int]]:
    """Indices of equal values together."""
    return [[i for i, other in enumerate(values) if other == value] for value in dict.fromkeys(values)]
