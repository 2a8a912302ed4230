# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""A frozen encoder with one PEFT adapter per task."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial

from peft import PeftModel
from torch import Tensor

from ..models.stages import StageEncoder
from ..tuner.checkpoint import bind_checkpoints


TURNS = threading.RLock()  # one thread at a time: PEFT activates an adapter on the modules themselves


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

    def forward(self, pixel_values: Tensor, tasks: Sequence[str] | None = None) -> dict[str, Sequence[Tensor]]:
        """Computes the four stage maps of each task.

        Raises:
            ValueError: No task is named, or a task has no adapter.
        """
        known = list(self.adapted.peft_config)
        if not tasks or not set(tasks) <= set(known):
            raise ValueError(f"`tasks` must be a list of some of {known}, which have adapters, got {tasks}.")
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
        flags = [(parameter, parameter.requires_grad) for parameter in self.adapted.parameters()]
        self.adapted.set_adapter(task)
        # PEFT makes only the active adapter trainable. Here all adapters train together, or none: autograd reads
        # `requires_grad` again in the backward pass, when the adapter of another task is active.
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
