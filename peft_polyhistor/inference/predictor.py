# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Predictions for pictures of any kind and size, as maps of their own size."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from peft import PeftModel
from PIL import Image
from torch import Tensor

from ..hub.loading import load_with_folder
from ..models.image_processor import FILE, DenseImageProcessor, normalize_image_size
from ..models.multitask import MultiTaskDenseModel
from ..models.multitask_config import MultiTaskDenseConfig
from ..tasks import TASKS, Task
from ..tasks.segmentation import Segmentation
from .images import Picture, open_picture
from .paint import paint_label, paint_over
from .strips import resize_rows, split_rows


@dataclass(frozen=True)
class Prediction:
    """What a model makes of one picture.

    Args:
        picture: RGB, upright as its EXIF says.
        maps: By task, at the size of the picture. Class ids, in the smallest type that holds them, and one channel,
            such as the probability that a pixel is salient, are `(height, width)`; more channels are last, such as
            unit vectors `(height, width, 3)` in the axes of the labels.
    """

    picture: Image.Image
    maps: dict[str, np.ndarray]

    def classes(self, task: str) -> dict[str, float]:
        """The classes found, by name, with the share of the pixels each covers; the largest first.

        Raises:
            ValueError: The task has no classes, or was not predicted.
        """
        row = TASKS[self._known(task)]
        if not isinstance(row, Segmentation):
            raise ValueError(f"Task '{task}' has no classes. Read its map, or paint it.")
        return row.shares(self.maps[task])

    def paint(self, task: str) -> Image.Image:
        """The map as a picture: classes in the task's palette (mode P, pixels are class ids), else RGB or gray.

        Raises:
            ValueError: The task was not predicted, or nothing says how it looks.
        """
        label, row = self.label(task), TASKS[task]
        if not row.palette:
            painted = Image.fromarray(paint_label(task, label))
            return painted.convert("L") if row.channels == 1 else painted
        painted = Image.fromarray(self.maps[task])
        painted.putpalette([channel for colour in row.palette for channel in colour])
        return painted

    def overlay(self, task: str, opacity: float = 0.6) -> Image.Image:
        """The picture under the painted map: class 0 stays free, one channel is a tint.

        Raises:
            ValueError: As in `paint`, or the opacity is not from 0 to 1.
        """
        if not 0 <= opacity <= 1:
            raise ValueError(f"`opacity` must be from 0 (the picture alone) to 1 (the map alone), got {opacity}.")
        return Image.fromarray(paint_over(task, self.label(task), np.asarray(self.picture), opacity))

    def label(self, task: str) -> Tensor:
        """The map in the form of a label, channels first."""
        values = torch.from_numpy(self.maps[self._known(task)])
        if TASKS[task].palette:
            return values
        return values[None] if values.ndim == 2 else values.movedim(2, 0)

    def _known(self, task: str) -> str:
        if task not in self.maps:
            raise ValueError(f"There is no prediction of '{task}'; predicted were {list(self.maps)}.")
        return task


class MultiTaskPredictor:
    """Predicts the tasks of a dense model for pictures: files, URLs, PIL pictures or arrays, of any size.

    Pictures are prepared as for the evaluation of the model, and logits resized once, to the picture's own size: for
    pictures that have the model's size, predictions are those that evaluation scores.

    Note: One predictor serves one thread at a time, as do PEFT's models.

    Args:
        model: A `MultiTaskDenseModel`, adapted or not, as `load` returns it. It stays on its device.
        tasks: Those to predict; `None` for all of the model.
        image_size: Side or (height, width) that pictures are resized to, pixels; `None` for that of its training. Or
            the processor that prepares them.

    Raises:
        TypeError: It is no dense model.
        ValueError: `image_size` is not known, or out of range; or a task is not the model's.
    """

    def __init__(
        self,
        model: MultiTaskDenseModel | PeftModel,
        tasks: Sequence[str] | None = None,
        image_size: int | tuple[int, int] | DenseImageProcessor | None = None,
    ):
        config = getattr(model, "config", None)
        if not isinstance(config, MultiTaskDenseConfig):
            raise TypeError(
                f"A predictor needs a MultiTaskDenseModel, adapted or not, got {type(model).__name__}. Use "
                "peft_polyhistor.load, or put decoders on the encoder."
            )
        size = config.image_size if image_size is None else image_size
        if size is None:
            raise ValueError(
                "The model does not say which size the pictures of its training had. Give image_size=, such as 512."
            )
        self.model = model
        self.tasks = config.choose_tasks(tasks)
        self.processor = size if isinstance(size, DenseImageProcessor) else DenseImageProcessor(size)
        self.image_size = normalize_image_size(self.processor.image_size)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        tasks: Sequence[str] | None = None,
        image_size: int | tuple[int, int] | None = None,
        **kwargs: Any,
    ) -> "MultiTaskPredictor":
        """A predictor of a checkpoint, with the processor that is saved with it unless `image_size` is given.

        `name` and `kwargs` are those of `load`, whose errors it raises.
        """
        model, folder = load_with_folder(name, **kwargs)
        if image_size is None and (folder / FILE).is_file():
            return cls(model, tasks, DenseImageProcessor.from_pretrained(str(folder)))
        return cls(model, tasks, image_size)

    @overload
    def __call__(  # type: ignore[overload-overlap]  # a str is a sequence of str
        self, pictures: Picture, batch_size: int = 8
    ) -> Prediction: ...

    @overload
    def __call__(self, pictures: Sequence[Picture], batch_size: int = 8) -> list[Prediction]: ...

    def __call__(self, pictures: Picture | Sequence[Picture], batch_size: int = 8) -> Prediction | list[Prediction]:
        """Predictions, one per picture; a single one for a picture that is not in a list.

        Args:
            pictures: Paths, URLs, PIL pictures, or uint8 arrays `(height, width)` or `(height, width, 3)`.
            batch_size: Pictures that go through the model together.

        Raises:
            OSError: There is no such file, or the URL cannot be had.
            ValueError: A picture cannot be read, or the batch size is below 1.
        """
        if batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
        if isinstance(pictures, Picture):
            return self._predict([open_picture(pictures)])[0]
        batches = (pictures[i : i + batch_size] for i in range(0, len(pictures), batch_size))
        return [prediction for batch in batches for prediction in self._predict(list(map(open_picture, batch)))]

    @torch.no_grad()
    def _predict(self, pictures: list[Image.Image]) -> list[Prediction]:
        pixel_values = self.processor(pictures)["pixel_values"].to(self.model.device, self.model.dtype)
        training = self.model.training
        self.model.eval()
        logits = self.model(pixel_values, tasks=self.tasks, full_resolution=False).logits
        self.model.train(training)
        return [
            Prediction(picture, read_maps({task: logits[task][row] for task in self.tasks}, picture.size[::-1]))
            for row, picture in enumerate(pictures)
        ]


def read_maps(logits: Mapping[str, Tensor], size: tuple[int, int]) -> dict[str, np.ndarray]:
    """The maps of a `Prediction` from logits `(channels, h, w)` by task, at `size` (height, width).

    Large maps are computed in strips of rows, so that beyond the maps themselves memory does not grow with their size.
    """
    return {task: _read_map(TASKS[task], task_logits[None], size) for task, task_logits in logits.items()}


def _read_map(task: Task, logits: Tensor, size: tuple[int, int]) -> np.ndarray:
    strips = split_rows(size[0], logits.shape[1] * size[1])
    result: np.ndarray | None = None
    for rows in strips:
        values = task.predict(resize_rows(logits, size, rows))[0].cpu()
        if values.is_floating_point():
            values = (values[0] if len(values) == 1 else values.movedim(0, 2)).float()
            kind: np.dtype = np.dtype(np.float32)
        else:
            kind = np.min_scalar_type(task.channels - 1)
        if result is None:
            result = np.empty((*size, *values.shape[2:]), kind)
        result[rows] = values
    assert result is not None
    return result
