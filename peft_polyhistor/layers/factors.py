# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The algebra of generators: hypernetworks, Kronecker sums, and templates scaled up to a layer."""

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .bottleneck import BottleneckWeights


# Sizes in Hyperformer and Polyhistor, derived from the parameter counts in arXiv:2210.03265, Tables 1 and 2.
RAW_EMBEDDING = 512  # length of a learned embedding
HIDDEN = 128  # hidden width of the projector
SMALL_STD = 0.1  # standard deviation of generated biases and norms at the start


class PacedLinear(nn.Linear):
    """A linear layer whose outputs change as fast in training as a single weight does.

        y = gain W x + b,    gain = M^(1/4) / sum_j |x_j|

    A step of Adam with learning rate eta changes each entry of W by about eta, in the direction of the summed gradient
    of all inputs. If only one input has a gradient, or all have the same, W x changes by eta sum_j |x_j|: 51 eta for
    64 entries of N(0, 1). If M inputs have independent gradients, the change for each input is 1 / sqrt(M) of that. M
    is the number of inputs, and at most the number of entries of x. The gain is the geometric mean of both cases: the
    output changes by eta to within a factor of M^(1/4), and b by eta. One learning rate then suits learned and
    generated weights alike, as in maximal-update parametrisation (arXiv:2203.03466).

    W starts larger by the inverse of the gain, so that neither the number of parameters nor the functions that the
    layer can express change. The gain is a power of two, exact in every precision, and is saved with the weights.

    Args:
        in_features, out_features: Number of entries of x and y.
        inputs: Number of different x that W is applied to.
        std: Standard deviation of gain W at the start; b starts at zero.
        size: Mean of |x_j|: 0.8 for N(0, 1), 0.4 after a ReLU.
    """

    gain: Tensor

    def __init__(self, in_features: int, out_features: int, inputs: int, std: float, size: float = 0.8):
        super().__init__(in_features, out_features)
        gain = 2.0 ** round(math.log2(min(inputs, in_features) ** 0.25 / (size * in_features)))
        self.register_buffer("gain", torch.tensor(gain))
        nn.init.normal_(self.weight, std=std / gain)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.gain * x, self.weight, self.bias)


class Projector(nn.Sequential):
    """Projects raw embeddings to the inputs of hypernetworks; `(..., raw)` to `(..., embedding_dim)`.

        v = W2 relu(W1 z)    (Hyperformer, arXiv:2106.04489, Sec. 2.2; sizes of arXiv:2210.03265)

    The entries of z, W1 z and v have a standard deviation of about 1 at the start.

    Parameters: (raw + 1) * hidden + (hidden + 1) * embedding_dim.
    """

    def __init__(self, raw: int, hidden: int, embedding_dim: int, inputs: int):
        super().__init__(
            PacedLinear(raw, hidden, inputs, std=1 / math.sqrt(raw)),
            nn.ReLU(),
            PacedLinear(hidden, embedding_dim, inputs, std=math.sqrt(2 / hidden), size=0.4),
        )

    @torch.no_grad()
    def fit(self, raw: Tensor, outputs: Tensor) -> None:
        """Sets W2 so that embeddings `(rows, raw)` map to outputs `(rows, embedding_dim)`, by least squares."""
        first, relu, second = self
        hidden = relu(first(raw)).float()  # torch.linalg has no 16-bit types
        inverse = torch.linalg.pinv(hidden, rtol=0.005)  # W2 stays small if embeddings are much alike
        fitted = (inverse @ outputs.float()).T.contiguous()  # FSDP takes no other parameters
        second.weight = nn.Parameter(fitted.to(raw.dtype) / second.gain)


class Hypernetworks(nn.Module):
    """Linear hypernetworks that read the same embedding, evaluated in one matrix product.

        output_j = reshape(W_j v + b_j)    for each named output j

    At the start, b_j is zero, and unit vectors v give vectors of normal numbers, and matrices with orthogonal rows or
    columns, so that the factors of a product pass on all directions of a gradient alike.

    Args:
        embedding_dim: Length k of the embedding v, whose norm is about sqrt(k) at the start.
        shapes: Shape of each output, by name.
        inputs: Number of different embeddings; 1 if each is a multiple of a unit vector of its own.
        stds: Standard deviation of the entries of each output at the start, by name.
        size: Mean size of the entries of an embedding at the start.

    Parameters: (embedding_dim + 1) * sum of the sizes of the outputs.
    """

    def __init__(
        self,
        embedding_dim: int,
        shapes: dict[str, tuple[int, ...]],
        inputs: int,
        stds: Mapping[str, float],
        size: float = 0.8,
    ):
        super().__init__()
        self.shapes = shapes
        self.sizes = [math.prod(shape) for shape in shapes.values()]
        self.linear = PacedLinear(embedding_dim, sum(self.sizes), inputs, 1 / math.sqrt(embedding_dim), size)
        with torch.no_grad():
            for (name, shape), rows in zip(shapes.items(), self.linear.weight.split(self.sizes), strict=True):
                if len(shape) == 2:
                    rows.copy_(draw_orthogonal(embedding_dim, *shape).flatten(1).mT)
                    rows.div_(self.linear.gain * math.sqrt(embedding_dim))  # as `PacedLinear` draws them
                rows.mul_(stds[name])

    def forward(self, embedding: Tensor) -> dict[str, Tensor]:
        """Maps `(..., embedding_dim)` to one tensor `(..., *shape)` per output."""
        outputs = self.linear(embedding).split(self.sizes, dim=-1)
        return {
            name: output.unflatten(-1, shape)
            for (name, shape), output in zip(self.shapes.items(), outputs, strict=True)
        }


def draw_orthogonal(count: int, rows: int, cols: int) -> Tensor:
    """Draws matrices `(count, rows, cols)` with orthogonal rows, or columns if these are fewer; mean square 1."""
    long, short = max(rows, cols), min(rows, cols)
    columns = math.sqrt(long) * torch.linalg.qr(torch.randn(count, long, short, dtype=torch.float32)).Q
    return columns if rows >= cols else columns.mT


def around_one(weights: BottleneckWeights) -> BottleneckWeights:
    """Adds one to the generated norm weight, so that the norm starts near the identity."""
    return weights._replace(norm_weight=1 + weights.norm_weight)


def kronecker_sum(templates: Tensor, kernels: Tensor) -> Tensor:
    """Sums Kronecker products: sum_i templates[..., i, :, :] (x) kernels[..., i, :, :].

    (Polyhistor, arXiv:2210.03265, Eq. 5; PHM, arXiv:2102.08597, Eq. 4)

    Args:
        templates: `(..., summands, rows, cols)`.
        kernels: `(..., summands, kernel rows, kernel cols)`; leading axes broadcast.

    Returns:
        `(..., rows * kernel rows, cols * kernel cols)`.
    """
    return torch.einsum("...iab,...icd->...acbd", templates, kernels).flatten(-2).flatten(-3, -2)


def kronecker_sum_of_vectors(templates: Tensor, kernels: Tensor) -> Tensor:
    """Sums Kronecker products of vectors, `(..., summands, length)` (x) `(..., summands, kernel length)`."""
    return torch.einsum("...ia,...ic->...ac", templates, kernels).flatten(-2)


class ScalingKernels(nn.Module):
    """The learned kernels that scale up the templates of one site, shared by all tasks.

    They are drawn from N(0, 1 / s) for scale s, so that the sum over s templates has the size of one template. A site
    of scale 1 has no kernels: its template is its weight.

    Parameters: s^3 + 2 s^2.
    """

    def __init__(self, scale: int):
        super().__init__()
        if scale > 1:
            std = 1 / math.sqrt(scale)
            self.weight = nn.Parameter(std * torch.randn(scale, scale, scale))
            self.bias = nn.Parameter(std * torch.randn(scale, scale))
            self.norm = nn.Parameter(std * torch.randn(scale, scale))
        self.scale = scale

    def forward(self) -> tuple[Tensor, Tensor, Tensor]:
        """Returns kernels of the matrices `(scale, scale, scale)`, and of the biases and the norm `(scale, scale)`."""
        return self.weight, self.bias, self.norm


def scale_up(templates: BottleneckWeights, kernels: list[ScalingKernels]) -> Iterator[BottleneckWeights]:
    """Computes the weights `(tasks, ...)` of all sites of one scale in one product.

    Args:
        templates: `(tasks, sites * scale, ...)`, site by site.
        kernels: One item per site.
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
    """Groups the indices of equal values."""
    return [[i for i, other in enumerate(values) if other == value] for value in dict.fromkeys(values)]
