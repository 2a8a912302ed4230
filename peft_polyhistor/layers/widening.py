# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Merges a bottleneck adapter into the feed-forward block beside it, as additional channels of the block.

Both read the residual stream h through LayerNorms that differ only in their weights. With z = (h - mean) / std, the
block's second linear layer computes from x = gamma z + beta, and the adapter from w z + b. As z = (x - beta) / gamma,

    down(w z + b) + bias = D x + (bias + down b - D beta),    D = down diag(w / gamma)

so D is appended to the rows of the first linear layer, and up to the columns of the last. Both use the same GELU. A
depthwise convolution between them passes the new channels through. Channels of zeros compute zero, as gelu(0) = 0.
"""

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..models.blocks import FeedForward
from ..tuner.layer import Merged


if TYPE_CHECKING:
    from .bottleneck import BottleneckWeights


class Channels(NamedTuple):
    """Additional channels of a feed-forward block, in float64."""

    down: Tensor  # (channels, width)
    down_bias: Tensor  # (channels,)
    up: Tensor  # (width, channels)
    up_bias: Tensor  # (width,)


# The largest allowed growth of the rounding error of the norm's output in an adapter, by bits of the floating-point
# number. In float32, with a unit roundoff of 6e-8, the error relative to the output of the adapter is at most 6e-6; in
# bf16, 0.4 % become 3 %.
MOST_GROWTH = {64: 100.0, 32: 100.0, 16: 8.0}


def read_through(gamma: Tensor, beta: Tensor, adapter: "BottleneckWeights", at: str) -> Channels:
    """Rewrites an adapter to read the output of the block's norm in place of the residual stream.

    Args:
        gamma, beta: Weight and bias of the block's norm, `(width,)`.
        adapter: Weights for one task, without the task axis.
        at: Name of the block, for the error message.

    Raises:
        ValueError: Weights of the block's norm are too near zero.

    Note:
        x has a rounding error relative to |gamma z| + |beta|. So the error of (x - beta) / gamma is relative to
        1 + |beta / gamma| for z of size one. The squares of these errors add up over the channels, weighted by the
        adapter's own weights.
    """
    dtype = gamma.dtype
    gamma, beta, down, down_bias, up, up_bias, norm_weight, norm_bias = map(_double, (gamma, beta, *adapter))
    weighed = down * norm_weight
    errors = weighed * (1 + (beta / gamma).abs().masked_fill(gamma == 0, torch.inf))
    errors = errors.masked_fill(weighed == 0, 0)
    growth = (errors.norm(dim=1) / weighed.norm(dim=1)).nan_to_num(0, posinf=torch.inf).max()
    joined = (weighed / gamma).masked_fill(weighed == 0, 0)
    most = MOST_GROWTH[torch.finfo(dtype).bits]
    if growth > most or joined.abs().max() > torch.finfo(dtype).max:
        worst = int(errors.abs().amax(dim=0).argmax())
        raise ValueError(
            f"The norm before '{at}' has weight {gamma[worst]:.3g} and bias {beta[worst]:.3g} in channel {worst}, too "
            "near zero to recover the adapter's input from the norm's output. Rounding errors would grow "
            f"{growth:.3g} times, and at most {most:g} times are allowed in {dtype}. Keep the adapter, or make it a "
            "plain adapter with `bake`."
        )
    return Channels(joined, down_bias + down @ norm_bias - joined @ beta, up, up_bias)


def widen(
    module: nn.Module,
    description: FeedForward,
    norm: Any,
    adapters: Sequence["BottleneckWeights"],
    at: str,
    merged: Mapping[Tensor, Tensor] | None = None,
) -> Merged:
    """Merges adapters into the parameters of a feed-forward module.

    Args:
        module: The feed-forward module, with the layers in `description`.
        norm: The LayerNorm before the module.
        adapters: Weights for one task, without the task axis.
        at: Name of the module, for error messages.
        merged: New values of parameters of the norm, if they change too.

    Returns:
        New values by parameter, in float64.

    Raises:
        ValueError: The module does not compute a GELU, its parameters are not plain tensors, or weights of the norm
            are too near zero.
    """
    first, *middle, last = [attrgetter(path)(module) for path in description.layers]
    convolutions: list[Any] = [layer for layer in middle if isinstance(layer, nn.Conv2d)]
    for layer in middle:
        if not isinstance(layer, nn.Identity | nn.Conv2d):
            _check_gelu(layer, at)
    gamma, beta = ((merged or {}).get(parameter, parameter) for parameter in (norm.weight, norm.bias))
    tensors = [t for layer in (first, *convolutions, last) for t in (layer.weight, layer.bias)]
    if any(t is None or type(t.data) is not Tensor or not t.is_floating_point() for t in tensors):
        raise ValueError(
            f"The parameters of '{at}' are not plain tensors (quantised, or sharded over processes), so no channels "
            "can be appended. Merge into the encoder before it is quantised or sharded."
        )
    channels = [read_through(gamma, beta, adapter, at) for adapter in adapters]
    down, down_bias, up, up_bias = zip(*channels, strict=True)
    count = sum(map(len, down))
    if description.is_whole:
        count += -(len(first.weight) + count) % len(last.weight)
    widened = {
        first.weight: _append(first.weight, torch.cat(down), count),
        first.bias: _append(first.bias, torch.cat(down_bias), count),
        last.weight: _append(last.weight.mT, torch.cat(up, dim=1).mT, count).mT,
        last.bias: _double(last.bias) + sum(up_bias),
    }
    for convolution in convolutions:
        kernels = torch.zeros(count, *convolution.weight.shape[1:], dtype=torch.float64)
        kernels[..., kernels.shape[-2] // 2, kernels.shape[-1] // 2] = 1
        widened[convolution.weight] = _append(convolution.weight, kernels, count)
        widened[convolution.bias] = _append(convolution.bias, kernels.new_zeros(count), count)
    return widened


def _check_gelu(activation: Callable[..., Any], at: str) -> None:
    probe = torch.linspace(-6, 6, 97, dtype=torch.float64)
    if not torch.allclose(activation(probe), F.gelu(probe), rtol=0, atol=1e-9):
        raise ValueError(
            f"'{at}' computes with {activation}, and adapters with the exact GELU, so they cannot become one layer. "
            "Keep the adapter, or make it a plain adapter with `bake`."
        )


def _double(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float64)


def _append(tensor: Tensor, rows: Tensor, count: int) -> Tensor:
    """Appends `rows` to `tensor`, and zeros up to `count` new rows."""
    zeros = rows.new_zeros(count - len(rows), *rows.shape[1:])
    return torch.cat([_double(tensor), rows, zeros])
