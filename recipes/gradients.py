# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The gradients of a step: of its batches in turn, and of all tasks in one backward pass or in one each.

The losses of all batches and processes divide and weigh by the same counts of labels, so a step is the same however it
is cut up, but for what a model itself takes from a batch, such as the statistics of BatchNorm.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn

from peft_polyhistor.tasks.table import count_labels


def add_gradients(
    model: nn.Module, batches: Sequence[Mapping], tasks: list[str], per_task: bool, accelerator: Accelerator
) -> Tensor:
    """Adds the gradients of a step to those of the parameters; the losses of the tasks, `(tasks,)`.

    The losses are means over the batches of this process; their mean over processes is that of the step.

    Args:
        model: As `accelerator` prepared it.
        batches: Of this process, of one size: `pixel_values`, and `labels` by task.
        tasks: Names of the tasks.
        per_task: One backward pass per task, each of which frees what the task kept: the same gradients.
        accelerator: Of this process.
    """
    counts = mean_counts(batches, tasks, accelerator)
    losses = []
    for number, batch in enumerate(batches, 1):
        inputs = {**batch, "counts": counts, "full_resolution": False}
        if per_task:
            losses.append(_add_per_task(accelerator.unwrap_model(model), inputs, tasks, len(batches), accelerator))
            continue
        with nullcontext() if number == len(batches) else accelerator.no_sync(model):
            output = model(**inputs)
            accelerator.backward(output.loss / len(batches))
        losses.append(torch.stack([output.losses[task].detach() for task in tasks]))
    if per_task and accelerator.num_processes > 1:
        _average(accelerator.unwrap_model(model), accelerator)
    return torch.stack(losses).mean(dim=0)


def mean_counts(batches: Sequence[Mapping], tasks: list[str], accelerator: Accelerator) -> dict[str, Tensor]:
    """By task, the mean over batches and processes of what its loss counts in the labels."""
    counts = [count_labels(batch["labels"], tasks) for batch in batches]
    names = list(counts[0])
    if not names:
        return {}
    sums = accelerator.reduce(torch.stack([sum(count[name] for count in counts) for name in names]), "sum")
    return dict(zip(names, sums / (len(batches) * accelerator.num_processes), strict=True))


def _add_per_task(
    model: nn.Module, inputs: Mapping, tasks: list[str], batches: int, accelerator: Accelerator
) -> Tensor:
    losses = []
    with getattr(model, "generate_once", nullcontext)():
        for task in tasks:
            output = model(**inputs, tasks=[task])
            accelerator.backward(output.loss / batches)
            losses.append(output.losses[task].detach())
    return torch.stack(losses)


def _average(model: nn.Module, accelerator: Accelerator) -> None:
    """What DDP does in a backward pass of all parameters, which there is none of here."""
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad.copy_(accelerator.reduce(parameter.grad, "mean"))
    for buffer in model.buffers():
        if buffer.is_floating_point():  # the statistics of BatchNorm
            broadcast(buffer)
