# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Recomputed layers see the tasks and weights of their own forward pass.

Recomputation happens in the backward pass, when the route is long over, or is that of another step.
"""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

from torch import nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from .features import drop_features


CHECKPOINT = "_gradient_checkpointing_func"  # of transformers' GradientCheckpointingLayer


class Routed(Protocol):
    """What leads a forward pass: it has a `route`, and runs code as part of the pass that a route came from."""

    route: Any

    def following(self, route: Any) -> Any: ...


class BoundCheckpoint:
    """A checkpoint function that leads the layers it recomputes.

    The generated weights of a route are handed to it as arguments, through which it passes gradient in its reentrant
    form too. What recomputed layers leave on a route goes nowhere: its pass is over.
    """

    def __init__(self, checkpoint: Callable[..., Any], routed: Routed):
        self.checkpoint = checkpoint
        self.routed = routed

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        routes = self._passes_of(self.routed.route)
        leaves, structure = tree_flatten(getattr(self.routed.route, "weights", {}))

        def follow(*args: Any, **kwargs: Any) -> Any:
            weights, args = args[: len(leaves)], args[len(leaves) :]
            route, is_over = next(routes)
            if leaves:
                route = route._replace(weights=tree_unflatten(weights, structure))
            try:
                with self.routed.following(route):
                    return function(*args, **kwargs)
            finally:
                if is_over:
                    drop_features(route)

        return self.checkpoint(follow, *leaves, *args, **kwargs)

    @staticmethod
    def _passes_of(route: Any) -> Iterator[tuple[Any, bool]]:
        """The route in its own pass, and then for every time that its layers are recomputed."""
        yield route, False
        while True:
            yield (route._replace(features={}) if hasattr(route, "features") else route), True


def bind_checkpoints(model: nn.Module, routed: Routed) -> None:
    """Binds the checkpoint function of every layer that has one."""
    for module in model.modules():
        checkpoint = module.__dict__.get(CHECKPOINT)
        if checkpoint is not None and not isinstance(checkpoint, BoundCheckpoint):
            setattr(module, CHECKPOINT, BoundCheckpoint(checkpoint, routed))


def unbind_checkpoint(module: nn.Module) -> None:
    """Gives a layer its own checkpoint function back."""
    checkpoint = module.__dict__.get(CHECKPOINT)
    if isinstance(checkpoint, BoundCheckpoint):
        setattr(module, CHECKPOINT, checkpoint.checkpoint)


def refuse_reentrant(model: nn.Module) -> None:
    """Raises ValueError where a layer recomputes in the reentrant form."""
    for module in model.modules():
        checkpoint = module.__dict__.get(CHECKPOINT)
        checkpoint = checkpoint.checkpoint if isinstance(checkpoint, BoundCheckpoint) else checkpoint
        if getattr(checkpoint, "keywords", {}).get("use_reentrant"):
            raise ValueError(
                "Reentrant checkpointing passes no gradient to adapters of a frozen encoder. Enable it with "
                "{'use_reentrant': False}."
            )
