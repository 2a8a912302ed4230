# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The module that replaces an adapted module of the encoder."""

from collections.abc import Mapping
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from .router import Router
from .site import Site


Merged = dict[Tensor, Tensor]  # values by parameter


class AdapterLayer(nn.Module, BaseTunerLayer):
    """Wraps a frozen module. Subclasses define which tensors the adapters read and change."""

    obstacle = "compute what no parameter of the encoder can"  # the reason why adapters cannot be merged

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
        """Registers hooks on other modules of `model`. Is called once, after the layer was put into the model."""

    def detach(self) -> None:
        """Undoes `attach`."""

    def active_weights(self, x: Tensor | None = None) -> list[tuple[Any, float]]:
        """Returns weights and dropout probability of each active adapter, for the tasks of the current pass.

        Args:
            x: The tensor that the weights are applied to; they are moved to its device.

        Raises:
            ValueError: The pass has several tasks, and the rows of `x` are not those of its images.
        """
        if self.disable_adapters:
            return []
        route = self.router.current_route()
        weights = route.weights.get(self.site.name, [])
        rows = 0 if route.is_shared else len(route.tasks) * route.images
        if x is not None and weights and len(route.tasks) > 1 and rows and x.shape[0] % rows:
            raise ValueError(
                f"'{self.site.name}' is called with a tensor of shape {tuple(x.shape)}, whose rows do not belong to "
                f"the {route.images} images of {len(route.tasks)} tasks, so they cannot be split by task. Set "
                "`tasks_per_pass=1` in the config, or name other modules in `target_modules`."
            )
        return [(on_device_of(x, w), dropout if self.training else 0.0) for w, dropout in weights]

    def check_width(self, x: Tensor) -> None:
        """Raises ValueError unless the last axis of `x` has the channels that the adapters of the site read.

        A map that is as wide as its channels does not tell which axis has them. A module with convolutions reads them
        from the second one.
        """
        channels_first = x.ndim == 4 and x.shape[1] == self.site.width and self._has_convolution()
        if channels_first or x.shape[-1:] != (self.site.width,):
            raise ValueError(
                f"The adapters of '{self.site.name}' read a tensor of shape {tuple(x.shape)}, and they need its "
                f"{self.site.width} channels on the last axis. Name modules with the channels last in "
                "`target_modules`, such as linear layers."
            )

    def _has_convolution(self) -> bool:
        return any(isinstance(module, nn.Conv2d) for module in self.base_layer.modules())

    def delete_adapter(self, adapter_name: str) -> None:
        # After a deletion PEFT asks the first layer it finds which adapter is active; only the router knows.
        self.router.delete_adapter(adapter_name)
        self.set_adapter(self.router.active_adapters)

    def merge(self, *args: Any, **kwargs: Any) -> None:
        raise ValueError(
            "One encoder cannot carry the merged adapters of several tasks. `merge_and_unload(task=...)` makes it the "
            "encoder of one task, if the method can be merged."
        )

    def merged_parameters(self, weights: list[tuple[Any, float]], merged: Mapping[Tensor, Tensor]) -> Merged:
        """Merges the weights of one task into parameters of the model.

        Args:
            weights: Weights and dropout of each adapter.
            merged: New values of the parameters before this layer that changed.

        Returns:
            New values by parameter. A new value may have a larger shape.

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
    """Moves the weights to the device of `x`: generator and layer may be on different devices."""
    return weights if x is None else tree_map(lambda w: w.to(x.device) if isinstance(w, Tensor) else w, weights)


def base_layer_of(module: nn.Module) -> nn.Module:
    """Returns the frozen module inside an `AdapterLayer`, and any other module as it is."""
    return module.base_layer if isinstance(module, AdapterLayer) else module
