# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The pictures that a finished run leaves: the first of the split, and the best and worst of each task."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from atomic import replace_file, replace_folder
from datasets import Dataset
from PIL import Image
from torch import Tensor, nn

from peft_polyhistor.data import collate
from peft_polyhistor.hub.record import PREVIEW
from peft_polyhistor.inference.paint import draw_grid, paint_row


GALLERY = "gallery"  # a folder of the run's
BATCH = 6  # pictures that are predicted together
SIDE = 256  # pixels, at most, of a picture of the gallery


def file_name(task: str, index: int) -> str:
    """Of a picture in the gallery: its task, and its place in the data."""
    return f"{task}_{index}.webp"


def draw_pictures(model: nn.Module, data: Dataset, details: Mapping, folder: Path) -> None:
    """Writes predictions.png and the gallery.

    Args:
        model: The dense model.
        data: What it was scored on, with its transform.
        details: As in details.py; a state of an older version has none, and gets an empty gallery.
        folder: Of the run.
    """
    grid = draw_grid(*_predict(model, data, range(min(BATCH, len(data)))))
    replace_file(folder / PREVIEW, partial(grid.save, format="png"))
    replace_folder(folder / GALLERY, partial(_draw_gallery, model, data, details.get("pictures", {})))


def _draw_gallery(model: nn.Module, data: Dataset, pictures: Mapping[str, Mapping], folder: Path) -> None:
    """One file per picture and task: the picture, its label and its prediction, side by side."""
    tasks: dict[int, list[str]] = {}
    for task, ends in pictures.items():
        for entry in ends["best"] + ends["worst"]:
            tasks.setdefault(entry["index"], []).append(task)
    chosen = sorted(tasks)
    for start in range(0, len(chosen), BATCH):
        indices = chosen[start : start + BATCH]
        pixel_values, labels, logits = _predict(model, data, indices)
        for i, index in enumerate(indices):
            for task in tasks[index]:
                pixels = paint_row(pixel_values[i], {task: labels[task][i]}, {task: logits[task][i]})
                strip = Image.fromarray(pixels).reduce(math.ceil(max(pixel_values.shape[-2:]) / SIDE))
                strip.save(folder / file_name(task, index), quality=90)


@torch.no_grad()
def _predict(model: nn.Module, data: Dataset, indices: Sequence[int]) -> tuple[Tensor, dict, dict]:
    """Pictures, labels by task and logits by task."""
    batch = collate([data[index] for index in indices])
    model.eval()
    logits = model(batch["pixel_values"].to(model.device), full_resolution=False).logits
    return batch["pixel_values"], batch["labels"], logits
