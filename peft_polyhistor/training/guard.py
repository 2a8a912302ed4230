# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Takes optimiser steps, and detects losses and gradients that are not finite."""

import math
import re
import warnings
from collections.abc import Sequence
from statistics import fmean

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import clip_grads_with_norm_, get_total_norm


ON_BAD_STEP = ["stop", "skip"]
_IN_A_ROW = 20  # the run stops at more skipped steps; the scaler of fp16 halves a scale that starts at 2**16
_SHARED = "the shared parameters"
_ADVICE = """Lower --learning_rate, clip with --max_grad_norm, or use a wider --mixed_precision; --on_bad_step skip \
skips single steps. With --resume True the run resumes from its last evaluation."""


class StepGuard:
    """Clips gradients, takes optimiser steps, and detects steps whose losses or gradients are not finite.

    The losses and norms of a step stay on the device until `take_means`. Call it before saving, so that no model is
    saved after a bad step. With "skip", each step is checked at once. All processes reach the same decision.

    Args:
        model: The model, prepared by `accelerator`.
        optimizer: The optimiser, prepared by `accelerator`.
        tasks: Names of the tasks.
        accelerator: The accelerator of this process. In fp16, its scaler skips steps until it finds a scale.
        max_grad_norm: Norm that gradients are clipped to; 0 disables clipping.
        on_bad_step: "stop" raises an error at a bad step. "skip" warns, skips the step, and restores the statistics of
            BatchNorm.

    Raises:
        ValueError: `accelerator` trains in fp16 without a gradient scaler, so that small gradients would vanish.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        tasks: Sequence[str],
        accelerator: Accelerator,
        max_grad_norm: float = 0.0,
        on_bad_step: str = "stop",
    ):
        self._is_scaled = accelerator.scaler is not None
        if accelerator.mixed_precision == "fp16" and not self._is_scaled:
            device = f"a device with a gradient scaler, and this one is '{accelerator.device.type}'"
            raise ValueError(f"mixed_precision='fp16' needs {device}. Give --mixed_precision bf16 or no.")
        self.optimizer, self.accelerator = optimizer, accelerator
        self._tasks, self._max_grad_norm, self._skips = list(tasks), max_grad_norm, on_bad_step == "skip"
        self._groups: dict[str, list[nn.Parameter]] = {name: [] for name in [*tasks, _SHARED]}
        for name, parameter in model.named_parameters():
            head = re.search(r"\bdecoders\.(?:.*\.)?heads\.(\w+)\.", name)
            self._groups[head[1] if head and head[1] in tasks else _SHARED].append(parameter)
        norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
        self._statistics = [buffer for module in norms for buffer in module.buffers() if self._skips]
        self._kept = [buffer.clone() for buffer in self._statistics]
        self._in_a_row = 0
        self._unread: list[tuple[int, Tensor]] = []  # number of a step; its losses, then its norms
        self._losses: list[list[float]] = []  # of the steps taken since `take_means`

    def step(self, number: int, losses: Tensor) -> None:
        """Clips the gradients, takes an optimiser step or skips it, and clears the gradients.

        Args:
            number: Number of the step, for messages.
            losses: Losses of the tasks on this process, `(tasks,)`.

        Raises:
            FloatingPointError: Too many steps in a row were skipped.
        """
        norms = self._clip(losses)
        if self._is_scaled:  # the scaler checks the gradients
            norms = torch.zeros_like(norms)
        self._unread.append((number, torch.cat([losses, norms])))
        was_skipped = self._skips and self._read()
        if self._is_scaled or not was_skipped:
            self.optimizer.step()
        if self._is_scaled:
            was_skipped = self.optimizer.step_was_skipped  # type: ignore[attr-defined]  # accelerate's optimiser
        self.optimizer.zero_grad()
        for kept, buffer in zip(self._kept, self._statistics, strict=True):
            (buffer if was_skipped else kept).copy_(kept if was_skipped else buffer)
        self._in_a_row = self._in_a_row + 1 if was_skipped else 0
        if self._in_a_row > _IN_A_ROW:
            steps = f"Steps {number - _IN_A_ROW} to {number} were skipped one after the other"
            raise FloatingPointError(f"{steps}: their losses or gradients are not finite. {_ADVICE}")

    def take_means(self) -> dict[str, float]:
        """Returns the mean loss by task over the steps taken since the last call; empty without a step.

        Raises:
            FloatingPointError: A step since the last call was bad, and `on_bad_step` is "stop".
        """
        self._read()
        columns = list(zip(*self._losses, strict=True))
        self._losses.clear()
        return {task: fmean(column) for task, column in zip(self._tasks, columns, strict=False)}

    def _clip(self, losses: Tensor) -> Tensor:
        """Clips the gradients, and returns their norms before clipping: of each task, then of shared parameters."""
        self.accelerator.unscale_gradients()
        gradients = [[p.grad for p in group if p.grad is not None] for group in self._groups.values()]
        zero = losses.new_zeros(())
        norms = torch.stack([get_total_norm(group).to(losses) if group else zero for group in gradients])
        if self._max_grad_norm:
            parameters = [parameter for group in self._groups.values() for parameter in group]
            clip_grads_with_norm_(parameters, self._max_grad_norm, torch.linalg.vector_norm(norms))
        return norms

    def _read(self) -> bool:
        """Reads losses and norms of the steps since the last call; tells whether the last step was bad."""
        numbers, rows = [number for number, _ in self._unread], [row for _, row in self._unread]
        self._unread.clear()
        names = [*(f"loss of {task}" for task in self._tasks), *(f"gradient of {name}" for name in self._groups)]
        fault = ""
        values = self.accelerator.reduce(torch.stack(rows), "mean").tolist() if rows else []
        for number, row in zip(numbers, values, strict=True):
            fault = ", ".join(f"{name} {x}" for name, x in zip(names, row, strict=True) if not math.isfinite(x))
            if fault and not self._skips:
                raise FloatingPointError(f"Step {number} is bad: {fault}. {_ADVICE}")
            if fault and self.accelerator.is_main_process:
                warnings.warn(f"Step {number} is skipped: {fault}.", RuntimeWarning, stacklevel=3)
            self._losses += [] if fault else [row[: len(self._tasks)]]
        return bool(fault)
