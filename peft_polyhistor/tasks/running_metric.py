# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Base class of metrics that keep sums of integers instead of predictions; the metrics are in `metrics.py`."""

import math
import warnings
from typing import Any

import torch
from torch import Tensor

from .losses import resize_to_label


class RunningMetric:
    """A metric over images whose state is one total per column of `statistics`.

    `len(metric)` is the number of images added since the last `compute` or `reset`.

    Args:
        columns: Length of a row of `_counts`.
    """

    def __init__(self, columns: int):
        self._columns = columns + 1  # the last column counts predictions that are not finite
        self._totals = [0] * self._columns
        self._images = 0

    def __len__(self) -> int:
        return self._images

    def _check(self, shape: torch.Size, references: Tensor) -> None:
        """Raises ValueError if the labels suit neither the metric nor predictions of that shape."""
        raise NotImplementedError(f"{type(self).__name__} must define `_check`.")

    def _counts(self, logits: Tensor, references: Tensor) -> Tensor:
        """Counts for each image, `(batch, columns)` int64, from logits at the size of the label."""
        raise NotImplementedError(f"{type(self).__name__} must define `_counts`.")

    def _scores(self, totals: list[int], images: int) -> dict[str, float]:
        """Computes the scores from the sum of all rows and the number of images."""
        raise NotImplementedError(f"{type(self).__name__} must define `_scores`.")

    def _image_scores(self, counts: list[int]) -> dict[str, float]:
        """Computes the scores of a single image from its row; NaN if it is unlabelled."""
        return self._scores(counts, 1)

    def _class_scores(self, totals: list[int]) -> list[float]:
        """Computes the score of each class from the sum of all rows; empty for a metric without classes."""
        return []

    def _labeled_classes(self, totals: list[int]) -> list[int]:
        """Finds the numbers of the classes that occur in labels; empty for a metric without classes."""
        return []

    def statistics(self, predictions: Tensor, references: Tensor) -> Tensor:
        """Counts for each image, `(batch, columns)` int64 on the device of the predictions.

        A row depends on its image only, and the state of the metric does not change. Reads values back from a GPU.

        Args:
            predictions: Logits `(batch, channels, h, w)`, which are resized to the label (bilinear, float32).
            references: Labels of one size for the whole batch.

        Raises:
            ValueError: Predictions or labels have a wrong shape, dtype or range.
        """
        predictions, references = torch.as_tensor(predictions).detach(), torch.as_tensor(references)
        if predictions.ndim != 4:
            raise ValueError(
                f"Predictions of {type(self).__name__} have shape {tuple(predictions.shape)}; they must be logits of "
                "shape (batch, channels, h, w). Pass the model's output, before any argmax or threshold."
            )
        self._check(predictions.shape, references)
        logits = resize_to_label(predictions.contiguous(), references)  # rounding depends on the memory format
        not_finite = (~logits.isfinite()).flatten(1).sum(dim=1, keepdim=True)
        return torch.cat([self._counts(logits, references), not_finite], dim=1)

    def update(self, statistics: Tensor) -> None:
        """Adds rows from `statistics`, of this or another process.

        Raises:
            ValueError: The tensor does not hold rows of this metric.
        """
        for row in self._read_rows("update", statistics):
            self._totals = [total + value for total, value in zip(self._totals, row, strict=True)]
            self._images += 1

    def _read_rows(self, method: str, statistics: Tensor) -> list[list[int]]:
        if statistics.dtype != torch.int64 or statistics.ndim != 2 or statistics.shape[1] != self._columns:
            raise ValueError(
                f"{type(self).__name__}.{method} got {statistics.dtype} of shape {tuple(statistics.shape)}; it takes "
                f"torch.int64 of shape (images, {self._columns}). Pass the result of `statistics`."
            )
        return statistics.tolist()

    def image_scores(self, statistics: Tensor) -> list[dict[str, float]]:
        """Computes the scores of each single image from rows of `statistics`; the state does not change.

        An image scores NaN if it is unlabelled or a prediction for it is not finite.

        Raises:
            ValueError: The tensor does not hold rows of this metric.
        """
        scores = []
        for *counts, not_finite in self._read_rows("image_scores", statistics):
            values = self._image_scores(counts)
            scores.append(dict.fromkeys(values, math.nan) if not_finite else values)
        return scores

    def class_scores(self) -> list[float]:
        """Computes the score of each class over all images added; the state does not change.

        Empty for a metric without classes. NaN for a class that is neither labelled nor predicted, and for all
        classes if a prediction was not finite.
        """
        scores = self._class_scores(self._totals[:-1])
        return [math.nan] * len(scores) if self._totals[-1] > 0 else scores

    def labeled_classes(self) -> list[int]:
        """Finds the numbers of the classes that occur in labels; empty for a metric without classes."""
        return self._labeled_classes(self._totals[:-1])

    def add_batch(self, *, predictions: Tensor, references: Tensor) -> None:
        """Adds a batch of images; see `statistics` for shapes and errors."""
        self.update(self.statistics(predictions, references))

    def add(self, *, prediction: Tensor, reference: Tensor) -> None:
        """Adds one image without a batch axis; see `statistics` for shapes and errors."""
        self.add_batch(predictions=torch.as_tensor(prediction)[None], references=torch.as_tensor(reference)[None])

    def compute(self, *, predictions: Tensor | None = None, references: Tensor | None = None) -> dict[str, float]:
        """Computes the scores of all images added, and resets the metric.

        A score is NaN if no pixel is labelled for it. All scores are NaN, with a warning, if a prediction was NaN or
        infinite.

        Args:
            predictions: Optional last batch, as in `add_batch`.
            references: Labels of the last batch.

        Raises:
            ValueError: No image was added, or only one of the arguments is given.
        """
        if predictions is not None and references is not None:
            self.add_batch(predictions=predictions, references=references)
        elif predictions is not None or references is not None:
            raise ValueError(f"{type(self).__name__}.compute needs `predictions` and `references`, or neither.")
        if self._images == 0:
            raise ValueError(f"{type(self).__name__} holds no image. Call `add_batch` or `update` before `compute`.")
        scores = self._scores(self._totals[:-1], self._images)
        if self._totals[-1] > 0:
            warnings.warn(
                f"{type(self).__name__}: {self._totals[-1]} predicted values are NaN or infinite, so the scores are "
                "NaN. The model diverged; lower the learning rate or use a wider number format.",
                RuntimeWarning,
                stacklevel=2,
            )
            scores = dict.fromkeys(scores, math.nan)
        self.reset()
        return scores

    def reset(self) -> None:
        """Removes all images from the metric."""
        self._totals = [0] * self._columns
        self._images = 0

    def merge(self, other: "RunningMetric") -> None:
        """Adds the images of another metric of the same kind, which does not change.

        Raises:
            ValueError: The other metric is of another kind or has other settings.
        """
        if type(other) is not type(self) or other._settings() != self._settings():
            raise ValueError(
                f"Cannot merge {type(other).__name__} into {type(self).__name__}: the settings are "
                f"{other._settings()} and {self._settings()}. Merge metrics with equal settings."
            )
        self._totals = [total + value for total, value in zip(self._totals, other._totals, strict=True)]
        self._images += other._images

    def _settings(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_totals", "_images")}
