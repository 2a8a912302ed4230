# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The bottleneck adapter: its weights, its equation, a layer for each placement, and the tuner of its methods."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import SUBLAYERS, BottleneckConfig
from ..models.blocks import Block, FeedForward
from ..models.multitask import MultiTaskDenseModel
from ..registry import METHODS
from ..tuner.batches import first_tensor
from ..tuner.layer import AdapterLayer, Merged, base_layer_of
from ..tuner.router import router_of
from ..tuner.site import Site, is_linear
from ..tuner.tuner import AdapterTuner
from .widening import widen


EPS = 1e-5  # default of LayerNorm in PyTorch


class BottleneckWeights(NamedTuple):
    """Weights of one site for several tasks."""

    down: Tensor  # (tasks, bottleneck, width)
    down_bias: Tensor  # (tasks, bottleneck)
    up: Tensor  # (tasks, width, bottleneck)
    up_bias: Tensor  # (tasks, width)
    norm_weight: Tensor  # (tasks, width)
    norm_bias: Tensor  # (tasks, width)


def apply_bottleneck(x: Tensor, w: BottleneckWeights, dropout: float = 0.0, eps: float = EPS) -> Tensor:
    """Computes up(gelu(down(norm(x)))) with the weights of all tasks at once.

    Args:
        x: `(tasks * batch, ..., width)`, all images of the first task first.
        w: Weights of these tasks.
        dropout: Dropout probability of the activations in the bottleneck.
        eps: Constant that the norm adds to the variance.

    Returns:
        A tensor of the shape and dtype of `x`.
    """
    return from_bottleneck(to_bottleneck(x, w, dropout, eps), w).view_as(x).to(x.dtype)


def to_bottleneck(x: Tensor, w: BottleneckWeights, dropout: float, eps: float) -> Tensor:
    """Computes gelu(down(norm(x))); `(tasks * batch, ..., width)` to `(tasks, tokens, bottleneck)`."""
    tasks, _, width = w.down.shape
    tokens = x.to(w.down.dtype).reshape(tasks, -1, width)
    # Folding the norm's weight and bias into the projection saves one pass over the tokens.
    down = w.down * w.norm_weight[:, None]
    down_bias = torch.baddbmm(w.down_bias[:, None], w.norm_bias[:, None], w.down.mT)
    hidden = F.gelu(torch.baddbmm(down_bias, F.layer_norm(tokens, (width,), eps=eps), down.mT))
    return F.dropout(hidden, dropout) if dropout else hidden


def from_bottleneck(hidden: Tensor, w: BottleneckWeights) -> Tensor:
    """Computes up(hidden); `(tasks, tokens, bottleneck)` to `(tasks, tokens, width)`."""
    return torch.baddbmm(w.up_bias[:, None], hidden, w.up.mT)


class BottleneckLayer(AdapterLayer):
    """Adds the active adapters to the output of the module. Subclasses define the input of the adapters."""

    eps = EPS  # the constant of the adapters' norm

    def adapted(self, x: Tensor | None, output: Any) -> Any:
        """Adds the adapters of `x` to the output of the module, or to its first item if the output is a tuple."""
        weights = self.active_weights(x)
        if not weights:
            return output
        if x is None:
            raise ValueError(
                f"'{self.site.name}' is called without a tensor, so its adapters have no input. Name a module around "
                "it in `target_modules`."
            )
        self.check_width(x)
        if isinstance(output, tuple):
            return (self.adapt(x, output[0], weights), *output[1:])
        return self.adapt(x, output, weights)

    def adapt(self, x: Tensor, output: Tensor, weights: list[tuple[Any, float]]) -> Tensor:
        """Adds the adapters of `x` to `output`, both `(tasks * batch, ..., width)`."""
        for w, dropout in weights:
            output = output + apply_bottleneck(x, w, dropout, self.eps).to(output.dtype)
        return output


class ParallelLayer(BottleneckLayer):
    """Computes base_layer(x) + adapter(x) for the input x of the module."""

    obstacle = "are parallel to a module that is no feed-forward block of a known encoder"

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.adapted(first_tensor((args, kwargs)), self.base_layer(*args, **kwargs))


class SerialLayer(BottleneckLayer):
    """Applies the adapter to the output of the module, with a skip connection (arXiv:1902.00751, Sec. 2)."""

    obstacle = "read the output of the module, after all of its weights"

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = self.base_layer(*args, **kwargs)
        return self.adapted(output[0] if isinstance(output, tuple) else output, output)


@dataclass(frozen=True)
class ResidualSite(Site):
    """The site of a `ResidualLayer`."""

    stream: str  # path of the module whose first argument is the residual stream before the sublayer
    widens: FeedForward | None  # the feed-forward module that adapters can be merged into


class ResidualLayer(BottleneckLayer):
    """Polyhistor's placement: h + MLP(norm(h)) + Adapter(h), with the residual stream h before the norm.

    The wrapped module does not receive h. The hook `keep_stream` stores the input of the first module of the sublayer,
    usually its norm, in the current pass, and this layer reads it from there. Both run within the same block, also in
    a recomputed forward pass.
    """

    site: ResidualSite
    obstacle = (
        "are parallel to attention, or to a feed-forward block whose norm is behind it, as in Swin V2, and neither "
        "computes the GELU of a normalised residual stream"
    )

    def attach(self, model: nn.Module) -> None:
        stream = model.get_submodule(self.site.stream)
        self._hook = stream.register_forward_pre_hook(self.keep_stream)
        self._norm: tuple[Any] = (base_layer_of(stream),)  # in a tuple: a reference, not a submodule
        self.eps = getattr(self._norm[0], "eps", EPS)  # same constant as the norm of the sublayer

    def detach(self) -> None:
        self._hook.remove()

    def keep_stream(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        """Stores the residual stream; a forward pre-hook of the module that reads it."""
        if self.router.route is not None and not self.disable_adapters:
            self.router.route.streams[self.site.name] = args[0]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = self.base_layer(*args, **kwargs)
        if self.disable_adapters:
            return output
        return self.adapted(self.router.current_route().streams.pop(self.site.name), output)

    def merged_parameters(self, weights: list[tuple[Any, float]], merged: Mapping[Tensor, Tensor]) -> Merged:
        if self.site.widens is None or not weights:
            return super().merged_parameters(weights, merged)
        adapters = [BottleneckWeights(*(tensor[0] for tensor in w)) for w, _ in weights]
        return widen(self.base_layer, self.site.widens, self._norm[0], adapters, self.site.name, merged)


class BottleneckTuner(AdapterTuner[BottleneckConfig]):
    """PEFT tuner of the bottleneck methods. A subclass for a method sets the `prefix` of its parameters."""

    residual_layer: type[ResidualLayer] = ResidualLayer

    def known_sites(self, model: nn.Module, blocks: list[Block], config: BottleneckConfig) -> list[Site]:
        sublayers = config.sublayers if config.target_modules is None else SUBLAYERS
        return [
            self._site_in(block, sublayer, index, config)
            for index, block in enumerate(blocks)
            for sublayer in sublayers
        ]

    def _site_in(self, block: Block, sublayer: str, index: int, config: BottleneckConfig) -> Site:
        module, stream = getattr(block, sublayer)
        if config.placement == "serial":
            return Site(module, SerialLayer, block.width, index)
        widens = block.widens if sublayer == "feed_forward" else None
        return ResidualSite(module, self.residual_layer, block.width, index, stream, widens)

    @torch.no_grad()
    def bake(self, tasks: Sequence[str] | None = None, adapter_name: str | None = None) -> PeftModel:
        """Returns a frozen copy of the model in eval mode, whose plain adapters (MTL_ADAPTER) store generated weights.

        Inference generates no weights any more. Adapters that can be merged run as part of their feed-forward module,
        with one copy of the module per task, as long as their parameters are frozen. The outputs are the same up to
        rounding. Calls of a copy with one task need not name the task.

        Args:
            tasks: The tasks to keep; `None` for all. A dense model keeps their decoders.
            adapter_name: The adapter; `None` for the active adapter.

        Raises:
            ValueError: The adapter does not have a task, or its method has no adapter per task.
        """
        adapter_name = self._one_adapter(adapter_name)
        config = self.peft_config[adapter_name]
        if self.router is None or config.shares_pass:
            raise ValueError(
                f"{config.method} has no adapters per task that could be baked. Use the adapter without `bake`."
            )
        tasks = config.tasks if tasks is None else tasks
        weights = self.router.weights_of([adapter_name], tasks=tasks)
        baked = [site_weights for [(site_weights, _)] in weights.values()]
        copy = deepcopy(self)
        copy.set_adapter(adapter_name)
        base = copy.unload()
        if isinstance(base, MultiTaskDenseModel):
            base.keep_tasks(tasks)
        settings = {name: getattr(config, name) for name in COMMON_SETTINGS}
        settings |= {"tasks": list(tasks), "bottlenecks": [site_weights.down.shape[1] for site_weights in baked]}
        settings["inference_mode"] = True
        model = PeftModel(base, METHODS["adapter"](**settings), adapter_name).eval()
        router: Any = router_of(base)
        for site, site_weights in zip(router.generators[adapter_name], baked, strict=True):
            site.assign(site_weights)
        return model

    def site_at(self, module: nn.Module, name: str, index: int, config: BottleneckConfig) -> Site:
        layer = SerialLayer if config.placement == "serial" else ParallelLayer
        return Site(name, layer, width_of(module, name), index)


# The fields of all bottleneck methods, and those of PEFT that name the base model.
COMMON_SETTINGS = {field.name for field in fields(BottleneckConfig)} - {field.name for field in fields(PeftConfig)}
COMMON_SETTINGS |= {"base_model_name_or_path", "revision"}


def width_of(module: nn.Module, name: str) -> int:
    """Returns the channels of the input and output of `module`, read from its first and last linear layer.

    Raises:
        ValueError: The module has no linear layer, or input and output differ.
    """
    linears = [layer for layer in module.modules() if is_linear(layer)]
    if not linears or linears[0].in_features != linears[-1].out_features:
        found = f"{linears[0].in_features} to {linears[-1].out_features}" if linears else "no linear layer"
        raise ValueError(
            f"'{name}' ({type(module).__name__}, {found}) cannot carry an adapter, which reads and adds the same "
            "number of channels on the last axis. Name modules like a feed-forward block or a square linear layer."
        )
    return linears[0].in_features
