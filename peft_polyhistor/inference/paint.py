# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Predictions and labels as pictures to look at."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ..data.transforms import IMAGENET_MEAN, IMAGENET_STD
from ..tasks import TASKS
from ..tasks.losses import resize_to_label
from .strips import split_rows


UNLABELED = (224, 224, 192)  # the colour of unlabeled contours in VOC's own pictures
HIGHLIGHT = (230, 60, 40)
CAPTION = 14  # pixels
# Values that are painted black and white, by number of channels: a probability, and a component of a unit vector.
USUAL_RANGES = {1: (0.0, 1.0), 3: (-1.0, 1.0)}
SLACK = 0.01  # by which a rounded value may leave them


def paint_picture(pixel_values: Tensor) -> np.ndarray:
    """A normalised picture `(3, height, width)` as it was, `(height, width, 3)` uint8."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return _to_bytes(pixel_values.cpu().float() * std + mean)


def paint_label(task: str, label: Tensor, value_range: tuple[float, float] | None = None) -> np.ndarray:
    """A label without its batch axis, or a prediction of its form, `(height, width, 3)` uint8; unlabeled is pale.

    Args:
        task: Its name.
        label: Class ids of a task with a palette, else `(channels, height, width)`; NaN and infinities are unlabeled,
            and so are zero vectors.
        value_range: Values that are painted black and white in a task without palette; by default `find_range`.

    Raises:
        ValueError: The task has neither a palette nor one or three channels, so that nothing says how it looks.
    """
    label = label.cpu()
    row = TASKS[task]
    if row.palette:
        colours = np.full((256, 3), UNLABELED, dtype=np.uint8)
        colours[: len(row.palette)] = row.palette
        return colours[label.numpy().astype(np.uint8)]
    low, high = value_range or find_range(task, label)
    painted = np.empty((*label.shape[1:], 3), np.uint8)
    for rows in split_rows(painted.shape[0], painted[0].size):
        values = label[:, rows]
        unlabeled = ~values.isfinite().all(dim=0)
        if row.channels == 3:
            unlabeled |= (values == 0).all(dim=0)
        painted[rows] = _to_bytes((values.nan_to_num() - low) / (high - low))
        painted[rows][unlabeled.numpy()] = UNLABELED
    return painted


def find_range(task: str, label: Tensor) -> tuple[float, float]:
    """The values that `paint_label` paints black and white: `Task.value_range`, which says what `None` stands for.

    Raises:
        ValueError: The task has neither one nor three channels.
    """
    row = TASKS[task]
    if row.channels not in USUAL_RANGES:
        raise ValueError(f"Task '{task}' has {row.channels} channels and no palette. Give its row of TASKS a palette.")
    if row.value_range is not None:
        return row.value_range
    low, high = USUAL_RANGES[row.channels]
    finite = label.isfinite()
    values = label if finite.all() else label[finite]
    if not values.numel() or (low - SLACK <= values.min() and values.max() <= high + SLACK):
        return low, high
    lowest, highest = float(values.min()), float(values.max())
    return lowest, highest if highest > lowest else lowest + 1  # a map of one value is black


def paint_prediction(task: str, logits: Tensor, value_range: tuple[float, float] | None = None) -> np.ndarray:
    """What logits without their batch axis predict, `(height, width, 3)` uint8; `value_range` as in `paint_label`."""
    return paint_label(task, TASKS[task].predict(logits.detach().cpu()[None])[0], value_range)


def paint_over(task: str, label: Tensor, picture: np.ndarray, opacity: float) -> np.ndarray:
    """A picture `(height, width, 3)` uint8 under a label of its size: as `paint_label`, where there is something.

    Class 0 of a task with classes leaves the picture free, and so does 0 in a task of one channel, which is painted in
    one colour.

    Args:
        task: Its name.
        label: As in `paint_label`.
        picture: uint8.
        opacity: Of what is painted, 0 to 1.
    """
    row, label = TASKS[task], label.cpu()
    painted = paint_label(task, label)
    for rows in split_rows(painted.shape[0], painted[0].size):
        colours: np.ndarray = painted[rows]
        share: float | np.ndarray = opacity
        if row.palette:
            share = (label[rows].numpy() > 0)[..., None] * opacity
        elif row.channels == 1:
            share = colours[..., :1] / 255 * opacity
            colours = np.array(HIGHLIGHT)
        painted[rows] = (picture[rows] * (1 - share) + colours * share).round()
    return painted


def paint_row(pixel_values: Tensor, labels: Mapping[str, Tensor], logits: Mapping[str, Tensor]) -> np.ndarray:
    """The picture, then label and prediction of every task of the logits, `(height, columns * width, 3)` uint8.

    Args: Those of `draw_grid`, without their batch axis.
    """
    cells = [paint_picture(pixel_values)]
    for task, task_logits in logits.items():
        prediction = resize_to_label(task_logits[None], pixel_values)[0]
        value_range = None if TASKS[task].palette else find_range(task, labels[task])  # one for both
        painted = paint_label(task, labels[task], value_range), paint_prediction(task, prediction, value_range)
        cells += painted
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


def _to_bytes(values: Tensor) -> np.ndarray:
    return (values * 255).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
