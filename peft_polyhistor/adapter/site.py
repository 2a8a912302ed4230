# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Where an adapter sits, what it weighs and what it computes."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn import functional as F

from .routing import TaskAdapters


@dataclass(frozen=True)
class Site:
    """A module of the encoder that carries an adapter.

    Args:
        name: Path of the module in the model.
        width: Channels C of its stage.
        block: Index of the transformer block it is part of; the sites of a block may share parameters.
        norm: Path of the norm in front of the block, whose input the parallel placement reads; `None` where the
            module's own input is read.
    """

    name: str
    width: int
    block: int
    norm: str | None = None


class BottleneckWeights(NamedTuple):
    """Weights of one site for several tasks, each with a leading axis of tasks."""

    down: Tensor  # (tasks, bottleneck, width)
    down_bias: Tensor  # (tasks, bottleneck)
    up: Tensor  # (tasks, width, bottleneck)
    up_bias: Tensor  # (tasks, width)
    norm_weight: Tensor  # (tasks, width)
    norm_bias: Tensor  # (tasks, width)


def apply_bottleneck(x: Tensor, w: BottleneckWeights, dropout: float = 0.0) -> Tensor:
    """up(gelu(down(norm(x)))) with the weights of every task at once.

    Args:
        x: `(tasks * batch, ..., width)`, all pictures of the first task first.
        w: Weights of those tasks.
        dropout: Probability of zeroing a bottleneck activation.

    Returns:
        A tensor of the shape and dtype of `x`.
    """
    tasks, _, width = w.down.shape
    tokens = x.to(w.down.dtype).reshape(tasks, -1, width)
    # The norm's weight and bias are folded into the projection: one pass less over the tokens.
    down = w.down * w.norm_weight[:, None]
    down_bias = torch.baddbmm(w.down_bias[:, None], w.norm_bias[:, None], w.down.mT)
    hidden = F.gelu(torch.baddbmm(down_bias, F.layer_norm(tokens, (width,)), down.mT))
    if dropout:
        hidden = F.dropout(hidden, dropout)
    return torch.baddbmm(w.up_bias[:, None], hidden, w.up.mT).view_as(x).to(x.dtype)


class AdapterSite(nn.Module, BaseTunerLayer):
    """Wraps a feed-forward module and adds the active adapters to its output.

    The subclasses settle what an adapter reads; see `PLACEMENTS`.

    Args:
        base_layer: The frozen module.
        site: Where it sits.
        adapters: The model's `TaskAdapters`, which hold the weights.
    """

    def __init__(self, base_layer: nn.Module, site: Site, adapters: TaskAdapters):
        super().__init__()
        self.base_layer = base_layer
        self.site = site
        self.in_features = self.out_features = site.width
        self._adapters = (adapters,)  # in a tuple: a reference, not a submodule

    def adapt(self, x: Tensor, output: Tensor) -> Tensor:
        """`output` plus the adapters of `x`, both `(tasks * batch, ..., width)`."""
        for weights, dropout in self._adapters[0].weights_at(self.site.name):
            output = output + apply_bottleneck(x, weights, dropout if self.training else 0.0).to(output.dtype)
        return output

    def delete_adapter(self, adapter_name: str) -> None:
        # PEFT asks the first layer it meets which adapter is active after a deletion; only TaskAdapters know.
        self._adapters[0].delete_adapter(adapter_name)
        self.set_adapter(self._adapters[0].active_adapters)

    def merge(self, *args, **kwargs) -> None:
        refuse_merge()


def refuse_merge() -> None:
    """Raises the ValueError of every attempt to merge."""
    raise ValueError(
        "A bottleneck adapter is not linear and cannot be merged into the frozen weights. Keep the adapter, or call "
        "`unload()` for the encoder without it."
    )


class ParallelSite(AdapterSite):
    """Adapter(x) added to base_layer(x), both reading the module's own input."""

    def forward(self, x: Tensor, *args, **kwargs) -> Tensor:
        output = self.base_layer(x, *args, **kwargs)
        return output if self.disable_adapters else self.adapt(x, output)


class SerialSite(AdapterSite):
    """Adapter applied to the module's output, with a skip connection (Houlsby et al., arXiv:1902.00751, Sec. 2)."""

    def forward(self, *args, **kwargs) -> Tensor:
        output = self.base_layer(*args, **kwargs)
        return output if self.disable_adapters else self.adapt(output, output)


class ResidualSite(AdapterSite):
    """The paper's placement: h + MLP(norm(h)) + Adapter(h), h being the residual stream in front of the norm.

    h never reaches the wrapped module, so `read_residual` takes it as the input of the block's norm; the norm and the
    module run one after the other within a block, in a recomputed forward pass too.
    """

    def read_residual(self, norm: nn.Module, args: tuple[Tensor, ...]) -> None:
        """Forward pre-hook of the block's norm."""
        self._residual = args[0]

    def forward(self, x: Tensor, *args, **kwargs) -> Tensor:
        residual = self.__dict__.pop("_residual")  # not kept: it would outlive the step
        output = self.base_layer(x, *args, **kwargs)
        return output if self.disable_adapters else self.adapt(residual, output)
