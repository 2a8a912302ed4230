# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Metrics of scalar maps, such as depth, and of edges; like those of `metrics.py`, they keep sums of integers."""

import math
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor

from .labels import check_binary_labels, check_scalar_labels
from .metrics import count_bins
from .running_metric import RunningMetric


# Errors are in fixed point. A squared error of up to 2**62 is split into two halves of 31 bits, so that rows fit int64
# for images of up to 2**29 pixels.
ERROR_BITS = 31
LIMIT = 2**ERROR_BITS - 1
SMALLEST_STEPS = 2**20  # resolution of an absolute error: steps in the largest value
RATIO = 2**20  # the number 1 in the fixed point of relative errors
RATIO_LIMIT = 1.25
DEFAULT_LARGEST = 2.0**8

EDGE_THRESHOLDS = tuple(step / 100 for step in range(1, 100))


class ScalarErrors(RunningMetric):
    """Errors of a scalar map over all labelled pixels: `{"RMSE": ..., "AbsRel": ..., "delta_1.25": ...}`.

    - RMSE: root of the mean squared error, in the unit of the map.
    - AbsRel: mean of |prediction - label| / label, in percent, over the labels above 0.
    - delta_1.25: percentage of the labels above 0 whose prediction is off by a factor below 1.25.

    (Eigen et al., arXiv:1406.2283, Sec. 4.2.) NaN if no pixel is labelled. Predictions are `(batch, 1, h, w)`;
    references are `(batch, 1, height, width)`, NaN where unlabelled.

    Args:
        largest: Largest magnitude of a label. Errors are rounded to 2**-20 of it and limited to 2**11 times it, with
            a warning; relative errors are limited to 2**11.
        log: Whether predictions are logarithms of values.
    """

    def __init__(self, largest: float = DEFAULT_LARGEST, log: bool = False):
        self.largest, self.log = largest, log
        super().__init__(columns=6)

    @property
    def _step(self) -> float:
        """Step of absolute errors: a power of two, so that values with few binary digits are not rounded."""
        return float(2.0 ** math.ceil(math.log2(self.largest)) / SMALLEST_STEPS)

    def _check(self, shape: torch.Size, references: Tensor) -> None:
        check_scalar_labels("ScalarErrors", shape, references, check_values=True)

    def _counts(self, logits: Tensor, references: Tensor) -> Tensor:
        labeled, positive = ~references.isnan(), references > 0
        # The CPU has float64 on every machine; Apple's GPUs do not.
        device = "cpu" if logits.device.type == "mps" else logits.device
        values = logits.to(device).double()
        values = values.exp() if self.log else values
        truth = references.to(device).double().nan_to_num()
        error = (values - truth).abs()
        steps = (error / self._step).round().clamp(max=LIMIT).long() * labeled.to(device)
        if ((steps == LIMIT) & logits.to(device).isfinite()).any():
            warnings.warn(
                f"ScalarErrors limits errors to {LIMIT * self._step:g}, and some are larger, so the RMSE is too low. "
                "Give the task the range of its labels as `valid`; if it has one, the predictions diverge.",
                stacklevel=3,
            )
        squares = steps * steps
        ratio = error / torch.where(truth > 0, truth, 1.0)
        relative = (ratio * RATIO).round().clamp(max=LIMIT).long() * positive.to(device)
        factor = torch.maximum(values / torch.where(truth > 0, truth, 1.0), truth / values)
        close = (values > 0) & (factor < RATIO_LIMIT) & positive.to(device)
        columns = [labeled, squares >> ERROR_BITS, squares % 2**ERROR_BITS, positive, relative, close]
        return torch.stack([column.flatten(1).sum(dim=1).to(logits.device) for column in columns], dim=1)

    def _scores(self, totals: list[int], images: int) -> dict[str, float]:
        labeled, high, low, positive, relative, close = totals
        squares = (high << ERROR_BITS) + low
        return {
            "RMSE": self._step * math.sqrt(squares / labeled) if labeled else math.nan,
            "AbsRel": 100 * relative / (RATIO * positive) if positive else math.nan,
            "delta_1.25": 100 * close / positive if positive else math.nan,
        }


class EdgeScores(RunningMetric):
    """F-measure of edges at the best threshold of the dataset, in percent: `{"odsF": ...}`.

    At each of 99 thresholds, precision is the share of predicted edge pixels with a labelled edge pixel within the
    tolerance, and recall the share of labelled edge pixels with a predicted one within the tolerance, both over all
    images. odsF is the highest F1 (ODS, Martin et al., PAMI 2004). Unlabelled pixels do not count. NaN if no pixel is
    labelled, and in `image_scores` for an image without edges.

    Note: Unlike the code of the BSDS benchmark, this metric neither thins predictions to lines nor matches pixels one
    to one, so its scores are not comparable with published ones. For those, save the maps and run that code.

    Args:
        tolerance: Distance within which pixels match, as a fraction of the image diagonal.
    """

    def __init__(self, tolerance: float = 0.0075):
        self.tolerance = tolerance
        super().__init__(columns=3 * len(EDGE_THRESHOLDS) + 2)  # the last two count edges and labelled pixels

    def _check(self, shape: torch.Size, references: Tensor) -> None:
        check_binary_labels("EdgeScores", shape, references, check_values=True)

    def _counts(self, logits: Tensor, references: Tensor) -> Tensor:
        edges, labeled = references == 1, references >= 0
        radius = self.tolerance * math.hypot(*references.shape[-2:])
        limits = [math.log(probability / (1 - probability)) for probability in EDGE_THRESHOLDS]
        thresholds = torch.tensor(limits, dtype=logits.dtype, device=logits.device)
        lowest = torch.finfo(logits.dtype).min
        nearby_logits = _highest_within(torch.where(labeled, logits, lowest), radius)
        near_edge = _highest_within(edges.to(logits.dtype), radius) > 0
        columns = [
            _count_above(passing, thresholds, counted)
            for passing, counted in (
                (logits, labeled & near_edge),
                (logits, labeled),
                (nearby_logits, edges),
            )
        ]
        columns += [pixels.flatten(1).sum(dim=1, keepdim=True) for pixels in (edges, labeled)]
        return torch.cat(columns, dim=1)

    def _scores(self, totals: list[int], images: int) -> dict[str, float]:
        *columns, edges, labeled = totals
        if not labeled:
            return {"odsF": math.nan}
        count, best = len(EDGE_THRESHOLDS), 0.0
        parts = (columns[start : start + count] for start in range(0, 3 * count, count))
        for right, predicted, found in zip(*parts, strict=True):
            precision, recall = right / max(predicted, 1), found / max(edges, 1)
            best = max(best, 2 * precision * recall / max(precision + recall, 1e-12))
        return {"odsF": 100 * best}

    def _image_scores(self, counts: list[int]) -> dict[str, float]:
        *_, edges, _ = counts
        return self._scores(counts, 1) if edges else {"odsF": math.nan}


def _count_above(logits: Tensor, thresholds: Tensor, counted: Tensor) -> Tensor:
    """Counts the pixels of each image that lie above each threshold, `(batch, thresholds)`."""
    bins = len(thresholds) + 1
    passed = torch.where(counted, torch.bucketize(logits, thresholds), bins)  # other pixels fill an extra bin
    return count_bins(passed, bins + 1)[:, 1:bins].flip(1).cumsum(dim=1).flip(1)


def _highest_within(values: Tensor, radius: float) -> Tensor:
    """Finds the highest value within `radius` pixels, for maps `(batch, 1, height, width)`."""
    result = values
    height = values.shape[-2]
    for down in range(min(int(radius), height - 1) + 1):
        half = int(math.sqrt(radius**2 - down**2))
        row = F.max_pool2d(values, (1, 2 * half + 1), stride=1, padding=(0, half))
        result = torch.maximum(result, row) if down == 0 else _shifted_maximum(result, row, down)
    return result


def _shifted_maximum(values: Tensor, rows: Tensor, down: int) -> Tensor:
    """Computes the maximum of `values` and of `rows` moved by `down` rows up and down."""
    lowest = torch.finfo(rows.dtype).min
    above = F.pad(rows[..., :-down, :], (0, 0, down, 0), value=lowest)
    below = F.pad(rows[..., down:, :], (0, 0, 0, down), value=lowest)
    return torch.maximum(values, torch.maximum(above, below))
