# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Example images of a finished run: the first images of the split, and the best and worst of each task."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import PeftModel
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from ..data import collate
from ..evaluation import evaluating
from ..hub.record import PREVIEW
from ..inference.grid import draw_grid
from ..inference.paint import paint_row
from ..models.image_processor import DenseImageProcessor
from ..training.files import replacing
from ..training.run_folder import GALLERY


PREVIEWED = 2  # images in predictions.png
BATCH = 6  # images per forward pass
SIDE = 256  # maximum length of the longer side of an image in the gallery, in pixels


def file_name(task: str, index: int) -> str:
    """Name of an image file in the gallery, from a task and the position of the image in the data."""
    return f"{task}_{index}.webp"


def draw_examples(model: PreTrainedModel | PeftModel, data: Dataset, details: Mapping[str, Any], folder: Path) -> None:
    """Writes `predictions.png` and the folder `gallery`, which replaces an older one when it is complete.

    Args:
        model: Dense model, adapted or not. It is left in evaluation mode.
        data: Split that the model was evaluated on, with its transform.
        details: Result of `find_details`; its `examples` name the best and worst images of each task. Without them
            the gallery is empty.
        folder: Folder of the run.

    Raises:
        OSError: A file cannot be written.
    """
    grid = draw_grid(*_predict(model, data, range(min(PREVIEWED, len(data)))))
    with replacing(folder / PREVIEW) as fresh:
        grid.save(fresh, format="png", optimize=True)
    with replacing(folder / GALLERY) as fresh:
        fresh.mkdir()
        _draw_gallery(model, data, details.get("examples", {}), fresh)


def _draw_gallery(
    model: PreTrainedModel | PeftModel, data: Dataset, examples: Mapping[str, Any], folder: Path
) -> None:
    """Writes one file per image and task: the image, its label and its prediction, side by side."""
    tasks: dict[int, list[str]] = {}
    for task, ends in examples.items():
        for entry in ends["best"] + ends["worst"]:
            tasks.setdefault(entry["index"], []).append(task)
    chosen = sorted(tasks)
    for start in range(0, len(chosen), BATCH):
        indices = chosen[start : start + BATCH]
        images, labels, logits = _predict(model, data, indices)
        for i, index in enumerate(indices):
            for task in tasks[index]:
                pixels = paint_row(images[i], task, labels[task][i], logits[task][i])
                strip = Image.fromarray(pixels).reduce(math.ceil(max(images.shape[1:3]) / SIDE))
                strip.save(folder / file_name(task, index), quality=90)


@torch.no_grad()
def _predict(
    model: PreTrainedModel | PeftModel, data: Dataset, indices: Sequence[int]
) -> tuple[np.ndarray, dict[str, Tensor], dict[str, Tensor]]:
    """Returns images `(batch, height, width, 3)` uint8, labels by task and logits by task."""
    batch = collate([data[index] for index in indices])
    with evaluating(model):
        logits = model(batch["pixel_values"].to(next(model.parameters()).device), full_resolution=False).logits
    height, width = batch["pixel_values"].shape[-2:]
    processor = DenseImageProcessor.from_model(model, (height, width))
    return np.stack([processor.paint(image) for image in batch["pixel_values"]]), batch["labels"], logits
