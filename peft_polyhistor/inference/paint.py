# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Predictions and labels as pictures to look at."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ..models.image_processor import IMAGENET_MEAN, IMAGENET_STD
from ..tasks import TASKS
from ..tasks.losses import resize_to_label
from ..tasks.task import Ends, to_bytes
from .strips import split_rows


CAPTION = 14  # pixels


def paint_picture(pixel_values: Tensor) -> np.ndarray:
    """A normalised picture `(3, height, width)` as it was, `(height, width, 3)` uint8."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return to_bytes(pixel_values.cpu().float() * std + mean)


def paint_label(task: str, label: Tensor, ends: Ends | None = None) -> np.ndarray:
    """A label without its batch axis, or a prediction of its form, `(height, width, 3)` uint8; unlabeled is pale.

    Args:
        task: Its name.
        label: As its kind of task says; NaN and infinities are unlabeled.
        ends: Values that are painted black and white, of a task without classes; by default `Task.find_ends`.
    """
    row, label = TASKS[task], label.cpu()
    ends = ends or row.find_ends(label)
    painted = np.empty((*label.shape[-2:], 3), np.uint8)
    for rows in split_rows(painted.shape[0], painted[0].size):
        painted[rows] = row.paint(label[..., rows, :], ends)
    return painted


def paint_prediction(task: str, logits: Tensor, ends: Ends | None = None) -> np.ndarray:
    """What logits without their batch axis predict, `(height, width, 3)` uint8; `ends` as in `paint_label`."""
    return paint_label(task, TASKS[task].predict(logits.detach().cpu()[None])[0], ends)


def paint_over(task: str, label: Tensor, picture: np.ndarray, opacity: float) -> np.ndarray:
    """A picture `(height, width, 3)` uint8 under a label of its size: as `paint_label`, where there is something.

    Background leaves the picture free, and so does 0 in a task of one channel, which is painted in one colour.

    Args:
        task: Its name.
        label: As in `paint_label`.
        picture: uint8.
        opacity: Of what is painted, 0 to 1.
    """
    row, label = TASKS[task], label.cpu()
    painted = paint_label(task, label)
    for rows in split_rows(painted.shape[0], painted[0].size):
        colours, share = row.blend(label[..., rows, :], painted[rows], opacity)
        painted[rows] = (picture[rows] * (1 - share) + colours * share).round()
    return painted


def paint_row(pixel_values: Tensor, labels: Mapping[str, Tensor], logits: Mapping[str, Tensor]) -> np.ndarray:
    """The picture, then label and prediction of every task of the logits, `(height, columns * width, 3)` uint8.

    Args: Those of `draw_grid`, without their batch axis.
    """
    cells = [paint_picture(pixel_values)]
    for task, task_logits in logits.items():
        prediction = resize_to_label(task_logits[None], pixel_values)[0]
        ends = TASKS[task].find_ends(labels[task])  # one for both
        cells += [paint_label(task, labels[task], ends), paint_prediction(task, prediction, ends)]
    return np.concatenate(cells, axis=1)


def draw_grid(pixel_values: Tensor, labels: Mapping[str, Tensor], logits: Mapping[str, Tensor]) -> Image.Image:
    """One row per picture: the picture, then label and prediction of every task, under a line of captions.

    Args:
        pixel_values: Normalised pictures `(batch, 3, height, width)`.
        labels: By task, as in training.
        logits: By task, at any size.
    """
    rows = [paint_row(pixel_values[i], _item(labels, i), _item(logits, i)) for i in range(len(pixel_values))]
    captions = ["picture"] + [f"{task} {kind}" for task in logits for kind in ("label", "prediction")]
    return _caption(np.concatenate(rows), captions)


def _item(by_task: Mapping[str, Tensor], i: int) -> dict[str, Tensor]:
    return {task: values[i] for task, values in by_task.items()}


def _caption(pixels: np.ndarray, captions: Sequence[str]) -> Image.Image:
    height, width = pixels.shape[:2]
    sheet = Image.new("RGB", (width, height + CAPTION), "white")
    sheet.paste(Image.fromarray(pixels), (0, CAPTION))
    draw = ImageDraw.Draw(sheet)
    for i, text in enumerate(captions):
        draw.text((i * width // len(captions) + 2, 1), text, fill="black")
    return sheet
