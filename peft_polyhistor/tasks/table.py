# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The table of dense tasks, with one row per task."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from torch import Tensor

from .classes import HUMAN_PARTS, VOC_CLASSES
from .kinds.binary import Binary
from .kinds.regression import Regression
from .kinds.segmentation import Segmentation
from .kinds.vectors import Vectors
from .task import Task


KINDS: dict[str, type[Task]] = {kind.kind: kind for kind in (Segmentation, Regression, Binary, Vectors)}

# A row is written as a call: `segmentation("lanes", classes=[...])`.
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

_TINY = 1e-12


def register_task(task: Task) -> None:
    """Adds a task to `TASKS`, which makes it known to data, models, losses and metrics.

    Registering an equal task again has no effect.

    Raises:
        ValueError: Another task has the name.
        TypeError: `task` is no `Task`.
    """
    if not isinstance(task, Task):
        raise TypeError(
            f"A task is created by {', '.join(KINDS)}, got {task!r}. Write e.g. regression('depth', unit='m')."
        )
    if TASKS.get(task.name, task) != task:
        raise ValueError(
            f"A task named '{task.name}' exists already, {TASKS[task.name]}, and differs from {task}. Choose a name "
            f"other than {', '.join(TASKS)}, or remove the old task with `del TASKS['{task.name}']`."
        )
    TASKS.setdefault(task.name, task)


class CarriesTasks:
    """Base of objects that are sent to other processes: where one is unpickled, it registers the tasks of its sender.

    Without it, a process that was spawned and not forked would know only the tasks of PASCAL-Context.
    """

    def __getstate__(self) -> tuple[dict[str, Any], list[Task]]:
        return self.__dict__, [task for task in TASKS.values() if task not in PASCAL]

    def __setstate__(self, state: tuple[dict[str, Any], list[Task]]) -> None:
        attributes, tasks = state
        self.__dict__.update(attributes)
        for task in tasks:
            register_task(task)


def get_tasks(names: Sequence[str], decoders: Sequence[str] | None = None) -> list[Task]:
    """Looks up tasks by name, in the given order.

    Args:
        names: Names of the tasks.
        decoders: Tasks of a model, which limit the names.

    Raises:
        ValueError: `names` is empty or no list, or a name is unknown or given twice, or the model lacks it.
    """
    allowed = [name for name in TASKS if decoders is None or name in decoders]
    known = f"This model has {allowed}."
    if decoders is None:
        known = f"Known tasks: {', '.join(TASKS)}. `register_task` or a recipe's YAML file adds one."
    if isinstance(names, str):
        raise ValueError(f"Tasks must be a list of names, got {names!r}. Write [{names!r}]. {known}")
    if not isinstance(names, Iterable):
        raise ValueError(f"Tasks must be a list of names, got a value of type {type(names).__name__}. {known}")
    names = list(names)
    if not names:
        raise ValueError(f"No task was given; at least one is needed. {known}")
    unknown = [name for name in names if not isinstance(name, str) or name not in allowed]
    if unknown:
        raise ValueError(f"{'Unknown tasks' if decoders is None else 'No decoder for'} {unknown}. {known}")
    if len(set(names)) < len(names):
        raise ValueError(f"Each task may be named once, got {names}. Remove the repetition. {known}")
    return [TASKS[name] for name in names]


def make_task(name: str, description: Any) -> Task:
    """Creates a task from plain data, as `Task.to_dict` or a YAML file gives it.

    Raises:
        ValueError: The kind or a setting is unknown, missing or invalid.
    """
    known = f"Give `kind`, one of {list(KINDS)}, and its settings, such as {{'kind': 'regression', 'unit': 'm'}}."
    if not isinstance(description, Mapping) or description.get("kind") not in KINDS:
        raise ValueError(f"Task '{name}' is described by {description!r}. {known}")
    kind = KINDS[description["kind"]]
    settings = {key: value for key, value in description.items() if key != "kind"}
    allowed = [item.name for item in fields(kind) if item.name != "name"]
    if unknown := sorted(set(map(str, settings)) - set(allowed)):
        raise ValueError(f"Task '{name}' has the settings {unknown}, which a {kind.kind} does not know: {allowed}.")
    try:
        return kind(name, **settings)
    except TypeError as error:
        raise ValueError(
            f"Task '{name}' cannot be created: {error}. A {kind.kind} has the settings {allowed}."
        ) from error


def declare_tasks(items: Iterable[Any]) -> list[Any]:
    """Registers the tasks that are given by a description, and returns the names of all tasks in order.

    Args:
        items: Names, or mappings from a name to a description, such as `{"depth": {"kind": "regression"}}`. Plain
            names are not checked.

    Raises:
        ValueError: A description is invalid or given twice, or another task has the name.
    """
    names: list[Any] = []
    for item in [items] if isinstance(items, Mapping | str) else items:
        for name, description in item.items() if isinstance(item, Mapping) else ():
            if name in names:
                raise ValueError(f"The task '{name}' is given twice. Give it once, or change one of the names.")
            register_task(make_task(str(name), description))
        names += item if isinstance(item, Mapping) else [item]
    return names


def describe_tasks(names: Iterable[str]) -> list[Any]:
    """Converts tasks to plain data for `declare_tasks`: a name, or a mapping for tasks that are not built in.

    A task of a class outside this package stays a name: the reader must register it first.
    """
    return [
        {name: row.to_dict()} if row is not None and row not in PASCAL and type(row) in KINDS.values() else name
        for name, row in ((name, TASKS.get(name)) for name in names)
    ]


def check_labels(name: str, logits_shape: Sequence[int], target: Tensor) -> None:
    """Checks the labels of a task against the shape of its logits.

    The range of the values is checked in CPU memory only, as reading values makes the CPU wait for a GPU.

    Args:
        name: Name of the task.
        logits_shape: Shape of the logits; only `(batch, channels)` is used.
        target: Labels.

    Raises:
        ValueError: The task is unknown, or a shape, dtype or value is wrong.
    """
    [task] = get_tasks([name])
    if logits_shape[1] != task.channels:
        raise ValueError(
            f"Logits of task '{name}' have shape {tuple(logits_shape)}; they must have {task.channels} channel(s) in "
            "axis 1. Change the last layer of the decoder."
        )
    task.check(logits_shape, target)


def count_labels(labels: Mapping[str, Tensor], tasks: Sequence[str]) -> dict[str, Tensor]:
    """Counts, by task, the labelled pixels or images that normalise its loss.

    If a step has several batches, in sequence or on several processes, pass the mean of these counts to the model as
    `counts` with each batch. The mean of the losses is then that of one large batch.
    """
    return {task.name: task.count(labels[task.name]) for task in get_tasks(tasks)}


def as_reference(scores: Mapping[str, float]) -> dict[str, float]:
    """Returns finite headline scores as references of changes, which are above 0.

    A score below 1 percent or degree counts as 1, so that a task near zero does not outweigh a task that works.
    """
    least = {task: 1.0 if TASKS[task].unit in ("percent", "degrees") else _TINY for task in scores}
    return {task: max(least[task], score) for task, score in scores.items()}


def relative_change(scores: Mapping[str, float], reference: Mapping[str, float]) -> float:
    """Computes the mean relative change against reference scores, in percent; above 0 is better.

    100 / T * sum over the T tasks of (+/-)(M - S) / S,    minus where lower is better
    (Polyhistor, arXiv:2210.03265)

    A task whose score and reference are both NaN was not measured (the data has no label for it) and is left out.

    Args:
        scores: Headline score M of each task.
        reference: Reference score S of each task; in the paper, that of single-task full fine-tuning.

    Returns:
        The change; NaN if no task was measured, or if only one of the two scores of a task is NaN (a diverged model).

    Raises:
        ValueError: The tasks differ, are unknown, or there is none; or a reference score is 0.
    """
    if set(scores) != set(reference):
        raise ValueError(
            f"The scores have the tasks {sorted(scores)}, the reference has {sorted(reference)}. Give both for the "
            "same tasks."
        )
    tasks = get_tasks(list(reference))
    zeros = [task.name for task in tasks if reference[task.name] == 0]
    if zeros:
        raise ValueError(f"The reference score of {zeros} is 0, so no relative change exists. Leave these tasks out.")
    measured = [task for task in tasks if not (math.isnan(scores[task.name]) and math.isnan(reference[task.name]))]
    changes = [
        (1 if task.higher_is_better else -1) * (scores[task.name] - reference[task.name]) / reference[task.name]
        for task in measured
    ]
    return 100 * sum(changes) / len(changes) if changes else math.nan
