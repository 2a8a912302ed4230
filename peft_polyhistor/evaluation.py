# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Scores of a dense model over a data set, and what it costs in parameters."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from accelerate import Accelerator
from torch import nn
from tqdm.auto import tqdm

from .tasks import TASKS


@torch.no_grad()
def evaluate_tasks(
    model: nn.Module, batches: Iterable[Mapping], tasks: Sequence[str], accelerator: Accelerator
) -> dict[str, dict[str, float]]:
    """All scores of every task: one pass for all tasks, counts instead of predictions kept.

    The same figures on any number of processes and at any batch size: what a prepared loader adds to even out the
    processes is dropped before it is summed. Leaves the model in the mode it was in.

    Args:
        model: A `MultiTaskDenseModel`, adapted or not, prepared by `accelerator`.
        batches: Prepared by `accelerator`, each with `pixel_values` and `labels` by task.
        tasks: Names of the tasks.
        accelerator: Of this process.

    Returns:
        By task, what the task's metric computes; percent or degrees.
    """
    training = model.training
    model.eval()
    metrics = {task: TASKS[task].metric() for task in tasks}
    for batch in tqdm(batches, desc="evaluating", leave=False, disable=not accelerator.is_main_process):
        logits = model(batch["pixel_values"], tasks=list(tasks), full_resolution=False).logits
        for task, metric in metrics.items():
            rows = metric.statistics(logits[task], batch["labels"][task])
            metric.update(accelerator.gather_for_metrics(rows))
    model.train(training)
    return {task: metric.compute() for task, metric in metrics.items()}


def headline(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The one score of each task that stands for it, as in the paper's tables."""
    return {task: values[TASKS[task].score] for task, values in scores.items()}


def is_of_decoder(name: str) -> bool:
    """A parameter of this name belongs to a decoder of a dense model, adapted or not."""
    return "decoders." in name


def count_trainable(model: nn.Module) -> dict[str, int]:
    """Trainable parameters as the paper counts them: `encoder`, what is not a decoder, and `all`."""
    sizes = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    decoders = sum(size for name, size in sizes.items() if is_of_decoder(name))
    return {"encoder": sum(sizes.values()) - decoders, "all": sum(sizes.values())}
