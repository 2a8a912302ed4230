# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Runs the calls of an adapted encoder: chooses their tasks, passes and weights."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, update_wrapper
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from ..config import MultiTaskConfig
from ..models.blocks import has_image_rows
from ..models.onload import home_of
from ..models.stages import StageEncoder
from .batches import cut, first_tensor
from .checkpoint import bind_checkpoints, unbind_checkpoints
from .passes import choose_tasks_per_pass, run_pass
from .route import THREAD, OnRoute, Route, record_route
from .weights import AdapterRecord, KeptWeights, SiteWeights, generate, resolve_tasks


# The name of the router in the adapted model, and the end of the name of its container, which begins with the prefix
# of the method. Both are part of each saved key. SHARED must not contain the prefix of a method.
SHARED = "task_adapters"
GENERATORS = "generators"


class Router(nn.Module, BaseTunerLayer):
    """Holds the generators of all adapters of a model, and runs the encoder with the weights they make.

    A model has one router, beside its encoder, so that the names of saved parameters do not depend on the paths of
    layers. `run` replaces the `forward` of the encoder.

    Args:
        container: Name of the dictionary with one generator per adapter. PEFT finds the parameters by it.
        shares_pass: One pass of the encoder serves all tasks.
    """

    weight = bias = None  # type: ignore[assignment]  # PEFT would look for a base layer, and there is none

    def __init__(self, container: str, shares_pass: bool):
        super().__init__()
        self.shares_pass = shares_pass
        setattr(self, container, nn.ModuleDict())
        self.adapter_layer_names = (container,)
        self.in_features = self.out_features = None
        self.records: dict[str, AdapterRecord] = {}
        self._encoder: tuple[nn.Module, ...] = ()  # in a tuple: a reference, not a submodule
        self._own_names: list[str] = []  # `task` or `tasks`, if the encoder's own `forward` takes it
        self._has_image_rows = False

    @property
    def generators(self) -> nn.ModuleDict:
        return getattr(self, self.adapter_layer_names[0])

    def add(self, name: str, generator: nn.Module, record: AdapterRecord) -> None:
        self.generators[name] = generator
        self.records[name] = record

    def has_adapter(self, name: str, config: MultiTaskConfig) -> bool:
        """Tells whether the adapter of this name has this `config`. Any other is replaced, as in PEFT's LoRA."""
        return name in self.records and self.records[name].config is config

    def delete_adapter(self, adapter_name: str) -> None:
        super().delete_adapter(adapter_name)
        self.records.pop(adapter_name, None)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        # PEFT calls this after loading onto meta tensors. Without a base layer, the encoder tells the device.
        if adapter_name in self.generators:
            self.generators[adapter_name].to(device or home_of(self._encoder[0])[0])

    def forward(self, x: Any) -> Any:
        """Returns `x`: in an adapted `nn.Sequential` the router is the last module."""
        return x

    def attach(self, encoder: nn.Module) -> None:
        """Replaces the encoder's `forward` by `run`, inside of the `forward` that accelerate may have set."""
        place = "_old_forward" if "_old_forward" in vars(encoder) else "forward"
        forward = getattr(encoder, place)
        is_view = isinstance(encoder, StageEncoder)  # its `forward` takes `tasks` for the model without adapters
        named = () if is_view else inspect.signature(forward).parameters
        self._own_names = [name for name in ("task", "tasks") if name in named]
        self._has_image_rows = is_view or has_image_rows(encoder)
        self._encoder = (encoder,)
        setattr(encoder, place, self._routed(encoder, forward))
        encoder._replicate_for_data_parallel = partial(self._replicate, encoder)  # type: ignore[method-assign]

    def detach(self) -> None:
        """Restores the encoder's own methods."""
        [encoder] = self._encoder
        unbind_checkpoints(encoder)
        for place, method in list(vars(encoder).items()):
            if isinstance(method, partial) and method.func in (self.run, self._replicate):
                delattr(encoder, place)
                forward = method.args[-1]
                if method.func == self.run and getattr(encoder, place, None) != forward:  # not the method of the class
                    setattr(encoder, place, forward)
        self.records.clear()  # a caller that kept `run` now runs the plain encoder

    def _routed(self, encoder: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        return update_wrapper(partial(self.run, encoder, forward), forward)  # with the signature of `forward`

    def _replicate(self, encoder: nn.Module) -> nn.Module:
        """Makes a replica of the encoder for `nn.DataParallel`, which runs its own modules."""
        replica: nn.Module = type(encoder)._replicate_for_data_parallel(encoder)
        replica.forward = self._routed(replica, partial(type(encoder).forward, replica))
        return replica

    def run(self, encoder: nn.Module, forward: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Runs one call of the encoder, in as many passes as its tasks need.

        Args:
            encoder: The encoder.
            forward: The encoder's own `forward`.
            *args: Positional arguments of the call.
            **kwargs: Keyword arguments of the call, with `task` or `tasks` for its tasks.

        Returns:
            The output of `forward` for the task, or with `tasks` a dictionary of outputs by task.
        """
        is_plain = self.disable_adapters and not kwargs.keys() & {"task", "tasks"}
        if is_plain or not self.active_adapters or not self.records:  # the frozen encoder runs, without a task
            with OnRoute(Route(self, (), {}, True, 0, {}, {})):
                return forward(*args, **kwargs)
        asked = {name: kwargs.pop(name, None) for name in ("task", "tasks")}
        tasks = resolve_tasks(self.tasks_of(self.active_adapters), **asked)
        bind_checkpoints(encoder, record_route)
        outputs: list[Any] = []
        for route in self._routes(tasks, first_tensor((args, kwargs))):
            own_tasks = {"task": route.tasks[0], "tasks": list(route.tasks)}
            if asked != {"task": None, "tasks": None}:
                kwargs |= {name: own_tasks[name] for name in self._own_names}
            with OnRoute(route):
                outputs += run_pass(forward, args, kwargs, route)
        return outputs[0] if asked["tasks"] is None else dict(zip(tasks, outputs, strict=True))

    def _routes(self, tasks: tuple[str, ...], pixel_values: Tensor | None) -> list[Route]:
        """Splits a call into passes of the encoder."""
        weights = {} if self.disable_adapters else self._generate(tasks, self.active_adapters)
        is_shared = self.shares_pass or self.disable_adapters  # the frozen encoder computes the same for all tasks
        if self._own_names:
            size = 1  # the encoder is given the one task of its pass
        elif is_shared:
            size = len(tasks)
        elif pixel_values is None or not self._has_image_rows:
            size = 1  # it is unknown which rows of the outputs belong to which task
        else:
            size = self._tasks_per_pass(pixel_values, len(tasks))
        groups = [tasks[start : start + size] for start in range(0, len(tasks), size)]
        # Weights with another leading axis are shared by all tasks.
        parts = cut(weights, [len(group) for group in groups], len(tasks)) if len(groups) > 1 else [weights]
        images = 0 if pixel_values is None else pixel_values.shape[0]
        return [Route(self, group, part, is_shared, images, {}, {}) for group, part in zip(groups, parts, strict=True)]

    def _tasks_per_pass(self, pixel_values: Tensor, tasks: int) -> int:
        sizes = (self.records[name].config.tasks_per_pass for name in self.active_adapters)
        asked = [size for size in sizes if size is not None]
        return min(asked) if asked else choose_tasks_per_pass(pixel_values, tasks)

    @property
    def route(self) -> Route | None:
        """The current pass of this model in the running thread; `None` outside of a pass."""
        route = THREAD.route
        return route if route is not None and route.router is self else None

    def current_route(self) -> Route:
        """Returns the current pass of the running thread.

        Raises:
            RuntimeError: The thread runs no pass of this model.
        """
        if self.route is None:
            raise RuntimeError(
                "An adapted layer was called outside of a forward pass of the adapted model, so its task is unknown. "
                "Call the whole model, with `task=` or `tasks=`. If this is a backward pass, the layer is recomputed "
                "by a checkpointing that does not know the task, such as timm's `set_grad_checkpointing`: switch it "
                "off. Adapters work with `gradient_checkpointing_enable` of transformers' own encoders."
            )
        return self.route

    def weights_of(self, adapter_names: list[str], **asked: Any) -> SiteWeights:
        """Returns weights and dropout of adapters by site, for `task=` or `tasks=`; raises the errors of a call."""
        return self._generate(resolve_tasks(self.tasks_of(adapter_names), **asked), adapter_names)

    @contextmanager
    def generate_once(self) -> Iterator[None]:
        """Generates the weights once for all calls in this block; see `TaskVerbs.generate_once`."""
        names = self.active_adapters
        tasks = self.tasks_of(names) if names and not self.shares_pass else []
        if not tasks:
            yield
            return
        kept = KeptWeights([self.generators[name] for name in names], tasks, self._generate(tuple(tasks), names))
        before, THREAD.kept = THREAD.kept, (kept, *THREAD.kept)
        try:
            yield
            kept.backward()
        finally:
            THREAD.kept = before

    def tasks_of(self, adapter_names: list[str]) -> list[str]:
        """Returns the tasks that all these adapters have, in the order of the first adapter."""
        first, *others = (self.records[name].config.tasks for name in adapter_names if name in self.records)
        return [name for name in first if all(name in tasks for tasks in others)]

    def _generate(self, tasks: tuple[str, ...], adapter_names: list[str]) -> SiteWeights:
        generators = [self.generators[name] for name in adapter_names]
        for kept in THREAD.kept:
            if kept.serves(generators):
                return kept.of(tasks)
        records = [self.records[name] for name in adapter_names]
        return generate(list(zip(records, generators, strict=True)), tasks)


def router_of(model: nn.Module) -> Router | None:
    """Returns the router of an adapted model, or `None` if there are no adapters."""
    return getattr(model, SHARED, None)
