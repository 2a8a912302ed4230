# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Gradient checkpointing: recomputed layers use the tasks and weights of their own forward pass."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from torch import nn


CHECKPOINT = "_gradient_checkpointing_func"  # of transformers' GradientCheckpointingLayer

# Is called within a forward pass. Returns a function that makes a context, in which layers run as part of that pass.
Remember = Callable[[], Callable[[], AbstractContextManager[Any]]]


class BoundCheckpoint:
    """Wraps a checkpoint function, so that layers are recomputed as part of the pass that they ran in."""

    def __init__(self, checkpoint: Callable[..., Any], remember: Remember):
        self.checkpoint = checkpoint
        self.remember = remember

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self.checkpoint(Recomputed(function, self.remember()), *args, **kwargs)


class Recomputed:
    """Wraps layers that first run in the current pass, and every further time in the recorded context of that pass."""

    def __init__(self, function: Callable[..., Any], again: Callable[[], AbstractContextManager[Any]]):
        self.function = function
        self.again = again
        self.has_run = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.has_run:
            with self.again():
                return self.function(*args, **kwargs)
        self.has_run = True
        return self.function(*args, **kwargs)


def bind_checkpoints(model: nn.Module, remember: Remember) -> None:
    """Wraps the checkpoint function of each layer of `model` that has one.

    Raises:
        ValueError: A layer uses reentrant checkpointing.
    """
    for module in model.modules():
        checkpoint = module.__dict__.get(CHECKPOINT)
        if checkpoint is None or isinstance(checkpoint, BoundCheckpoint):
            continue
        if getattr(checkpoint, "keywords", {}).get("use_reentrant"):
            raise ValueError(
                "Reentrant checkpointing passes no gradient to adapters of a frozen encoder. Enable it with "
                "{'use_reentrant': False}."
            )
        setattr(module, CHECKPOINT, BoundCheckpoint(checkpoint, remember))


def unbind_checkpoints(model: nn.Module) -> None:
    """Restores the original checkpoint function of each layer."""
    for module in model.modules():
        checkpoint = module.__dict__.get(CHECKPOINT)
        if isinstance(checkpoint, BoundCheckpoint):
            setattr(module, CHECKPOINT, checkpoint.checkpoint)
