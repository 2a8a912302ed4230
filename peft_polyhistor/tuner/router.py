# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""A call of the adapted encoder: which tasks it serves, in which passes, with which weights."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from .batches import cut, first_tensor, repeat_batch, split_batch
from .checkpoint import bind_checkpoints, unbind_checkpoints
from .passes import choose_tasks_per_pass
from .route import PRESENT, Following, Route, follow_again
from .weights import AdapterRecord, KeptWeights, SiteWeights, generate, resolve_tasks


# Names of the Router in the adapted model, and behind the method's prefix of its container. Both are part of every
# saved key; the first must not contain a method's prefix.
SHARED = "task_adapters"
GENERATORS = "generators"


class Router(nn.Module, BaseTunerLayer):
    """Holds the generators of all adapters of a model, and runs the encoder with the weights they make.

    It stands in the model once, beside the encoder, so that saved parameters are named by role and not by the path of
    a layer. `run` takes the place of the encoder's `forward`.

    Args:
        container: Name of the dictionary that holds one generator per adapter; PEFT finds parameters by it.
        shares_pass: One pass of the encoder serves all tasks.
    """

    weight = bias = None  # type: ignore[assignment]  # PEFT's own look for a base layer, which there is not

    def __init__(self, container: str, shares_pass: bool):
        super().__init__()
        self.shares_pass = shares_pass
        setattr(self, container, nn.ModuleDict())
        self.adapter_layer_names = (container,)
        self.in_features = self.out_features = None
        self.records: dict[str, AdapterRecord] = {}
        self._encoder: tuple[nn.Module, ...] = ()  # in a tuple: a reference, not a submodule
        self._own_names: list[str] = []  # `task` or `tasks`, where the encoder's own `forward` takes it
        self._has_image_rows = False

    @property
    def generators(self) -> nn.ModuleDict:
        return getattr(self, self.adapter_layer_names[0])

    def add(self, name: str, generator: nn.Module, record: AdapterRecord) -> None:
        self.generators[name] = generator
        self.records[name] = record

    def has_adapter(self, name: str, config: MultiTaskConfig) -> bool:
        """Whether the adapter of this name is the one of `config`. Another one gives way, as in PEFT's LoRA."""
        return name in self.records and self.records[name].config is config

    def delete_adapter(self, adapter_name: str) -> None:
        super().delete_adapter(adapter_name)
        self.records.pop(adapter_name, None)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        # PEFT calls this after loading onto meta tensors. There is no base layer here: the encoder says the device.
        if adapter_name in self.generators:
            self.generators[adapter_name].to(device or home_of(self._encoder[0])[0])

    def forward(self, x: Any) -> Any:
        """Identity: where the adapted model is an `nn.Sequential`, this is its last module."""
        return x

    def attach(self, encoder: nn.Module) -> None:
        """Puts `run` in the place of the encoder's `forward`, behind what accelerate has put there."""
        place = "_old_forward" if "_old_forward" in vars(encoder) else "forward"
        forward = getattr(encoder, place)
        is_view = isinstance(encoder, StageEncoder)  # whose `forward` takes `tasks` for the case without adapters
        named = () if is_view else inspect.signature(forward).parameters
        self._own_names = [name for name in ("task", "tasks") if name in named]
        self._has_image_rows = is_view or has_image_rows(encoder)
        self._encoder = (encoder,)
        setattr(encoder, place, self._routed(encoder, forward))
        encoder._replicate_for_data_parallel = partial(self._replicate, encoder)  # type: ignore[method-assign]

    def detach(self) -> None:
        """Gives the encoder its own methods back."""
        [encoder] = self._encoder
        unbind_checkpoints(encoder)
        for place, method in list(vars(encoder).items()):
            if isinstance(method, partial) and method.func in (self.run, self._replicate):
                delattr(encoder, place)
                forward = method.args[-1]
                if method.func == self.run and getattr(encoder, place, None) != forward:  # not that of the class
                    setattr(encoder, place, forward)
        self.records.clear()  # whoever kept `run` runs the plain encoder from now on

    def _routed(self, encoder: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        return update_wrapper(partial(self.run, encoder, forward), forward)  # with the signature of `forward`

    def _replicate(self, encoder: nn.Module) -> nn.Module:
        """A replica of the encoder, as `nn.DataParallel` makes them, which runs its own modules."""
        replica: nn.Module = type(encoder)._replicate_for_data_parallel(encoder)
        replica.forward = self._routed(replica, partial(type(encoder).forward, replica))
        return replica

    def run(self, encoder: nn.Module, forward: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """One call of the encoder, in as many passes as its tasks take.

        Args:
            encoder: The encoder.
            forward: Its own forward pass.
            *args: The arguments of the call.
            **kwargs: Its keywords, among them `task` or `tasks`, which name the tasks of the call.

        Returns:
            What `forward` returns for the task; for `tasks` a dictionary of what it returns by task.
        """
        if not self.active_adapters or not self.records:  # all deleted: the frozen encoder on its own
            with Following(Route(self, (), {}, True, {}, {})):
                return forward(*args, **kwargs)
        asked = {name: kwargs.pop(name, None) for name in ("task", "tasks")}
        tasks = resolve_tasks(self._tasks_of(self.active_adapters), **asked)
        bind_checkpoints(encoder, follow_again)
        outputs: list[Any] = []
        for route in self._routes(tasks, first_tensor((args, kwargs))):
            own_tasks = {"task": route.tasks[0], "tasks": list(route.tasks)}
            if asked != {"task": None, "tasks": None}:
                kwargs |= {name: own_tasks[name] for name in self._own_names}
            with Following(route):
                outputs += run_pass(forward, args, kwargs, route)
        return outputs[0] if asked["tasks"] is None else dict(zip(tasks, outputs, strict=True))

    def _routes(self, tasks: tuple[str, ...], pixel_values: Tensor | None) -> list[Route]:
        """The passes of the encoder that a call is made of."""
        weights = {} if self.disable_adapters else self._generate(tasks, self.active_adapters)
        is_shared = self.shares_pass or self.disable_adapters  # the frozen encoder is the same for all tasks
        if self._own_names:
            size = 1  # the encoder is told the one task of its pass
        elif is_shared:
            size = len(tasks)
        elif pixel_values is None or not self._has_image_rows:
            size = 1  # nothing tells which rows of its outputs belong to which task
        else:
            size = self._tasks_per_pass(pixel_values, len(tasks))
        groups = [tasks[start : start + size] for start in range(0, len(tasks), size)]
        # Weights with another leading axis are those of all tasks.
        parts = cut(weights, [len(group) for group in groups], len(tasks)) if len(groups) > 1 else [weights]
        return [Route(self, group, part, is_shared, {}, {}) for group, part in zip(groups, parts, strict=True)]

    def _tasks_per_pass(self, pixel_values: Tensor, tasks: int) -> int:
        sizes = (self.records[name].config.tasks_per_pass for name in self.active_adapters)
        asked = [size for size in sizes if size is not None]
        return min(asked) if asked else choose_tasks_per_pass(pixel_values, tasks)

    @property
    def route(self) -> Route | None:
        """The pass of this model that the running thread is in; `None` outside of one."""
        route = PRESENT.route
        return route if route is not None and route.router is self else None

    def present_route(self) -> Route:
        """The pass that the running thread is in.

        Raises:
            RuntimeError: It is in none.
        """
        if self.route is None:
            raise RuntimeError(
                "An adapted layer was called outside of a forward pass of the adapted model, so its task is unknown. "
                "Call the whole model, with `task=` or `tasks=`."
            )
        return self.route

    def weights_of(self, adapter_names: list[str], **asked: Any) -> SiteWeights:
        """Weights and dropout of some adapters, by site, for `task=` or `tasks=`; the errors are those of a call."""
        return self._generate(resolve_tasks(self._tasks_of(adapter_names), **asked), adapter_names)

    @contextmanager
    def generate_once(self) -> Iterator[None]:
        """Calls in this block share the weights that are generated here; see `TaskVerbs.generate_once`."""
        names = self.active_adapters
        tasks = self._tasks_of(names) if names and not self.shares_pass else []
        if not tasks:
            yield
            return
        kept = KeptWeights([self.generators[name] for name in names], tasks, self._generate(tuple(tasks), names))
        before, PRESENT.kept = PRESENT.kept, (kept, *PRESENT.kept)
        try:
            yield
            kept.backward()
        finally:
            PRESENT.kept = before

    def _tasks_of(self, adapter_names: list[str]) -> list[str]:
        """The tasks that all of the adapters have, in the order of the first."""
        first, *others = (self.records[name].config.tasks for name in adapter_names if name in self.records)
        return [name for name in first if all(name in tasks for tasks in others)]

    def _generate(self, tasks: tuple[str, ...], adapter_names: list[str]) -> SiteWeights:
        generators = [self.generators[name] for name in adapter_names]
        for kept in PRESENT.kept:
            if kept.serves(generators):
                return kept.of(tasks)
        records = [self.records[name] for name in adapter_names]
        return generate(list(zip(records, generators, strict=True)), tasks)


def run_pass(
    forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], route: Route
) -> Sequence[Any]:
    """Runs the encoder once, and returns its output for each task of the pass."""
    tasks = len(route.tasks)
    if route.is_shared:
        output = forward(*args, **kwargs)
        return [add_features(output, route.features, task) for task in range(tasks)]
    batch = first_tensor((args, kwargs))
    if tasks == 1 or batch is None:
        return [forward(*args, **kwargs)]
    args, kwargs = repeat_batch((args, kwargs), tasks)
    return split_batch(forward(*args, **kwargs), tasks, batch.shape[0])


def add_features(maps: Any, features: Mapping[int, Tensor], task: int) -> Any:
    """The output of a shared pass for one task: itself, or where the task has features the stage maps plus those.

    Args:
        maps: Output of the encoder; stage maps `(batch, channels, height, width)` where there are features.
        features: By stage `(tasks, batch, tokens, channels)`; tokens in front of those of the map are left out.
        task: Index of the task in the features.
    """
    if not features:
        return maps
    of_task = list(maps)
    for stage, of_tasks in features.items():
        height, width = maps[stage].shape[-2:]
        tokens = of_tasks[task][:, -height * width :]
        of_task[stage] = maps[stage] + tokens.mT.unflatten(-1, (height, width)).to(maps[stage].dtype)
    return type(maps)(of_task)


def router_of(model: nn.Module) -> Router | None:
    """The router of an adapted model; `None` where there are no adapters."""
    return getattr(model, SHARED, None)
