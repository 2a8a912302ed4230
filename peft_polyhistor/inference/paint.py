# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Paints predictions and labels as images."""

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


CAPTION = 14  # height in pixels


def paint_image(pixel_values: Tensor) -> np.ndarray:
    """Undoes the normalisation of an image `(3, height, width)`; returns `(height, width, 3)` uint8."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return to_bytes(pixel_values.cpu().float() * std + mean)


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


def paint_row(pixel_values: Tensor, labels: Mapping[str, Tensor], logits: Mapping[str, Tensor]) -> np.ndarray:
    """Paints image, label and prediction side by side, `(height, columns * width, 3)` uint8.

    Takes the arguments of `draw_grid` without a batch axis.
    """
    cells = [paint_image(pixel_values)]
    for task, task_logits in logits.items():
        prediction = resize_to_label(task_logits[None], pixel_values)[0]
        ends = TASKS[task].find_ends(labels[task])  # shared by label and prediction
        cells += [paint_label(task, labels[task], ends), paint_prediction(task, prediction, ends)]
    return np.concatenate(cells, axis=1)


def draw_grid(pixel_values: Tensor, labels: Mapping[str, Tensor], logits: Mapping[str, Tensor]) -> Image.Image:
    """Draws one row per image, with the image and the label and prediction of every task, below a line of captions.

    Args:
        pixel_values: Normalised images `(batch, 3, height, width)`.
        labels: Targets by task.
        logits: Logits by task, at any size.
    """
    rows = [paint_row(pixel_values[i], _item(labels, i), _item(logits, i)) for i in range(len(pixel_values))]
    captions = ["image"] + [f"{task} {kind}" for task in logits for kind in ("label", "prediction")]
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
