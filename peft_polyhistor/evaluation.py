# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Scores of a dense model over a data set, and what it costs in parameters."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm.auto import tqdm

from .tasks import TASKS
from .tasks.running_metric import RunningMetric


NOT_MEASURED = "not measured"


def evaluate_tasks(
    model: nn.Module, batches: Iterable[Mapping[str, Any]], tasks: Sequence[str], accelerator: Accelerator
) -> dict[str, dict[str, float]]:
    """All scores of every task: one pass for all tasks, counts instead of predictions kept.

    The same figures on any number of processes and at any batch size. Leaves the model in the mode it was in.

    Args:
        model: A `MultiTaskDenseModel`, adapted or not, prepared by `accelerator`.
        batches: Prepared by `accelerator`, each with `pixel_values` and `labels` by task.
        tasks: Names of the tasks.
        accelerator: Of this process.

    Returns:
        By task, what the task's metric computes; percent or degrees. NaN where no image has a label for the task.

    Raises:
        ValueError: There is no batch.
    """
    return score_tasks(collect_statistics(model, batches, tasks, accelerator))


@torch.no_grad()
def collect_statistics(
    model: nn.Module, batches: Iterable[Mapping[str, Any]], tasks: Sequence[str], accelerator: Accelerator
) -> dict[str, Tensor]:
    """What scores are made of: by task a row of counts per picture, in the order of the data, on every process.

    `(pictures, columns)` int64 in CPU memory. What a prepared loader adds to even out the processes is dropped.

    Args: Those of `evaluate_tasks`.

    Raises:
        ValueError: There is no batch.
    """
    training = model.training
    model.eval()
    metrics = {task: TASKS[task].metric() for task in tasks}
    rows: dict[str, list[Tensor]] = {task: [] for task in tasks}
    for batch in tqdm(batches, desc="evaluating", leave=False, disable=not accelerator.is_main_process):
        logits = model(batch["pixel_values"], tasks=list(tasks), full_resolution=False).logits
        for task, metric in metrics.items():
            statistics = metric.statistics(logits[task], batch["labels"][task])
            rows[task].append(accelerator.gather_for_metrics(statistics).cpu())
    model.train(training)
    if not all(rows.values()):
        raise ValueError("There is no picture to score: the loader is empty. Give one with at least one batch.")
    return {task: torch.cat(parts) for task, parts in rows.items()}


def score_tasks(statistics: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
    """All scores of every task, from the rows of `collect_statistics`; percent or degrees."""
    return {task: _metric_of(task, rows).compute() for task, rows in statistics.items()}


def score_classes(statistics: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
    """Score of each class by task and name, of the tasks with classes; NaN where a class is nowhere.

    Percent, from the rows of `collect_statistics`.
    """
    scores = {task: _metric_of(task, rows).class_scores() for task, rows in statistics.items()}
    return {
        task: dict(zip(TASKS[task].class_names, values, strict=True))
        for task, values in scores.items()
        if values and TASKS[task].class_names
    }


def score_pictures(statistics: Mapping[str, Tensor]) -> dict[str, list[float]]:
    """Headline score of each picture by itself, by task; NaN where a picture has no label for it.

    Percent or degrees, from the rows of `collect_statistics`, in their order.
    """
    return {
        task: [scores[TASKS[task].score] for scores in TASKS[task].metric().picture_scores(rows)]
        for task, rows in statistics.items()
    }


def _metric_of(task: str, statistics: Tensor) -> RunningMetric:
    metric = TASKS[task].metric()
    metric.update(statistics)
    return metric


def headline(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The one score of each task that stands for it, as in the paper's tables."""
    return {task: values[TASKS[task].score] for task, values in scores.items()}


def format_score(value: float, sign: str = "") -> str:
    """A score with two decimals, or the words "not measured" for NaN; `sign="+"` shows the sign of a change."""
    return NOT_MEASURED if math.isnan(value) else f"{value:{sign}.2f}"


def format_scores(values: Sequence[float], sign: str = "") -> str:
    """Mean and range of a score over several runs, the one score, or in how many runs it is NaN."""
    missing = sum(map(math.isnan, values))
    if 0 < missing < len(values):
        return f"{NOT_MEASURED} in {missing} of {len(values)} runs"
    mean = format_score(sum(values) / len(values), sign)
    if len(values) == 1 or missing:
        return mean
    return f"{mean} ({min(values):{sign}.2f} to {max(values):{sign}.2f})"


def is_of_decoder(name: str) -> bool:
    """A parameter of this name belongs to a decoder of a dense model, adapted or not."""
    return "decoders." in name


def count_trainable(model: nn.Module) -> dict[str, int]:
    """Trainable parameters as the paper counts them: `encoder`, what is not a decoder, and `all`."""
    sizes = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    decoders = sum(size for name, size in sizes.items() if is_of_decoder(name))
    return {"encoder": sum(sizes.values()) - decoders, "all": sum(sizes.values())}
