# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Gradients of an optimiser step that do not depend on its split into batches, processes and tasks.

The losses of all batches and processes are normalised by the same counts of labels. Only values that the model itself
takes from a batch, such as the statistics of BatchNorm, depend on the split.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn

from ..tasks.table import count_labels


def add_gradients(
    model: nn.Module,
    batches: Sequence[Mapping[str, Any]],
    tasks: Sequence[str],
    accelerator: Accelerator,
    per_task: bool = False,
) -> Tensor:
    """Computes the gradients of one optimiser step, and adds them to `parameter.grad`.

    Args:
        model: A dense model, prepared by `accelerator`.
        batches: Batches of this process, all of the same size, with `pixel_values` and with `labels` by task.
        tasks: Names of the tasks.
        accelerator: The accelerator of this process.
        per_task: Run one backward pass per task, which frees the activations of a task before the next task. The
            gradients are the same, except for stochastic depth.

    Returns:
        Mean losses over the batches of this process, `(tasks,)`. Their mean over processes is the loss of the step.
    """
    counts = _mean_counts(batches, tasks, accelerator)
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


def _mean_counts(
    batches: Sequence[Mapping[str, Any]], tasks: Sequence[str], accelerator: Accelerator
) -> dict[str, Tensor]:
    """Averages the counts of labels in the loss of each task over batches and processes."""
    counts = [count_labels(batch["labels"], tasks) for batch in batches]
    names = list(counts[0])
    # One flat tensor for all counts needs one exchange between processes; a task may have several counts.
    sums = [torch.stack([count[name] for count in counts]).sum(dim=0) for name in names]
    totals = accelerator.reduce(torch.cat([total.flatten() for total in sums]), "sum")
    means = (totals / (len(batches) * accelerator.num_processes)).split([total.numel() for total in sums])
    return {name: mean.view_as(total) for name, mean, total in zip(names, means, sums, strict=True)}


def _add_per_task(
    model: nn.Module, inputs: Mapping[str, Any], tasks: Sequence[str], batches: int, accelerator: Accelerator
) -> Tensor:
    losses = []
    generate_once: Any = getattr(model, "generate_once", nullcontext)
    with generate_once():
        for task in tasks:
            output = model(**inputs, tasks=[task])
            accelerator.backward(output.loss / batches)
            losses.append(output.losses[task].detach())
    return torch.stack(losses)


def _average(model: nn.Module, accelerator: Accelerator) -> None:
    """Averages gradients over processes, which DDP does not do with one backward pass per task."""
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad.copy_(accelerator.reduce(parameter.grad, "mean"))
    for buffer in model.buffers():
        if buffer.is_floating_point():  # statistics of BatchNorm
            broadcast(buffer)
