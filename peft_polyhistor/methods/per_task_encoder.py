# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""A frozen encoder with one PEFT adapter per task."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial

import torch
from peft import PeftModel
from torch import Tensor, nn

from ..models.stages import StageEncoder
from ..tuner.checkpoint import bind_checkpoints


TURNS = threading.RLock()  # one thread at a time: PEFT activates an adapter on the modules themselves


class PerTaskAdapters(PeftModel):
    """The class of a `PeftModel` whose adapters train together."""

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """As in PEFT; all adapters are trainable again afterwards if they were before."""
        with _same_flags(self), super().disable_adapter():
            yield


class PerTaskEncoder(StageEncoder):
    """A frozen encoder with one PEFT adapter per task, which makes a pass with the adapter of each task.

    Attributes:
        adapted: The encoder as a `PeftModel`, whose adapters have the names of the tasks.
    """

    def __init__(self, encoder: StageEncoder, adapted: PeftModel):
        super().__init__()
        self.config = encoder.config
        self.widths = encoder.widths
        self.strides = encoder.strides
        self.needs_norm = encoder.needs_norm
        self.adapted = adapted
        adapted.__class__ = PerTaskAdapters

    def forward(self, pixel_values: Tensor, tasks: Sequence[str] | None = None) -> dict[str, Sequence[Tensor]]:
        """Computes the four stage maps of each task.

        Raises:
            ValueError: No task is named, a task has no adapter, or a call with gradient meets timm's checkpointing.
        """
        known = list(self.adapted.peft_config)
        if not tasks or not set(tasks) <= set(known):
            raise ValueError(f"`tasks` must be a list of some of {known}, which have adapters, got {tasks}.")
        if len(known) > 1 and torch.is_grad_enabled():
            _refuse_timm_checkpointing(self.adapted)
        bind_checkpoints(self.adapted, self._record_route)
        maps = {}
        for task in tasks:
            with self.following(task):
                maps[task] = self.adapted(pixel_values)
        return maps

    def _record_route(self) -> Callable[[], AbstractContextManager[None]]:
        [task] = self.adapted.active_adapters
        return partial(self.following, task)

    @contextmanager
    def following(self, task: str) -> Iterator[None]:
        """Runs a block of code with the adapter of `task`: a pass, or a layer that is recomputed."""
        with TURNS:
            if self.adapted.active_adapters != [task]:
                self._activate(task)
            yield

    def _activate(self, task: str) -> None:
        with _same_flags(self.adapted):
            self.adapted.set_adapter(task)


@contextmanager
def _same_flags(model: nn.Module) -> Iterator[None]:
    """Restores the `requires_grad` of all parameters at the end of a block of code.

    PEFT makes only the active adapter trainable. Here all adapters train together, or none: autograd reads
    `requires_grad` again in the backward pass, when the adapter of another task is active.
    """
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def _refuse_timm_checkpointing(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if getattr(module, "grad_checkpointing", False):
            raise ValueError(
                f"'{name}' has timm's `grad_checkpointing` switched on, which would recompute the layers of each task "
                "with the adapter of the last task. Switch it off: `set_grad_checkpointing(False)`. Adapters work "
                "with `gradient_checkpointing_enable` of transformers' own encoders."
            )
