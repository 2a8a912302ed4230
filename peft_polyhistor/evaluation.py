# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Scores and trainable parameters of a dense model."""

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.data_loader import DataLoaderStateMixin
from torch import Tensor, nn
from tqdm.auto import tqdm

from .tasks import TASKS, relative_change
from .tasks.running_metric import RunningMetric
from .tasks.table import as_reference


NOT_MEASURED = "not measured"


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Sets evaluation mode, and at the end, also after an error, returns each module to the mode that it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def evaluate_tasks(
    model: nn.Module, batches: Iterable[Mapping[str, Any]], tasks: Sequence[str], accelerator: Accelerator
) -> dict[str, dict[str, float]]:
    """Scores a model on all tasks in one pass over the data.

    The scores do not depend on the batch size or the number of processes: the metrics keep counts, not predictions.
    Each module of the model returns to the mode (training or evaluation) that it was in.

    Args:
        model: A `MultiTaskDenseModel`, adapted or not, prepared by `accelerator`.
        batches: Batches with `pixel_values` and `labels` by task; with several processes a loader that `accelerator`
            prepared, which gives each image of its dataset once.
        tasks: Names of the tasks.
        accelerator: Gathers the counts of all processes.

    Returns:
        Scores by task and metric, in percent or the unit of the task. NaN if no image has a label for the task.

    Raises:
        ValueError: There is no batch; or several processes score and the loader is not prepared, or leaves out images.
    """
    return score_tasks(collect_statistics(model, batches, tasks, accelerator))


@torch.no_grad()
def collect_statistics(
    model: nn.Module, batches: Iterable[Mapping[str, Any]], tasks: Sequence[str], accelerator: Accelerator
) -> dict[str, Tensor]:
    """Counts, for each task and image, the pixels from which `score_tasks` computes the scores.

    Takes the arguments and raises the errors of `evaluate_tasks`. Images that a prepared loader repeats to fill the
    last batch of several processes are dropped.

    Returns:
        Counts by task, `(images, columns)` int64 in CPU memory, in the order of the data, the same on every process.
    """
    has_several = accelerator.num_processes > 1
    if has_several and not isinstance(batches, DataLoaderStateMixin):
        raise ValueError(
            f"{accelerator.num_processes} processes share the images, and the {type(batches).__name__} would give all "
            "of them to each process. Give a loader that `accelerator.prepare` returned."
        )
    metrics = {task: TASKS[task].metric() for task in tasks}
    rows: dict[str, list[Tensor]] = {task: [] for task in tasks}
    with evaluating(model):
        for batch in tqdm(batches, desc="evaluating", leave=False, disable=not accelerator.is_main_process):
            logits = model(batch["pixel_values"], tasks=list(tasks), full_resolution=False).logits
            for task, metric in metrics.items():
                statistics = metric.statistics(logits[task], batch["labels"][task])
                # A single process has no images to drop, and accelerate would drop some of a sampler's.
                rows[task].append((accelerator.gather_for_metrics(statistics) if has_several else statistics).cpu())
    if not all(rows.values()):
        raise ValueError("There is no image to score: the loader is empty. Give one with at least one batch.")
    result = {task: torch.cat(parts) for task, parts in rows.items()}
    if has_several:
        _check_complete(batches, result)
    return result


def _check_complete(batches: Any, statistics: Mapping[str, Tensor]) -> None:
    """Raises ValueError unless there is a row for each image, by whose number accelerate drops the repeated ones."""
    dataset = getattr(batches, "dataset", None)
    for rows in statistics.values():
        if isinstance(dataset, Sized) and len(rows) != len(dataset):
            raise ValueError(
                f"The loader has a dataset of {len(dataset)} images, and the processes scored {len(rows)} of them. "
                "Give one without `drop_last` and without a sampler that leaves images out or repeats them; a part of "
                "the data is a torch.utils.data.Subset."
            )


def score_tasks(statistics: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
    """Computes all scores by task and metric, in percent or the unit of the task.

    Warns of classes that occur in no label, as they count 0 in a mean over classes.

    Args:
        statistics: Counts from `collect_statistics`.
    """
    metrics = {task: _metric_of(task, rows) for task, rows in statistics.items()}
    for task, metric in metrics.items():
        held, names = metric.labeled_classes(), TASKS[task].class_names
        if 0 < len(held) < len(names):
            warnings.warn(
                f"Labels of '{task}' hold {len(held)} of its {len(names)} classes: "
                f"{', '.join(names[number] for number in held)}. Each absent class counts 0 in the mean. If the data "
                "has other classes, define your own task with `segmentation`.",
                stacklevel=2,
            )
    return {task: metric.compute() for task, metric in metrics.items()}


def score_classes(statistics: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
    """Computes the score of each class in percent, by task and class name, for the tasks that have classes.

    A class that is neither labelled nor predicted scores NaN.
    """
    scores = {task: _metric_of(task, rows).class_scores() for task, rows in statistics.items()}
    return {
        task: dict(zip(TASKS[task].class_names, values, strict=True))
        for task, values in scores.items()
        if values and TASKS[task].class_names
    }


def score_images(statistics: Mapping[str, Tensor]) -> dict[str, list[float]]:
    """Computes the headline score of each single image, by task, in the order of the data.

    An image without a label for the task scores NaN.
    """
    return {
        task: [scores[TASKS[task].score] for scores in TASKS[task].metric().image_scores(rows)]
        for task, rows in statistics.items()
    }


def _metric_of(task: str, statistics: Tensor) -> RunningMetric:
    metric = TASKS[task].metric()
    metric.update(statistics)
    return metric


def headline(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Selects the headline score of each task: the one that the paper's tables print."""
    return {task: values[TASKS[task].score] for task, values in scores.items()}


def find_best(history: Sequence[Mapping[str, Any]]) -> int:
    """Finds the index of the best evaluation of a run.

    An evaluation takes over from the best before it if it has more finite headline scores, so a diverged model never
    does; or as many, with a mean relative change above 0, so the units of the tasks do not matter. Without finite
    scores the last evaluation is the best. A later evaluation never changes the order of the earlier ones, whose
    checkpoints are gone.

    Args:
        history: Evaluations, each with its `scores` by task and metric.
    """
    rows = [
        {task: score for task, score in headline(entry["scores"]).items() if math.isfinite(score)} for entry in history
    ]
    best = 0
    for index in range(1, len(rows)):
        best = index if _is_better(rows[index], rows[best]) else best
    return best


def _is_better(scores: Mapping[str, float], earlier: Mapping[str, float]) -> bool:
    if len(scores) != len(earlier) or not scores:
        return len(scores) >= len(earlier)
    common = scores.keys() & earlier.keys()
    if not common:
        return False
    reference = as_reference({task: earlier[task] for task in common})
    now, before = (relative_change({task: row[task] for task in common}, reference) for row in (scores, earlier))
    return now > before


def find_details(statistics: Mapping[str, Tensor], image_ids: Sequence[str], ends: int = 3) -> dict[str, Any]:
    """Finds the details of an evaluation for a report: scores of classes, and the best and worst images.

    Args:
        statistics: Counts from `collect_statistics`.
        image_ids: Ids of the images, in the order of the rows.
        ends: Number of images at each end of the ranking.

    Returns:
        - `classes`: scores in percent by task and class; `None` for a class that is neither labelled nor predicted,
          and for all classes if the model diverged.
        - `examples`: by task, the `best` and the `worst` images, the most extreme first, each with its `image_id`,
          `index` and `score`. An image is in one list at most; images without a score are in none.
    """
    classes = {
        task: {name: None if math.isnan(score) else score for name, score in scores.items()}
        for task, scores in score_classes(statistics).items()
    }
    examples = {}
    for task, scores in score_images(statistics).items():
        ranked = [index for index, score in enumerate(scores) if math.isfinite(score)]
        ranked.sort(key=lambda index: -scores[index] if TASKS[task].higher_is_better else scores[index])
        chosen = {"best": ranked[:ends], "worst": ranked[ends:][-ends:][::-1]}
        examples[task] = {
            end: [{"image_id": image_ids[index], "index": index, "score": scores[index]} for index in indices]
            for end, indices in chosen.items()
        }
    return {"classes": classes, "examples": examples}


def format_score(value: float, sign: str = "", unit: str = "percent") -> str:
    """Formats a score, or returns "not measured" for NaN.

    Percent and degrees have two decimals. Scores in other units, which may be small, have four significant digits at
    most, and are rounded to integers from 1,000 on.

    Args:
        value: The score.
        sign: "+" to show the sign of a change.
        unit: Unit of the score.
    """
    if math.isnan(value):
        return NOT_MEASURED
    if unit in ("percent", "degrees"):
        return f"{value:{sign}.2f}"
    return f"{value:{sign}.0f}" if abs(value) >= 1000 else f"{value:{sign}.4g}"


def format_scores(values: Sequence[float], sign: str = "", unit: str = "percent") -> str:
    """Formats the mean and range of a score over several runs, or says in how many runs it is NaN."""
    missing = sum(map(math.isnan, values))
    if 0 < missing < len(values):
        return f"{NOT_MEASURED} in {missing} of {len(values)} runs"
    mean, least, most = (
        format_score(value, sign, unit) for value in (sum(values) / len(values), min(values), max(values))
    )
    return mean if len(values) == 1 or missing else f"{mean} ({least} to {most})"


def is_of_decoder(name: str) -> bool:
    """Tells whether a parameter of this name belongs to a decoder of a dense model, adapted or not."""
    return "decoders." in name


def count_trainable(model: nn.Module) -> dict[str, int]:
    """Counts trainable parameters as the paper does: `encoder` (all but the decoders) and `all`."""
    sizes = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    decoders = sum(size for name, size in sizes.items() if is_of_decoder(name))
    return {"encoder": sum(sizes.values()) - decoders, "all": sum(sizes.values())}
