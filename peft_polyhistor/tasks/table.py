# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The table of the dense tasks, one row each, and rows as plain data."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from .binary import Binary
from .classes import HUMAN_PARTS, VOC_CLASSES
from .regression import Regression
from .segmentation import Segmentation
from .task import Task, make_task
from .vectors import Vectors


KINDS: dict[str, type[Task]] = {kind.kind: kind for kind in (Segmentation, Regression, Binary, Vectors)}

# Rows read as calls: `segmentation("lanes", classes=[...])`.
segmentation, regression, binary, vectors = Segmentation, Regression, Binary, Vectors

# PASCAL-Context as in Polyhistor, arXiv:2210.03265, Sec. 5.1.
PASCAL: tuple[Task, ...] = (
    segmentation("semseg", classes=VOC_CLASSES, background=True, tag="semantic-segmentation"),
    segmentation(
        "human_parts",
        classes=HUMAN_PARTS,
        background=True,
        ignore_empty=True,
        loss_weight=2,
        tag="human-part-segmentation",
    ),
    binary("saliency", score="mIoU", loss_weight=5, tag="saliency-detection"),
    vectors("normals", within=(), loss_weight=10, tag="surface-normal-estimation"),
)
PASCAL_TASKS = tuple(task.name for task in PASCAL)

TASKS: dict[str, Task] = {task.name: task for task in PASCAL}


def register_task(task: Task) -> None:
    """Adds a row to `TASKS`, after which data, models, losses, metrics and pictures know the name.

    A row that is there already in the same words stays.

    Raises:
        ValueError: If the name is taken by another row.
        TypeError: It is no row.
    """
    if not isinstance(task, Task):
        raise TypeError(
            f"A row is made by {', '.join(KINDS)}, got {task!r}. Write e.g. regression('depth', unit='m')."
        )
    if TASKS.get(task.name, task) != task:
        raise ValueError(
            f"A task named '{task.name}' exists already, {TASKS[task.name]}, and differs from {task}. Choose a name "
            f"other than {', '.join(TASKS)}; or take the old one away with `del TASKS['{task.name}']`."
        )
    TASKS.setdefault(task.name, task)


def get_tasks(names: Sequence[str]) -> list[Task]:
    """The rows of the named tasks, in that order.

    Raises:
        ValueError: For no name, one text in place of a list, an unknown name, or a name given twice.
    """
    known = f"Known tasks: {', '.join(TASKS)}. `register_task` adds one."
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise ValueError(f"Tasks must be a list of names, got {names!r}. Write [{names!r}]. {known}")
    names = list(names)
    if not names:
        raise ValueError(f"No task was given; at least one is needed. {known}")
    unknown = [name for name in names if not isinstance(name, str) or name not in TASKS]
    if unknown:
        raise ValueError(f"Unknown tasks {unknown}. {known}")
    if len(set(names)) < len(names):
        raise ValueError(f"Tasks may be named once each, got {names}. Remove the repetition. {known}")
    return [TASKS[name] for name in names]


def declare_tasks(items: Iterable[Any]) -> list[Any]:
    """Registers the rows that are described among some tasks, and returns the names of all, in their order.

    Args:
        items: Names, and mappings of a name to its description, such as `{"depth": {"kind": "regression"}}`.

    Raises:
        ValueError: As in `make_task` and `register_task`. The names of other tasks are not looked at.
    """
    names: list[Any] = []
    for item in [items] if isinstance(items, Mapping | str) else items:
        for name, description in item.items() if isinstance(item, Mapping) else ():
            register_task(make_task(str(name), description, KINDS))
        names += item if isinstance(item, Mapping) else [item]
    return names


def describe_tasks(names: Iterable[str]) -> list[Any]:
    """Tasks as plain data, which `declare_tasks` reads: a name, or a mapping of it where this package has no such row.

    A row of a class of your own stays a name: whoever reads it must register it first.
    """
    return [
        {name: row.to_dict()} if row is not None and row not in PASCAL and type(row) in KINDS.values() else name
        for name, row in ((name, TASKS.get(name)) for name in names)
    ]


def check_labels(name: str, logits_shape: Sequence[int], target: Tensor) -> None:
    """Checks the labels of a task against the shape of its logits, before its loss.

    Shapes and dtypes are always checked; the range of the values only for labels in CPU memory, as looking at values
    makes the processor wait for a GPU.

    Args:
        name: Name of the task.
        logits_shape: Shape of its logits; only `(batch, channels)` of it is needed.
        target: The labels.

    Raises:
        ValueError: For an unknown task, or a wrong shape, dtype or range.
    """
    [task] = get_tasks([name])
    if logits_shape[1] != task.channels:
        raise ValueError(
            f"Logits of task '{name}' have shape {tuple(logits_shape)}; they must have {task.channels} channel(s) in "
            "axis 1. Change the last layer of the decoder."
        )
    task.check(logits_shape, target)


def count_labels(labels: Mapping[str, Tensor], tasks: Sequence[str]) -> dict[str, Tensor]:
    """By task, what its loss counts in its labels.

    Where a step has several batches, one after the other or one per process, the mean of these over all of them goes
    to the model with each batch as `counts`. The mean of the losses is then that of one large batch.
    """
    return {task.name: task.count(labels[task.name]) for task in get_tasks(tasks)}


def relative_change(scores: Mapping[str, float], reference: Mapping[str, float]) -> float:
    """Mean relative change against reference scores, in percent; above 0 is better than the reference.

    100 / T * sum over the T tasks of (+/-)(M - S) / S,    minus where lower is better
    (Polyhistor, arXiv:2210.03265)

    A task whose score and reference are both NaN was not measured, as the data has no label for it, and is left out.

    Args:
        scores: Headline score M of each task.
        reference: Score S of each task, in the paper those of single-task full fine-tuning.

    Returns:
        NaN where no task was measured, or where only one of a task's two scores is NaN, such as that of a model that
        diverged.

    Raises:
        ValueError: The tasks differ, there are none or unknown ones, or a reference score is 0.
    """
    if set(scores) != set(reference):
        raise ValueError(
            f"Scores are of tasks {sorted(scores)}, the reference is of {sorted(reference)}. Give both for the same."
        )
    tasks = get_tasks(list(reference))
    zeros = [task.name for task in tasks if reference[task.name] == 0]
    if zeros:
        raise ValueError(f"The reference score of {zeros} is 0, so no change relative to it exists. Leave them out.")
    measured = [task for task in tasks if not (math.isnan(scores[task.name]) and math.isnan(reference[task.name]))]
    changes = [
        (1 if task.higher_is_better else -1) * (scores[task.name] - reference[task.name]) / reference[task.name]
        for task in measured
    ]
    return 100 * sum(changes) / len(changes) if changes else math.nan
