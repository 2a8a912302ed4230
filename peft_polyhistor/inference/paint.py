# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Paints predictions and labels as images."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..tasks import TASKS
from ..tasks.losses import resize_to_label
from ..tasks.task import Ends
from .strips import split_rows


def paint_label(task: str, label: Tensor, ends: Ends | None = None) -> np.ndarray:
    """Paints a label or prediction as `(height, width, 3)` uint8; unlabelled pixels are pale.

    Args:
        task: Name of the task.
        label: Target or prediction of the task, without a batch axis; NaN and infinities are unlabelled.
        ends: Values that are painted black and white in a task without classes; by default `Task.find_ends`.
    """
    row, label = TASKS[task], label.cpu()
    ends = ends or row.find_ends(label)
    painted = np.empty((*label.shape[-2:], 3), np.uint8)
    for rows in split_rows(painted.shape[0], painted[0].size):
        painted[rows] = row.paint(label[..., rows, :], ends)
    return painted


def paint_prediction(task: str, logits: Tensor, ends: Ends | None = None) -> np.ndarray:
    """Paints the prediction of logits without a batch axis, like `paint_label`."""
    return paint_label(task, TASKS[task].predict(logits.detach().cpu()[None])[0], ends)


def paint_over(task: str, label: Tensor, image: np.ndarray, opacity: float) -> np.ndarray:
    """Lays a painted label over an image `(height, width, 3)` uint8 of the same size.

    The background class is transparent, and so is the value 0 in a task of one channel, which is painted as a tint.

    Args:
        task: Name of the task.
        label: Target or prediction of the task, without a batch axis.
        image: RGB image below the label.
        opacity: Opacity of the label, 0 to 1.
    """
    row, label = TASKS[task], label.cpu()
    painted = paint_label(task, label)
    for rows in split_rows(painted.shape[0], painted[0].size):
        colours, share = row.blend(label[..., rows, :], painted[rows], opacity)
        painted[rows] = (image[rows] * (1 - share) + colours * share).round()
    return painted


def paint_pair(task: str, label: Tensor, logits: Tensor, size: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Paints a label and the prediction of logits with the same colours, both without a batch axis.

    `size` is the (height, width) of the prediction.
    """
    ends = TASKS[task].find_ends(label)
    prediction = resize_to_label(logits[None], torch.empty(1, *size))[0]
    return paint_label(task, label, ends), paint_prediction(task, prediction, ends)


def paint_row(image: np.ndarray, task: str, label: Tensor, logits: Tensor) -> np.ndarray:
    """Paints image, label and prediction side by side, `(height, 3 * width, 3)` uint8.

    Args:
        image: RGB image `(height, width, 3)` uint8.
        task: Name of the task.
        label: Target, without a batch axis.
        logits: Logits without a batch axis, at any size.
    """
    return np.concatenate([image, *paint_pair(task, label, logits, image.shape[:2])], axis=1)
