# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The base of metrics that keep sums of whole numbers instead of predictions; `metrics.py` has the metrics."""

import math
import warnings

import torch
from torch import Tensor

from .losses import resize_to_label


class RunningMetric:
    """A metric over pictures whose state is one total per column of `statistics`.

    `len(metric)` is the number of pictures added since the last `compute` or `reset`.

    Args:
        columns: Length of a row of `_counts`.
    """

    def __init__(self, columns: int):
        self._columns = columns + 1  # the last one counts predictions that are not finite
        self._totals: list[int] = []
        self._pictures = 0
        self.reset()

    def __len__(self) -> int:
        return self._pictures

    def _check(self, shape: torch.Size, references: Tensor) -> None:
        """Raises a ValueError for labels that do not suit the metric or predictions of that shape."""
        raise NotImplementedError(f"{type(self).__name__} must define `_check`.")

    def _counts(self, logits: Tensor, references: Tensor) -> Tensor:
        """Whole numbers of each picture, `(batch, columns)` int64, from logits at the label's size."""
        raise NotImplementedError(f"{type(self).__name__} must define `_counts`.")

    def _scores(self, totals: list[int], pictures: int) -> dict[str, float]:
        """Scores from the sum of all rows."""
        raise NotImplementedError(f"{type(self).__name__} must define `_scores`.")

    def _picture_scores(self, counts: list[int]) -> dict[str, float]:
        """Scores of one picture by itself, from its row; NaN where nothing of it is labeled."""
        return self._scores(counts, 1)

    def _class_scores(self, totals: list[int]) -> list[float]:
        """Score of each class from the sum of all rows, NaN for one that is nowhere; empty where there are none."""
        return []

    def _labeled_classes(self, totals: list[int]) -> list[int]:
        """Numbers of the classes that labels hold, from the sum of all rows; empty where there are none."""
        return []

    def statistics(self, predictions: Tensor, references: Tensor) -> Tensor:
        """Counts of each picture, `(batch, columns)` int64, on the device of the predictions.

        Depends on each picture alone and leaves the state as it is. Reads values back from a GPU.

        Args:
            predictions: Logits `(batch, channels, h, w)`, brought to the label's size (bilinear, float32).
            references: Labels of one size for the whole batch.

        Raises:
            ValueError: For predictions or labels of a wrong shape, type or range.
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
        """Adds rows that `statistics` made, here or in another process.

        Raises:
            ValueError: If these are not rows of this metric.
        """
        for row in self._read_rows("update", statistics):
            self._totals = [total + value for total, value in zip(self._totals, row, strict=True)]
            self._pictures += 1

    def _read_rows(self, method: str, statistics: Tensor) -> list[list[int]]:
        if statistics.dtype != torch.int64 or statistics.ndim != 2 or statistics.shape[1] != self._columns:
            raise ValueError(
                f"{type(self).__name__}.{method} got {statistics.dtype} of shape {tuple(statistics.shape)}; it takes "
                f"torch.int64 of shape (pictures, {self._columns}). Pass what `statistics` returned."
            )
        return statistics.tolist()

    def picture_scores(self, statistics: Tensor) -> list[dict[str, float]]:
        """Scores of each picture by itself, from rows that `statistics` made; the state stays as it is.

        NaN where nothing of a picture is labeled, or a prediction for it is not finite.

        Raises:
            ValueError: If these are not rows of this metric.
        """
        scores = []
        for *counts, not_finite in self._read_rows("picture_scores", statistics):
            values = self._picture_scores(counts)
            scores.append(dict.fromkeys(values, math.nan) if not_finite else values)
        return scores

    def class_scores(self) -> list[float]:
        """Score of each class over everything added, which stays; empty for a metric without classes.

        NaN for a class that is neither labeled nor predicted, and for all of them if a prediction was not finite.
        """
        scores = self._class_scores(self._totals[:-1])
        return [math.nan] * len(scores) if self._totals[-1] > 0 else scores

    def labeled_classes(self) -> list[int]:
        """Numbers of the classes that labels hold, over everything added; empty for a metric without classes."""
        return self._labeled_classes(self._totals[:-1])

    def add_batch(self, *, predictions: Tensor, references: Tensor) -> None:
        """Adds a batch of pictures; see `statistics` for shapes and errors."""
        self.update(self.statistics(predictions, references))

    def add(self, *, prediction: Tensor, reference: Tensor) -> None:
        """Adds one picture, given without its batch axis; see `statistics` for shapes and errors."""
        self.add_batch(predictions=torch.as_tensor(prediction)[None], references=torch.as_tensor(reference)[None])

    def compute(self, *, predictions: Tensor | None = None, references: Tensor | None = None) -> dict[str, float]:
        """Scores of everything added, after which the state is empty again.

        A score is NaN if no pixel of any picture has a label for it, and all scores are NaN, with a warning, if any
        prediction was NaN or infinite.

        Args:
            predictions: Optional last batch, as in `add_batch`.
            references: Its labels.

        Raises:
            ValueError: If no picture was added, or only one of the two arguments is given.
        """
        if predictions is not None and references is not None:
            self.add_batch(predictions=predictions, references=references)
        elif predictions is not None or references is not None:
            raise ValueError(f"{type(self).__name__}.compute needs `predictions` and `references`, or neither.")
        if self._pictures == 0:
            raise ValueError(f"{type(self).__name__} holds no picture. Call `add_batch` or `update` before `compute`.")
        scores = self._scores(self._totals[:-1], self._pictures)
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
        """Forgets all pictures."""
        self._totals = [0] * self._columns
        self._pictures = 0

    def merge(self, other: "RunningMetric") -> None:
        """Adds the pictures of another metric of the same kind, which keeps its own.

        Raises:
            ValueError: If the other metric is of another kind or has other classes.
        """
        if type(other) is not type(self) or other._columns != self._columns:
            raise ValueError(
                f"Cannot merge {type(other).__name__} into {type(self).__name__}, or their numbers of classes "
                "differ. Merge metrics that were made alike."
            )
        self._totals = [total + value for total, value in zip(self._totals, other._totals, strict=True)]
        self._pictures += other._pictures
