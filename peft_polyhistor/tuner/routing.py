# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Which tasks a forward pass serves, and the weights its sites use for them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..models.stages import StageEncoder
from .batches import Arguments, first_tensor, repeat_batch, split_batch
from .checkpointing import bind_checkpoints, unbind_checkpoint
from .features import add_features, drop_features
from .generation import Adapter, KeptWeights, SiteWeights, cut_weights, generate, resolve_tasks
from .passes import choose_tasks_per_pass


# Names of the TaskAdapters in the adapted model, and behind the method's prefix of its container. Both are part of
# every saved key; the first must not contain a method's prefix.
SHARED = "task_adapters"
GENERATORS = "generators"


class Route(NamedTuple):
    """What the sites need to know of the forward pass they are in, and what they leave for its end."""

    tasks: tuple[str, ...]
    weights: SiteWeights
    is_shared: bool  # the pass serves all tasks at once; otherwise the batch is laid out task by task
    features: dict[int, Tensor]  # by stage `(tasks, batch, tokens, channels)`, added to the maps of a shared pass


class Call(NamedTuple):
    """What a call of the encoder asks for."""

    tasks: tuple[str, ...]
    arguments: Arguments  # without those that name tasks
    is_for_one: bool  # by `task=`: the output is that of one task, and no dictionary
    later: list[Route]  # its further passes


class TaskAdapters(nn.Module, BaseTunerLayer):
    """Holds the generators of all adapters of a model and leads each forward pass to the weights of its tasks.

    It stands in the model once, beside the encoder, so that saved parameters are named by role and not by the path of
    a layer. Its two hooks around the encoder take `task=` or `tasks=` out of the call, lay the batch out task by task,
    generate the weights of all sites once, run as many passes as it takes, and split the result. Tasks that share a
    pass are handed the same output.

    Note:
        A model follows one pass at a time: threads that call it must take turns.

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
        self.info: dict[str, Adapter] = {}
        self.route: Route | None = None
        self._call: Call | None = None
        self._kept: KeptWeights | None = None  # over several calls
        self._encoder: tuple[nn.Module, ...] = ()  # in a tuple: a reference, not a submodule
        self._hooks: list[RemovableHandle] = []

    @property
    def generators(self) -> nn.ModuleDict:
        return getattr(self, self.adapter_layer_names[0])

    def add(self, name: str, generator: nn.Module, info: Adapter) -> None:
        self.generators[name] = generator
        self.info[name] = info

    def delete_adapter(self, adapter_name: str) -> None:
        super().delete_adapter(adapter_name)
        self.info.pop(adapter_name, None)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        # PEFT calls this after loading onto meta tensors. There is no base layer here: the encoder says the device.
        if adapter_name in self.generators:
            self.generators[adapter_name].to(device or next(self._encoder[0].parameters()).device)

    def forward(self, x: Any) -> Any:
        """Identity: where the adapted model is an `nn.Sequential`, this is its last module."""
        return x

    def attach(self, encoder: nn.Module) -> None:
        """Routes every call of `encoder`, which must be called as a module (not by its `forward`)."""
        self._encoder = (encoder,)
        self._hooks = [
            encoder.register_forward_pre_hook(self.enter, with_kwargs=True, prepend=True),
            encoder.register_forward_hook(self.leave, with_kwargs=True, always_call=True),
        ]

    def detach(self) -> None:
        """Takes the hooks off again; from then on a call that names a task is an error."""
        for hook in self._hooks:
            hook.remove()
        [encoder] = self._encoder
        for module in encoder.modules():
            unbind_checkpoint(module)
        if not isinstance(encoder, StageEncoder) and refuse_tasks not in encoder._forward_pre_hooks.values():
            encoder.register_forward_pre_hook(refuse_tasks, with_kwargs=True)

    def weights_at(self, site_name: str) -> list[tuple[Any, float]]:
        """Weights and dropout of each active adapter at one site, for the tasks of the present pass."""
        return self.present_route().weights.get(site_name, [])

    def present_route(self) -> Route:
        if self.route is None:
            raise RuntimeError(
                "An adapted layer was called outside of a forward pass of the adapted model, so its task is unknown. "
                "Call the whole model, with `task=` or `tasks=`."
            )
        return self.route

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        """Forward pre-hook: takes the tasks out of the call and lays the batch out for them."""
        if not self.active_adapters or not self.info:  # all deleted: the frozen encoder on its own
            if not isinstance(module, StageEncoder):
                refuse_tasks(module, args, kwargs)
            self.route, self._call = Route((), {}, True, {}), None
            return args, kwargs
        asked = {name: kwargs[name] for name in ("task", "tasks") if kwargs.get(name) is not None}
        arguments = args, {name: value for name, value in kwargs.items() if name not in ("task", "tasks")}
        tasks = resolve_tasks(self._tasks_of(self.active_adapters), **asked)
        self.route, *later = self._routes(module, tasks, arguments)
        self._call = Call(tasks, arguments, "tasks" not in asked, later)
        bind_checkpoints(module, self)
        return self._lay_out(arguments, self.route)

    def leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Forward hook, called after an error too: runs what is left and hands each task its part of the output."""
        route, call, self.route, self._call = self.route, self._call, None, None
        if route is None or call is None or output is None:
            return output
        if route.is_shared:
            self._check_gradient(route)
            parts = [add_features(output, route.features, i) for i in range(len(route.tasks))]
            drop_features(route)
        elif call.is_for_one:
            return output
        else:
            parts = split_batch(output, len(route.tasks))
            for later in call.later:
                args, kwargs = self._lay_out(call.arguments, later)
                with self.following(later):  # not called as a module: it is one call to whoever has hooks here
                    parts += split_batch(module.forward(*args, **kwargs), len(later.tasks))
        return parts[0] if call.is_for_one else dict(zip(call.tasks, parts, strict=True))

    def _routes(self, module: nn.Module, tasks: tuple[str, ...], arguments: Arguments) -> list[Route]:
        """The passes of the encoder that a call is made of."""
        if self.disable_adapters:
            return [Route(tasks, {}, True, {})]  # the frozen encoder does not know tasks: one pass serves all
        weights = self._generate(tasks, self.active_adapters)
        in_one = self.shares_pass or self._is_hooked(module)
        size = len(tasks) if in_one else self._tasks_per_pass(first_tensor(arguments), len(tasks))
        if size >= len(tasks):
            return [Route(tasks, weights, self.shares_pass, {})]
        groups = [tasks[start : start + size] for start in range(0, len(tasks), size)]
        cut = cut_weights(weights, [len(group) for group in groups])
        return [Route(group, of_group, False, {}) for group, of_group in zip(groups, cut, strict=True)]

    def _is_hooked(self, module: nn.Module) -> bool:
        """Others change what goes into the encoder, or what comes out of it before it is handed to the tasks."""
        first = next(iter(module._forward_hooks.values()))
        return first != self.leave or any(hook != self.enter for hook in module._forward_pre_hooks.values())

    def _tasks_per_pass(self, pixel_values: Tensor | None, tasks: int) -> int:
        sizes = (self.info[name].config.tasks_per_pass for name in self.active_adapters)
        asked = [size for size in sizes if size is not None]
        return min(asked) if asked else choose_tasks_per_pass(pixel_values, tasks)

    @staticmethod
    def _lay_out(arguments: Arguments, route: Route) -> Arguments:
        return arguments if route.is_shared else repeat_batch(arguments, len(route.tasks))

    def _check_gradient(self, route: Route) -> None:
        """Raises ValueError where features came out of a block of code that was cut off from the gradient."""
        trains = torch.is_grad_enabled() and any(p.requires_grad for p in self.generators.parameters())
        if trains and any(not features.requires_grad for features in route.features.values()):
            raise ValueError(
                "Reentrant checkpointing passes no gradient to the features that these adapters make for decoders. "
                "Enable it with {'use_reentrant': False}."
            )

    def weights_of(self, adapter_names: list[str], **asked: Any) -> SiteWeights:
        """Weights and dropout of some adapters, by site, for `task=` or `tasks=`; the errors are those of a call."""
        return self._generate(resolve_tasks(self._tasks_of(adapter_names), **asked), adapter_names)

    @contextmanager
    def generate_once(self) -> Iterator[None]:
        """Calls in this block share the weights that are generated here; see `TaskSet.generate_once`."""
        names, before = self.active_adapters, self._kept
        tasks = self._tasks_of(names) if names and not self.shares_pass else []
        if tasks:
            generators = [self.generators[name] for name in names]
            self._kept = kept = KeptWeights(generators, tasks, self._generate(tuple(tasks), names))
        try:
            yield
            if tasks:
                kept.backward()
        finally:
            self._kept = before

    def _tasks_of(self, adapter_names: list[str]) -> list[str]:
        """The tasks that all of the adapters have, in the order of the first."""
        first, *others = (self.info[name].config.tasks for name in adapter_names if name in self.info)
        return [name for name in first if all(name in tasks for tasks in others)]

    def _generate(self, tasks: tuple[str, ...], adapter_names: list[str]) -> SiteWeights:
        generators = [self.generators[name] for name in adapter_names]
        if self._kept is not None and self._kept.serves(generators):
            return self._kept.of(tasks)
        infos = [self.info[name] for name in adapter_names]
        return generate(list(zip(infos, generators, strict=True)), tasks)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles take no part in a call or a block of code that the original is in."""
        return {**self.__dict__, "route": None, "_call": None, "_kept": None}

    @contextmanager
    def following(self, route: Route) -> Iterator[None]:
        """Runs a block of code as part of the forward pass that `route` came from."""
        before, self.route = self.route, route
        try:
            yield
        finally:
            self.route = before


def refuse_tasks(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Forward pre-hook of a model whose adapters are gone, and which may swallow keywords it does not know."""
    named = {name: kwargs[name] for name in ("task", "tasks") if kwargs.get(name) is not None}
    if named:
        raise ValueError(f"This {type(module).__name__} carries no adapters any more, got {named}. Leave it out.")
