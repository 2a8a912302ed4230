# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The gradients of a batch: of all tasks in one backward pass, or task by task with the memory of one."""

from collections.abc import Mapping
from contextlib import nullcontext

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn


def add_gradients(
    model: nn.Module, batch: Mapping, tasks: list[str], per_task: bool, accelerator: Accelerator
) -> Tensor:
    """Adds the gradients of a batch to those of the parameters; the losses of the tasks, `(tasks,)`.

    Args:
        model: As `accelerator` prepared it.
        batch: `pixel_values`, and `labels` by task.
        tasks: Names of the tasks.
        per_task: One backward pass per task, each of which frees what the task kept: the same gradients.
        accelerator: Of this process.
    """
    if per_task:
        return _add_per_task(accelerator.unwrap_model(model), batch, tasks, accelerator)
    output = model(**batch, full_resolution=False)
    accelerator.backward(output.loss)
    return torch.stack([output.losses[task].detach() for task in tasks])


def _add_per_task(model: nn.Module, batch: Mapping, tasks: list[str], accelerator: Accelerator) -> Tensor:
    losses = []
    with getattr(model, "generate_once", nullcontext)():
        for task in tasks:
            output = model(**batch, tasks=[task], full_resolution=False)
            accelerator.backward(output.loss)
            losses.append(output.losses[task].detach())
    if accelerator.sync_gradients and accelerator.num_processes > 1:
        _average(model, accelerator)
    return torch.stack(losses)


def _average(model: nn.Module, accelerator: Accelerator) -> None:
    """What DDP does in a backward pass of all parameters, which there is none of here."""
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad.copy_(accelerator.reduce(parameter.grad, "mean"))
    for buffer in model.buffers():
        if buffer.is_floating_point():  # the statistics of BatchNorm
            broadcast(buffer)
