# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The layer of Adapter, which can run a baked adapter as part of the feed-forward module beside it."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..tuner.batches import join
from ..tuner.layer import Merged
from ..tuner.merging import set_parameters
from ..tuner.route import Route
from .bottleneck import BottleneckWeights, ResidualLayer
from .parameters import split_call
from .widening import widen


class Copies:
    """A cache of copies of a feed-forward module by task, each with an adapter merged into it.

    The cache is valid until a parameter changes. It is not part of the model: copies and checkpoints of the model
    leave it out. PyTorch does not count a change through `parameter.data`; the cache notices it only if the parameter
    moves to other memory. Nor does it count the steps of fused optimisers, so there are copies of frozen parameters
    alone.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Deletes all copies."""
        self.kept: tuple[list[tuple[Tensor, int]], dict[str, nn.Module | None]] = [], {}

    def __reduce__(self) -> tuple[type["Copies"], tuple[()]]:
        return Copies, ()

    def made_of(self, parameters: Sequence[Tensor]) -> dict[str, nn.Module | None]:
        """Returns the copies made from the present values of `parameters`; the caller may add further copies."""
        before, copies = self.kept
        is_same = len(before) == len(parameters) and all(
            old.data_ptr() == new.data_ptr() and version == new._version and old.dtype == new.dtype
            for (old, version), new in zip(before, parameters, strict=True)
        )
        if not is_same:
            copies = {}
            # Holding the memory keeps other tensors from being allocated at the same address.
            self.kept = [(parameter.detach(), parameter._version) for parameter in parameters], copies
        return copies


class BakedLayer(ResidualLayer):
    """A `ResidualLayer` that runs a baked adapter at inference as part of the feed-forward module of each task."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self._copies = Copies()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        modules = [] if self.disable_adapters else self._widened(self.router.current_route())
        if not modules:
            return super().forward(*args, **kwargs)
        del self.router.current_route().streams[self.site.name]
        calls = split_call((args, kwargs), len(modules))
        return join([module(*own, **named) for module, (own, named) in zip(modules, calls, strict=True)])

    def _widened(self, route: Route) -> list[nn.Module]:
        """Returns a feed-forward module for each task of the pass; empty if the adapter runs beside the module."""
        weights = route.weights.get(self.site.name, [])
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling() or len(weights) != 1:
            return []
        if getattr(self, "_is_replica", False):  # of `nn.DataParallel`, whose modules have no registered parameters
            return []
        records = self.router.records
        [name] = [name for name in self.router.active_adapters if self.site in records[name].sites]
        record, generators = records[name], cast(nn.ModuleList, self.router.generators[name])
        if not cast(Any, record.config).bottlenecks:  # not baked
            return []
        modules = (generators[record.sites.index(self.site)], self.base_layer, *self._norm)
        parameters = [parameter for module in modules for parameter in module.parameters()]
        if any(p.is_meta or p.is_inference() or type(p.data) is not Tensor for p in parameters):
            return []
        if any(parameter.requires_grad for parameter in parameters):
            self._copies.clear()
            return []
        copies = self._copies.made_of(parameters)
        [(w, _)] = weights
        for index, task in enumerate(route.tasks):
            if task not in copies:
                copies[task] = self._with_adapter(BottleneckWeights(*(tensor[index] for tensor in w)))
        widened = [module for task in route.tasks if (module := copies[task]) is not None]
        return widened if len(widened) == len(route.tasks) else []

    def _with_adapter(self, adapter: BottleneckWeights) -> nn.Module | None:
        """Returns a copy of the feed-forward module with the adapter in it, or `None` if it cannot be merged."""
        if self.site.widens is None:
            return None
        try:
            values = widen(self.base_layer, self.site.widens, self._norm[0], [adapter], self.site.name)
        except ValueError:
            return None
        copy = deepcopy(self.base_layer)
        pairs = zip(self.base_layer.parameters(), copy.parameters(), strict=True)
        own: Merged = {new: values[old] for old, new in pairs if old in values}
        for module in copy.modules():
            set_parameters(module, own)
        return copy
