# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""A module of the encoder that carries adapters, and the wrapper that stands in its place."""

from dataclasses import dataclass
from typing import Any, Protocol, TypeGuard

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from .routing import TaskAdapters


@dataclass(frozen=True)
class Site:
    """A module of the encoder that carries adapters. What a layer has to know besides is in its subclasses.

    Args:
        name: Path of the module in the model.
        layer: The `AdapterSite` that wraps it.
        width: Channels it works on; of encoder parameters that train, the last axis of the first.
        block: Index of the transformer block it is part of, whose sites may share parameters; `None` outside of them.
    """

    name: str
    layer: "type[AdapterSite]"
    width: int
    block: int | None


class AdapterSite(nn.Module, BaseTunerLayer):
    """Wraps a frozen module. The subclasses settle what the adapters read and what they change.

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

    def attach(self, model: nn.Module) -> None:
        """Called once the site stands in `model`, for what it has to see of other modules."""

    def detach(self) -> None:
        """Takes back what `attach` did."""

    def active_weights(self) -> list[tuple[Any, float]]:
        """Weights and dropout probability of each active adapter, for the tasks of the present pass."""
        weights = self._adapters[0].weights_at(self.site.name)
        return weights if self.training else [(site_weights, 0.0) for site_weights, _ in weights]

    def delete_adapter(self, adapter_name: str) -> None:
        # PEFT asks the first layer it meets which adapter is active after a deletion; only TaskAdapters know.
        self._adapters[0].delete_adapter(adapter_name)
        self.set_adapter(self._adapters[0].active_adapters)

    def merge(self, *args: Any, **kwargs: Any) -> None:
        raise ValueError(
            "One encoder cannot carry the merged adapters of several tasks. `merge_and_unload(task=...)` makes it the "
            "encoder of one task, where the method can be merged."
        )

    def merged_parameters(self, weights: list[tuple[Any, float]]) -> dict[str, Tensor]:
        """Parameters of the frozen module, by name, into which the weights of one task are merged.

        Raises:
            ValueError: The adapters cannot be merged.
        """
        raise ValueError(
            f"Adapters of '{self.site.name}' compute what no parameter of the encoder can, and cannot be merged into "
            "it. Keep the adapter, or call `unload()` for the encoder without it."
        )


class Linear(Protocol):
    """A linear layer of any class."""

    in_features: int
    out_features: int


def is_linear(module: nn.Module) -> TypeGuard[Linear]:
    return hasattr(module, "in_features") and hasattr(module, "out_features")


def base_of(module: nn.Module) -> nn.Module:
    """The frozen module, whether it is wrapped or not."""
    return module.base_layer if isinstance(module, AdapterSite) else module
