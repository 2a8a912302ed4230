# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Which tasks a forward pass serves, and the weights its sites use for them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from ..models.encoder import StageEncoder
from .batches import repeat_batch, split_batch
from .checkpointing import bind_checkpoints, drop_features, unbind_checkpoint


if TYPE_CHECKING:
    from .site import Site

# Names of the TaskAdapters in the adapted model, and behind the method's prefix of its container. Both are part of
# every saved key; the first must not contain a method's prefix.
SHARED = "task_adapters"
GENERATORS = "generators"


SiteWeights = dict[str, list[tuple[Any, float]]]  # by site: of each active adapter its weights and dropout


class Route(NamedTuple):
    """What the sites need to know of the forward pass they are in, and what they leave for its end."""

    tasks: tuple[str, ...]
    weights: SiteWeights
    is_shared: bool  # the pass serves all tasks at once; otherwise the batch is laid out task by task
    features: dict[int, Tensor]  # by stage `(tasks, batch, tokens, channels)`, added to the maps of a shared pass


@dataclass
class Adapter:
    """What a `TaskAdapters` knows of one adapter besides its generator."""

    tasks: list[str]
    sites: "list[Site]"
    dropout: float


class TaskAdapters(nn.Module, BaseTunerLayer):
    """Holds the generators of all adapters of a model and leads each forward pass to the weights of its tasks.

    It stands in the model once, beside the encoder, so that saved parameters are named by role and not by the path of
    a layer. Its two hooks around the encoder take `task=` or `tasks=` out of the call, lay the batch out task by task,
    generate the weights of all sites once, and split the result. Tasks that share a pass are handed the same output.

    Note:
        A model follows one pass at a time: threads that call it must take turns.

    Args:
        container: Name of the dictionary that holds one generator per adapter; PEFT finds parameters by it.
        shares_pass: One pass of the encoder serves all tasks.
    """

    weight = bias = None  # PEFT's own look for a base layer, which there is not

    def __init__(self, container: str, shares_pass: bool):
        super().__init__()
        self.shares_pass = shares_pass
        setattr(self, container, nn.ModuleDict())
        self.adapter_layer_names = (container,)
        self.in_features = self.out_features = None
        self.info: dict[str, Adapter] = {}
        self.route: Route | None = None
        self._named_one = False  # by `task=`: the output is that of one task, and no dictionary
        self._encoder: tuple[nn.Module, ...] = ()  # in a tuple: a reference, not a submodule
        self._hooks: list = []

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
        if self.route is None:
            raise RuntimeError(
                "An adapted layer was called outside of a forward pass of the adapted model, so its task is unknown. "
                "Call the whole model, with `task=` or `tasks=`."
            )
        return self.route.weights.get(site_name, [])

    def enter(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Forward pre-hook: takes the tasks out of the call and lays the batch out for them."""
        if not self.active_adapters or not self.info:  # all deleted: the frozen encoder on its own
            if not isinstance(module, StageEncoder):
                refuse_tasks(module, args, kwargs)
            self.route = Route((), {}, True, {})
            return args, kwargs
        kwargs = dict(kwargs)
        asked = {name: kwargs.pop(name) for name in ("task", "tasks") if kwargs.get(name) is not None}
        kwargs = {name: value for name, value in kwargs.items() if name not in ("task", "tasks")}
        tasks = self._resolve(self.active_adapters, **asked)
        self._named_one = "tasks" not in asked
        if self.disable_adapters:
            # The frozen encoder does not know tasks: one pass serves all.
            self.route = Route(tasks, {}, True, {})
            return args, kwargs
        self.route = Route(tasks, self._generate(tasks, self.active_adapters), self.shares_pass, {})
        bind_checkpoints(module, self)
        times = 1 if self.shares_pass else len(tasks)
        return repeat_batch((args, kwargs), times)

    def leave(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        """Forward hook, called after an error too: ends the route and hands each task its part of the output."""
        route, self.route = self.route, None
        if route is None or not route.tasks or output is None:
            return output
        if route.is_shared:
            self._check_gradient(route)
            parts = [add_features(output, route.features, i) for i in range(len(route.tasks))]
            drop_features(route)
        elif self._named_one:
            return output
        else:
            parts = split_batch(output, len(route.tasks))
        return parts[0] if self._named_one else dict(zip(route.tasks, parts, strict=True))

    def _check_gradient(self, route: Route) -> None:
        """Raises ValueError where features came out of a block of code that was cut off from the gradient."""
        trains = torch.is_grad_enabled() and any(p.requires_grad for p in self.generators.parameters())
        if trains and any(not features.requires_grad for features in route.features.values()):
            raise ValueError(
                "Reentrant checkpointing passes no gradient to the features that these adapters make for decoders. "
                "Enable it with {'use_reentrant': False}."
            )

    def _resolve(
        self, adapter_names: list[str], task: str | None = None, tasks: Sequence[str] | None = None
    ) -> tuple[str, ...]:
        shared = [self.info[name].tasks for name in adapter_names if name in self.info]
        known = [name for name in shared[0] if all(name in others for others in shared)]
        if task is not None and tasks is not None:
            raise ValueError(
                f"Give `task` or `tasks`, not both; got task={task!r} and tasks={tasks!r}. Tasks are {known}."
            )
        if tasks is not None and (isinstance(tasks, str) or not isinstance(tasks, Sequence)):
            raise TypeError(
                f"`tasks` must be a list of names, got {tasks!r}. For one task write task= with one of {known}."
            )
        if task is None and tasks is None:
            if len(known) == 1:
                return tuple(known)
            raise ValueError(
                f"The adapter {adapter_names} serves several tasks, and none was named. Pass task= with one of "
                f"{known}, or tasks= with a list of them."
            )
        named = (task,) if tasks is None else tuple(tasks)
        unknown = [name for name in named if name not in known]
        if unknown or not named or len(set(named)) < len(named):
            raise ValueError(
                f"Tasks must be among {known} of the adapter {adapter_names}, each named once; got {list(named)}."
            )
        return named

    def weights_of(self, adapter_names: list[str], **asked: Any) -> SiteWeights:
        """Weights and dropout of some adapters, by site, for `task=` or `tasks=`; the errors are those of a call."""
        return self._generate(self._resolve(adapter_names, **asked), adapter_names)

    def _generate(self, tasks: tuple[str, ...], adapter_names: list[str]) -> SiteWeights:
        weights: SiteWeights = {}
        for name in adapter_names:
            info, generator = self.info[name], self.generators[name]
            device = next(generator.parameters()).device
            indices = torch.tensor([info.tasks.index(task) for task in tasks], device=device)
            # In full precision: generation is a small part of a step, and what it makes is used all over it.
            with torch.autocast(device.type, enabled=False):
                generated = generator(indices)
            for site, site_weights in zip(info.sites, generated, strict=True):
                weights.setdefault(site.name, []).append((site_weights, info.dropout))
        return weights

    @contextmanager
    def following(self, route: Route) -> Iterator[None]:
        """Runs a block of code as part of the forward pass that `route` came from."""
        before, self.route = self.route, route
        try:
            yield
        finally:
            self.route = before


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


def refuse_tasks(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
    """Forward pre-hook of a model whose adapters are gone, and which may swallow keywords it does not know."""
    named = {name: kwargs[name] for name in ("task", "tasks") if kwargs.get(name) is not None}
    if named:
        raise ValueError(f"This {type(module).__name__} carries no adapters any more, got {named}. Leave it out.")
