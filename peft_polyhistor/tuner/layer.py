# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The module that stands in the place of one that carries adapters."""

from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from .router import Router
from .site import Site


class AdapterLayer(nn.Module, BaseTunerLayer):
    """Wraps a frozen module. The subclasses say what the adapters read and what they change.

    Args:
        base_layer: The frozen module.
        site: Where it sits.
        router: The model's `Router`, which has the weights.
    """

    def __init__(self, base_layer: nn.Module, site: Site, router: Router):
        super().__init__()
        self.base_layer = base_layer
        self.site = site
        self.in_features = self.out_features = site.width
        self._router = (router,)  # in a tuple: a reference, not a submodule

    @property
    def router(self) -> Router:
        return self._router[0]

    def attach(self, model: nn.Module) -> None:
        """Called once the layer stands in `model`, for what it has to see of other modules."""

    def detach(self) -> None:
        """Takes back what `attach` did."""

    def active_weights(self, x: Tensor | None = None) -> list[tuple[Any, float]]:
        """Weights and dropout probability of each active adapter, for the tasks of the present pass.

        Args:
            x: The tensor that they are applied to; the weights come to its device.
        """
        if self.disable_adapters:
            return []
        weights = self.router.present_route().weights.get(self.site.name, [])
        return [(on_device_of(x, w), dropout if self.training else 0.0) for w, dropout in weights]

    def delete_adapter(self, adapter_name: str) -> None:
        # PEFT asks the first layer it meets which adapter is active after a deletion; only the router knows.
        self.router.delete_adapter(adapter_name)
        self.set_adapter(self.router.active_adapters)

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


def on_device_of(x: Tensor | None, weights: Any) -> Any:
    """The weights on the device of `x`, where generator and layer may lie on different ones."""
    return weights if x is None else tree_map(lambda w: w.to(x.device) if isinstance(w, Tensor) else w, weights)


def base_of(module: nn.Module) -> nn.Module:
    """The frozen module, whether it is wrapped or not."""
    return module.base_layer if isinstance(module, AdapterLayer) else module
