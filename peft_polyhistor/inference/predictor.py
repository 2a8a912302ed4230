# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Predicts all tasks for images of any source and size."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from peft import PeftModel
from PIL import Image
from torch import Tensor

from ..evaluation import evaluating
from ..hub.loading import load_with_folder
from ..models.image_processor import (
    FILE,
    DenseImageProcessor,
    check_processor,
    images_of,
    is_saved,
    normalize_image_size,
)
from ..models.multitask import MultiTaskDenseModel
from ..models.onload import home_of
from ..tasks import TASKS
from ..tasks.kinds.segmentation import Segmentation
from .images import ImageSource, open_image
from .paint import paint_label, paint_over
from .strips import resize_rows, split_rows


@dataclass(frozen=True)
class Prediction:
    """Predictions of a model for one image.

    Args:
        image: The image, RGB, turned upright according to its EXIF orientation.
        maps: Maps by task, at the size of the image. Class ids (in the smallest dtype that holds them) and values of
            one channel, such as a probability, are `(height, width)`; unit vectors are `(height, width, 3)`, in the
            axes of the labels.
    """

    image: Image.Image
    maps: dict[str, np.ndarray]

    def classes(self, task: str) -> dict[str, float]:
        """Computes the fraction of the pixels that each predicted class covers, by name, the largest first.

        Raises:
            ValueError: The task has no classes, or was not predicted.
        """
        row = TASKS[self._known(task)]
        if not isinstance(row, Segmentation):
            raise ValueError(f"Task '{task}' has no classes. Read `maps['{task}']`, or paint it.")
        return row.shares(self.maps[task])

    def paint(self, task: str) -> Image.Image:
        """Paints a map: class ids with the palette of the task (mode P), other values as RGB or grey.

        Raises:
            ValueError: The task was not predicted.
        """
        label, row = self.label(task), TASKS[task]
        if not row.palette:
            painted = Image.fromarray(paint_label(task, label))
            return painted.convert("L") if row.channels == 1 else painted
        painted = Image.fromarray(self.maps[task])
        painted.putpalette([channel for colour in row.palette for channel in colour])
        return painted

    def overlay(self, task: str, opacity: float = 0.6) -> Image.Image:
        """Lays the painted map over the image; the background class is transparent, and one channel is a tint.

        Raises:
            ValueError: The task was not predicted, or `opacity` is not from 0 to 1.
        """
        if not 0 <= opacity <= 1:
            raise ValueError(f"`opacity` must be from 0 (only the image) to 1 (only the map), got {opacity}.")
        return Image.fromarray(paint_over(task, self.label(task), np.asarray(self.image), opacity))

    def label(self, task: str) -> Tensor:
        """Converts the map to the form of a target, channels first."""
        values = torch.from_numpy(self.maps[self._known(task)])
        if TASKS[task].palette:
            return values
        return values[None] if values.ndim == 2 else values.movedim(2, 0)

    def _known(self, task: str) -> str:
        if task not in self.maps:
            raise ValueError(f"There is no prediction of '{task}'. Choose one of {list(self.maps)}.")
        return task


class MultiTaskPredictor:
    """Predicts the tasks of a dense model for images of any size: files, URLs, PIL images or arrays.

    Images are preprocessed as in evaluation, and logits are resized once, to the original size. For images that have
    the size of the model, the predictions are those that evaluation scores.

    Note: A predictor serves one thread at a time, like PEFT's models.

    Args:
        model: A `MultiTaskDenseModel`, adapted or not, e.g. from `load`. It stays on its device.
        tasks: Tasks to predict; `None` for all tasks of the model.
        image_size: Side or (height, width) in pixels to which images are resized; `None` for the size used in
            training.
        processor: Image processor in place of `image_size`. With neither, each call prepares images as in the
            training of the adapter that is active.

    Raises:
        TypeError: `model` is no dense model, or `processor` is of another class.
        ValueError: `image_size` is unknown or out of range, `processor` is given too, or the model does not have a
            task.
    """

    def __init__(
        self,
        model: MultiTaskDenseModel | PeftModel,
        tasks: Sequence[str] | None = None,
        image_size: int | tuple[int, int] | None = None,
        processor: DenseImageProcessor | None = None,
    ):
        _check_one(image_size, processor)
        if processor is not None:
            check_processor(processor)
        images_of(model)  # raises its error for other models
        self.model = model
        self.tasks = model.config.choose_tasks(tasks)
        own = processor or DenseImageProcessor.from_model(model, image_size)  # raises its error for an unknown size
        self._given = None if processor is None and image_size is None else own

    @property
    def processor(self) -> DenseImageProcessor:
        """The given image processor, or that of the active adapter."""
        return self._given or DenseImageProcessor.from_model(self.model)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels to which images are resized."""
        return normalize_image_size(self.processor.image_size)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        tasks: Sequence[str] | None = None,
        image_size: int | tuple[int, int] | None = None,
        processor: DenseImageProcessor | None = None,
        **kwargs: Any,
    ) -> "MultiTaskPredictor":
        """Creates a predictor from a checkpoint, with its saved image processor unless `processor` is given.

        A size replaces that of the saved processor, whose mean and standard deviation stay. `name` and `kwargs` are
        passed to `load`, which raises its own errors. A saved processor counts as given: for an adapter that is added
        later, create another predictor.
        """
        _check_one(image_size, processor)
        model, folder = load_with_folder(name, **kwargs)
        if processor is not None or not is_saved(folder / FILE):
            return cls(model, tasks, image_size, processor)
        saved = DenseImageProcessor.from_pretrained(str(folder))
        size = saved.image_size if image_size is None else image_size
        return cls(model, tasks, processor=DenseImageProcessor(size, saved.image_mean, saved.image_std))

    @overload
    def __call__(  # type: ignore[overload-overlap]  # a str is a sequence of str
        self, images: ImageSource, batch_size: int = 8
    ) -> Prediction: ...

    @overload
    def __call__(self, images: Sequence[ImageSource], batch_size: int = 8) -> list[Prediction]: ...

    def __call__(
        self, images: ImageSource | Sequence[ImageSource], batch_size: int = 8
    ) -> Prediction | list[Prediction]:
        """Predicts a list of images, or a single one.

        Args:
            images: Paths, URLs, PIL images, or uint8 arrays `(height, width)` or `(height, width, 3)`.
            batch_size: Number of images in one forward pass.

        Raises:
            OSError: There is no such file, or the URL cannot be downloaded.
            TypeError: An image, or the list of them, has another type.
            ValueError: An image cannot be read, `batch_size` is below 1, or the model predicts NaN or infinite values.
        """
        if batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
        if not isinstance(images, Sequence) or isinstance(images, str | bytes | bytearray):
            return self._predict([open_image(images)])[0]
        batches = (images[i : i + batch_size] for i in range(0, len(images), batch_size))
        return [prediction for batch in batches for prediction in self._predict(list(map(open_image, batch)))]

    @torch.no_grad()
    def _predict(self, images: list[Image.Image]) -> list[Prediction]:
        pixel_values = self.processor(images)["pixel_values"].to(*home_of(self.model))
        with evaluating(self.model):
            logits = self.model(pixel_values, tasks=self.tasks, full_resolution=False).logits
        for task in self.tasks:
            _check_finite(task, logits[task])
        return [
            Prediction(image, {task: _read_map(task, logits[task][row : row + 1], image.size) for task in self.tasks})
            for row, image in enumerate(images)
        ]


def _check_one(image_size: Any, processor: Any) -> None:
    if image_size is not None and processor is not None:
        raise ValueError(
            f"Got image_size={image_size} and a processor, which has a size of its own. Give one of the two, such as "
            "DenseImageProcessor(image_size, image_mean, image_std)."
        )


def _check_finite(task: str, values: Tensor) -> None:
    count = int((~values.isfinite()).sum())
    if count:
        how = "Its training diverged: train it with a lower learning rate."
        if values.dtype != torch.float32:
            how = f"{values.dtype} may be too narrow for it: load it in float32."
        raise ValueError(
            f"{count} of {values.numel()} values that the model predicts for '{task}' are NaN or infinite. {how}"
        )


def _read_map(name: str, logits: Tensor, size: tuple[int, int]) -> np.ndarray:
    """Predicts the map of a task at `size` (width, height) from logits `(1, channels, h, w)`.

    Large maps are computed in strips of rows, so the memory beyond the map itself has a bound.
    """
    task, (width, height) = TASKS[name], size
    result: np.ndarray | None = None
    for rows in split_rows(height, logits.shape[1] * width):
        values = task.predict(resize_rows(logits, (height, width), rows))[0].cpu()
        if values.is_floating_point():
            _check_finite(name, values)  # the exponential of a finite logit may be infinite
            values = (values[0] if len(values) == 1 else values.movedim(0, 2)).float()
            kind: np.dtype = np.dtype(np.float32)
        else:
            kind = np.min_scalar_type(task.channels - 1)
        if result is None:
            result = np.empty((height, width, *values.shape[2:]), kind)
        result[rows] = values.numpy()
    assert result is not None
    return result
