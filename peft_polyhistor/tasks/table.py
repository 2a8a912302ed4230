# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The dense tasks, one row each: output channels, loss, label check, prediction, metric, weight, colours."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from ..checks import check_number, check_positive
from .classes import HUMAN_PARTS, VOC_CLASSES, voc_palette
from .losses import (
    balanced_binary_cross_entropy,
    check_binary_labels,
    check_class_labels,
    check_normal_labels,
    count_background,
    count_labeled,
    count_valid,
    cross_entropy,
    normal_loss,
)
from .metrics import MeanAngularError, MeanIoU, SaliencyScores
from .predictions import class_ids, probability, unit_vectors
from .running_metric import RunningMetric


@dataclass(frozen=True)
class Task:
    """A dense task.

    Args:
        name: Key of its predictions and labels; a Python identifier, as modules are named after it.
        channels: Output channels of its decoder.
        loss: `(logits, target)` to a scalar; with `count`, also `(logits, target, count)`.
        check: Called with the task's name, the shape of the logits and the target; raises a ValueError if they do not
            fit. Must not look at values on a GPU.
        predict: Turns logits into predictions of the form that labels have, batch first.
        metric: Makes an empty metric.
        score: Key of `metric().compute()` that stands for the task.
        higher_is_better: Direction of that score.
        loss_weight: Weight of the task in the summed loss, as in the PASCAL-Context protocol.
        unit: Unit of the score.
        class_names: Names of the classes, if the task has classes.
        palette: RGB colour of each class, 0 to 255. Without one, a picture shows one channel in gray and three as
            red, green and blue.
        count: The pixels of a target, a whole number, that the loss divides or weighs by; `None` for other losses.
        value_range: Without a palette, the values that are painted black and white, such as `(0, 10)` of a depth in
            metres; values beyond are painted like the nearer one. `None` takes (0, 1) for one channel, as of a
            probability, and (-1, 1) for three, as of a unit vector; a map that leaves these is painted from its own
            lowest to its own highest value.

    Raises:
        ValueError: For a name, number or palette that cannot be used.
    """

    name: str
    channels: int
    loss: Callable[..., Tensor]
    check: Callable[[str, Sequence[int], Tensor], None]
    predict: Callable[[Tensor], Tensor]
    metric: Callable[[], RunningMetric]
    score: str
    higher_is_better: bool
    loss_weight: float
    unit: str
    class_names: tuple[str, ...] = ()
    palette: tuple[tuple[int, int, int], ...] = ()
    count: Callable[[Tensor], Tensor] | None = None
    value_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.isidentifier():
            raise ValueError(f"The name of a task must be a Python identifier, got {self.name!r}. Use e.g. 'depth'.")
        check_positive("channels", self.channels)
        check_number("loss_weight", self.loss_weight)
        if self.loss_weight <= 0:
            raise ValueError(f"`loss_weight` of task '{self.name}' must be positive, got {self.loss_weight}.")
        if not (isinstance(self.class_names, Sequence) and isinstance(self.palette, Sequence)):
            raise TypeError(f"`class_names` and `palette` of task '{self.name}' must be tuples, empty for none.")
        if len(self.palette) != len(self.class_names):
            raise ValueError(
                f"Task '{self.name}' has {len(self.class_names)} class names and {len(self.palette)} colours. Give "
                "one colour per class name, or neither."
            )
        if self.value_range is not None:
            low, high = self.value_range
            check_number("value_range", low)
            check_number("value_range", high)
            if not low < high:
                raise ValueError(
                    f"`value_range` of task '{self.name}' must be a lower and a higher value, got {self.value_range}."
                )


TASKS: dict[str, Task] = {
    "semseg": Task(
        name="semseg",
        channels=len(VOC_CLASSES),
        loss=cross_entropy,
        check=check_class_labels,
        predict=class_ids,
        metric=partial(MeanIoU, len(VOC_CLASSES)),
        score="mIoU",
        higher_is_better=True,
        loss_weight=1,
        unit="percent",
        class_names=VOC_CLASSES,
        palette=voc_palette(len(VOC_CLASSES)),
        count=count_labeled,
    ),
    "human_parts": Task(
        name="human_parts",
        channels=len(HUMAN_PARTS),
        loss=cross_entropy,
        check=check_class_labels,
        predict=class_ids,
        metric=partial(MeanIoU, len(HUMAN_PARTS)),
        score="mIoU",
        higher_is_better=True,
        loss_weight=2,
        unit="percent",
        class_names=HUMAN_PARTS,
        palette=voc_palette(len(HUMAN_PARTS)),
        count=count_labeled,
    ),
    "saliency": Task(
        name="saliency",
        channels=1,
        loss=balanced_binary_cross_entropy,
        check=check_binary_labels,
        predict=probability,
        metric=SaliencyScores,
        score="mIoU",
        higher_is_better=True,
        loss_weight=5,
        unit="percent",
        count=count_background,
    ),
    "normals": Task(
        name="normals",
        channels=3,
        loss=normal_loss,
        check=check_normal_labels,
        predict=unit_vectors,
        metric=MeanAngularError,
        score="mErr",
        higher_is_better=False,
        loss_weight=10,
        unit="degrees",
        count=count_valid,
    ),
}


def register_task(task: Task) -> None:
    """Adds a row to `TASKS`, after which models, losses, metrics and pictures know the name.

    The datasets of this package have no labels for it: bring your own, and your own transform.

    Raises:
        ValueError: If the name is taken.
    """
    if task.name in TASKS:
        raise ValueError(f"A task named '{task.name}' exists already. Choose a name other than {', '.join(TASKS)}.")
    TASKS[task.name] = task


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


def check_labels(name: str, logits_shape: Sequence[int], target: Tensor) -> None:
    """Checks the labels of a task against the shape of its logits, before its loss.

    Shapes and dtypes are always checked; the range of the values only for labels in CPU memory, as looking at values
    makes the processor wait for a GPU.

    Args:
        name: Name of the task.
        logits_shape: Shape of its logits; the built-in tasks need only `(batch, channels)` of it.
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
    task.check(name, logits_shape, target)


def count_labels(labels: Mapping[str, Tensor], tasks: Sequence[str]) -> dict[str, Tensor]:
    """By task, what its loss counts in its labels; the tasks whose loss counts.

    Where a step has several batches, one after the other or one per process, the mean of these over all of them goes
    to the model with each batch as `counts`. The mean of the losses is then that of one large batch.
    """
    return {task.name: task.count(labels[task.name]) for task in get_tasks(tasks) if task.count is not None}


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
