# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Scores of a dense model over a data set, and what it costs in parameters."""

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm.auto import tqdm

from .tasks import TASKS, relative_change
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
    """All scores of every task, from the rows of `collect_statistics`; percent or the unit of the task.

    Warns of classes that no label holds, as they count 0 in a mean over classes.
    """
    metrics = {task: _metric_of(task, rows) for task, rows in statistics.items()}
    for task, metric in metrics.items():
        held, names = metric.labeled_classes(), TASKS[task].class_names
        if 0 < len(held) < len(names):
            warnings.warn(
                f"Labels of '{task}' hold {len(held)} of its {len(names)} classes: "
                f"{', '.join(names[number] for number in held)}. Each of the others counts 0 in the mean. If the data "
                "has other classes, make a task of your own with `segmentation`.",
                stacklevel=2,
            )
    return {task: metric.compute() for task, metric in metrics.items()}


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


def find_best(history: Sequence[Mapping[str, Any]]) -> int:
    """Index of the best evaluation of a run, the first of those that are equal.

    The one with the most finite headline scores wins, so that a diverged model never does; then the one with the
    highest mean relative change. The reference of a task is its first finite score other than 0, so that the units of
    the tasks do not matter.

    Args:
        history: `scores` of each evaluation by task and metric.
    """
    rows = [
        {task: score for task, score in headline(entry["scores"]).items() if math.isfinite(score)} for entry in history
    ]
    reference: dict[str, float] = {}
    for row in rows:
        reference = {task: score for task, score in row.items() if score} | reference

    def merit(row: Mapping[str, float]) -> tuple[int, float]:
        common = row.keys() & reference.keys()
        pair = ({task: scores[task] for task in common} for scores in (row, reference))
        return len(row), relative_change(*pair) if common else 0.0

    return max(range(len(rows)), key=lambda index: merit(rows[index]))


def find_details(statistics: Mapping[str, Tensor], image_ids: Sequence[str], ends: int = 3) -> dict[str, Any]:
    """Details of an evaluation for a report: scores of classes, and the images that were predicted best and worst.

    Args:
        statistics: Rows of `collect_statistics`.
        image_ids: Ids of the images, in the order of the rows.
        ends: Images at either end of the ranking.

    Returns:
        `classes`, the score of each class by task and name in percent, `None` where a class is neither labelled nor
        predicted, or where the model diverged; and `pictures`, by task the `best` and `worst` images from the
        outermost, each with its `image_id`, `index` and own `score`. No image is both, and none is without a score.
    """
    classes = {
        task: {name: None if math.isnan(score) else score for name, score in scores.items()}
        for task, scores in score_classes(statistics).items()
    }
    pictures = {}
    for task, scores in score_pictures(statistics).items():
        ranked = [index for index, score in enumerate(scores) if math.isfinite(score)]
        ranked.sort(key=lambda index: -scores[index] if TASKS[task].higher_is_better else scores[index])
        chosen = {"best": ranked[:ends], "worst": ranked[ends:][-ends:][::-1]}
        pictures[task] = {
            end: [{"image_id": image_ids[index], "index": index, "score": scores[index]} for index in indices]
            for end, indices in chosen.items()
        }
    return {"classes": classes, "pictures": pictures}


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
