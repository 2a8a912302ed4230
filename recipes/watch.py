# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Takes the steps of a run and notices those whose numbers are wrong: not finite, or far above what is usual."""

import math
import re
import warnings
from collections import deque
from collections.abc import Sequence
from statistics import fmean, median
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import clip_grads_with_norm_, get_total_norm


if TYPE_CHECKING:
    from settings import Settings

ON_BAD_STEP = ["stop", "skip", "warn"]
IN_A_ROW = 20  # skipped steps that are no accident; the scaler of fp16 halves a scale that starts at 2**16
WINDOW, ENOUGH = 50, 10  # losses that the usual one is the median of, and the fewest that tell
SPIKE = 10  # times the usual loss; batches of one picture reach 4.5 times
ADVICE = (
    "Lower --learning_rate, clip with --max_grad_norm, or use a wider --mixed_precision; --on_bad_step skip leaves "
    "single steps out. With --resume True the run goes on from its last evaluation."
)


class Watch:
    """Takes the optimiser steps of a run, and looks at the losses of its tasks and the norms of their gradients.

    These stay on the device until `look`, so call that before what must not happen after a bad step, such as saving.
    Where steps are skipped, it looks at each. All processes see the same numbers and decide alike.

    Args:
        model: As `accelerator` prepared it.
        optimizer: As `accelerator` prepared it.
        tasks: Names of the tasks.
        settings: `max_grad_norm`, and what to do where a loss or gradient is not finite, `on_bad_step`. "stop": `look`
            raises an error. "skip": there is a warning, and the step changes nothing, not even what BatchNorm keeps.
            "warn": there is one warning in all, and the model is likely to be lost.
        accelerator: Of this process. Its scaler, in fp16, looks for a scale by skipping steps; they count as bad where
            it finds none.

    Raises:
        ValueError: Training in fp16 has no scaler on this device, so that small gradients would vanish.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        tasks: Sequence[str],
        settings: "Settings",
        accelerator: Accelerator,
    ):
        self._is_scaled = accelerator.scaler is not None
        if accelerator.mixed_precision == "fp16" and not self._is_scaled:
            raise ValueError(
                f"mixed_precision='fp16' needs a device with a scaler of gradients, and this one is "
                f"'{accelerator.device.type}'. Give --mixed_precision bf16 or no."
            )
        self.optimizer, self.tasks, self.accelerator = optimizer, list(tasks), accelerator
        self.max_grad_norm, self.on_bad_step = settings.max_grad_norm, settings.on_bad_step
        self._groups = {name: [] for name in [*self.tasks, "what the tasks share"]}
        for name, parameter in model.named_parameters():
            head = re.search(r"\bdecoders\.(?:.*\.)?heads\.(\w+)\.", name)
            self._groups[head[1] if head else "what the tasks share"].append(parameter)
        norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
        self._statistics = [buffer for module in norms for buffer in module.buffers() if self.on_bad_step == "skip"]
        self._kept = [buffer.clone() for buffer in self._statistics]
        self._in_a_row, self._is_lost = 0, False
        self._unseen: list[tuple[int, Tensor]] = []  # number of a step; losses, then norms
        self._unlogged: list[list[float]] = []  # losses
        self._usual = {task: deque(maxlen=WINDOW) for task in self.tasks}

    def step(self, number: int, losses: Tensor) -> None:
        """Clips the gradients and takes an optimiser step, or skips it.

        Args:
            number: Of the step.
            losses: Of the tasks on this process, `(tasks,)`.

        Raises:
            FloatingPointError: The step is one of many in a row that were skipped, or `look` finds one to stop at.
        """
        norms = self._clip(losses)
        if self._is_scaled:  # the scaler judges the gradients
            norms = torch.zeros_like(norms)
        self._unseen.append((number, torch.cat([losses, norms])))
        is_bad = self.on_bad_step == "skip" and self.look()
        if self._is_scaled or not is_bad:
            self.optimizer.step()
        self.optimizer.zero_grad()
        if self.optimizer.step_was_skipped if self._is_scaled else is_bad:
            self._go_back(number)
        else:
            self._in_a_row = 0
            for kept, buffer in zip(self._kept, self._statistics, strict=True):
                kept.copy_(buffer)

    def look(self) -> bool:
        """Reads the numbers of the steps since it looked last; whether one is bad, where that is no error.

        Warns of losses far above the median of those before. Losses of exactly 0, of batches without a label, do not
        count.

        Raises:
            FloatingPointError: A step is bad, and the run is to stop there.
        """
        found = False
        for number, losses, norms in self._read():
            fault = self._describe(losses, norms)
            if not fault:
                self._unlogged.append(losses)
                for task, loss in zip(self.tasks, losses, strict=True):
                    self._compare(number, task, loss)
                continue
            if self.on_bad_step == "stop":
                raise FloatingPointError(f"Step {number} is bad: {fault}. {ADVICE}")
            if self.on_bad_step == "skip":
                self._warn(f"Step {number} is skipped: {fault}.")
            elif not self._is_lost:
                self._warn(f"Step {number} is bad, and so are likely to be those after it: {fault}.")
            found = self._is_lost = True
        return found

    def take_means(self) -> dict[str, float]:
        """The mean loss by task since the last call, over the steps that were taken, where there are any."""
        self.look()
        columns = zip(*self._unlogged, strict=True)
        means = dict(zip(self.tasks, map(fmean, columns), strict=True)) if self._unlogged else {}
        self._unlogged.clear()
        return means

    def _clip(self, losses: Tensor) -> Tensor:
        """Clips the gradients; what their norms were before, by task and of the rest."""
        self.accelerator.unscale_gradients()
        gradients = [[p.grad for p in group if p.grad is not None] for group in self._groups.values()]
        norms = torch.stack(
            [get_total_norm(group).to(losses) if group else losses.new_zeros(()) for group in gradients]
        )
        if self.max_grad_norm:
            parameters = [parameter for group in self._groups.values() for parameter in group]
            clip_grads_with_norm_(parameters, self.max_grad_norm, torch.linalg.vector_norm(norms))
        return norms

    def _go_back(self, number: int) -> None:
        self._in_a_row += 1
        for kept, buffer in zip(self._kept, self._statistics, strict=True):
            buffer.copy_(kept)
        if self._in_a_row > IN_A_ROW and self.on_bad_step != "warn":
            raise FloatingPointError(
                f"Steps {number - IN_A_ROW} to {number} were skipped one after the other: their losses or gradients "
                f"are not finite. {ADVICE}"
            )

    def _read(self) -> list[tuple[int, list[float], list[float]]]:
        if not self._unseen:
            return []
        numbers, rows = zip(*self._unseen, strict=True)
        self._unseen.clear()
        values = self.accelerator.reduce(torch.stack(rows), "mean").tolist()
        tasks = len(self.tasks)
        return [(number, row[:tasks], row[tasks:]) for number, row in zip(numbers, values, strict=True)]

    def _describe(self, losses: list[float], norms: list[float]) -> str:
        values = [(f"loss of {task}", loss) for task, loss in zip(self.tasks, losses, strict=True)]
        values += [(f"gradient of {name}", norm) for name, norm in zip(self._groups, norms, strict=True)]
        return ", ".join(f"{name} {value}" for name, value in values if not math.isfinite(value))

    def _compare(self, number: int, task: str, loss: float) -> None:
        usual = self._usual[task]
        if loss and len(usual) >= ENOUGH and loss > SPIKE * median(usual):
            self._warn(
                f"Step {number}: the loss of {task} is {loss:.4g}, and the median of the {len(usual)} before is "
                f"{median(usual):.4g}. If this goes on, lower --learning_rate or clip with --max_grad_norm."
            )
        if loss:
            usual.append(loss)

    def _warn(self, text: str) -> None:
        if self.accelerator.is_main_process:
            warnings.warn(text, RuntimeWarning, stacklevel=3)
