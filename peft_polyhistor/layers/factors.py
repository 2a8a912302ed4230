# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The algebra the generators are built from."""

import math

import torch
from torch import Tensor, nn

from .bottleneck import BottleneckWeights


# Of Hyperformer and Polyhistor: the sizes from the parameter counts of Polyhistor, arXiv:2210.03265, Tables 1 and 2.
RAW_EMBEDDING = 512  # length of a learned embedding (E)
HIDDEN = 128  # hidden width of the projector (H)
INIT_STD = 0.01  # of the hypernetworks' weights, as in Hyperformer


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
