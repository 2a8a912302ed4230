# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The module that stands in the place of one that carries adapters."""

from collections.abc import Mapping
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from .router import Router
from .site import Site


Merged = dict[Tensor, Tensor]  # values by parameter


class AdapterLayer(nn.Module, BaseTunerLayer):
    """Wraps a frozen module. The subclasses say what the adapters read and what they change.

    Args:
        base_layer: The frozen module.
        site: Where it sits.
        router: The model's `Router`, which has the weights.
    """

    obstacle = "compute what no parameter of the encoder can"  # to merging them

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

    def merged_parameters(self, weights: list[tuple[Any, float]], merged: Mapping[Tensor, Tensor]) -> Merged:
        """The weights of one task merged into parameters of the model.

        Args:
            weights: Weights and dropout of each adapter.
            merged: What became of the parameters in front of this layer, of those that changed.

        Returns:
            By parameter its new value, which may be larger.

        Raises:
            ValueError: The adapters cannot be merged.
        """
        if not weights:
            return {}
        raise ValueError(
            f"The adapters of '{self.site.name}' cannot be merged into the encoder: they {self.obstacle}. Keep them, "
            "or call `unload()` for the encoder without them."
        )


def on_device_of(x: Tensor | None, weights: Any) -> Any:
    """The weights on the device of `x`, where generator and layer may lie on different ones."""
    return weights if x is None else tree_map(lambda w: w.to(x.device) if isinstance(w, Tensor) else w, weights)


def base_of(module: nn.Module) -> nn.Module:
    """The frozen module, whether it is wrapped or not."""
    return module.base_layer if isinstance(module, AdapterLayer) else module
