# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Metrics of the dense tasks, which keep sums instead of predictions.

A metric first turns each image into a row of integers (`statistics`), then adds up rows (`update`). Fractions and
angles enter the rows in fixed point, so the sums are exact: for the same logits, scores are bit-identical at any
order, batch size and number of processes. With several processes, gather the rows, which drops padded duplicates:

    rows = metric.statistics(predictions, references)
    metric.update(accelerator.gather_for_metrics(rows))

`height` and `width` are those of the label, in pixels. `evaluate_metric.EvaluateMetric` wraps a metric for code that
expects an `evaluate.Metric`.

Note: On a CPU with one thread, PyTorch resizes large maps with another kernel, which rounds differently.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .labels import check_binary_labels, check_class_labels, check_normal_labels
from .losses import IGNORE_INDEX
from .running_metric import RunningMetric


# The number 1 in fixed point: a resolution of 2.3e-10 per image (fractions) or pixel (radians). Rows fit int64 for
# images of up to 2**29 pixels; the totals are unbounded Python integers.
ONE = 2**32

ANGLE_BINS = 720  # bins of a quarter of a degree

# Quotients, as repeated addition of 0.05 drifts and the comparison is strict.
SALIENCY_THRESHOLDS = tuple(step / 20 for step in range(4, 19))


class MeanIoU(RunningMetric):
    """Mean intersection over union, in percent: `{"mIoU": ...}`.

    Intersections and unions are summed over all images, and the quotients averaged over all classes, background
    included. A class that is neither labelled nor predicted counts 0 here, and is left out in `image_scores`. NaN if
    no pixel is labelled. `class_scores` are the quotients, in percent. Predictions are logits
    `(batch, num_classes, h, w)`, references are class ids `(batch, height, width)`.

    Args:
        num_classes: Number of classes.
        ignore_index: Label of pixels that do not count.

    Raises:
        ValueError: `num_classes` is below 1.
    """

    def __init__(self, num_classes: int, ignore_index: int = IGNORE_INDEX):
        if num_classes < 1:
            raise ValueError(f"`num_classes` must be at least 1, got {num_classes}.")
        self.num_classes, self.ignore_index = num_classes, ignore_index
        super().__init__(columns=3 * num_classes)

    def _check(self, shape: torch.Size, references: Tensor) -> None:
        if shape[1] != self.num_classes:
            raise ValueError(
                f"Predictions of MeanIoU have {shape[1]} channels, but the metric has {self.num_classes} classes. "
                f"Create it with `MeanIoU({shape[1]})`."
            )
        check_class_labels("MeanIoU", shape, references, check_values=True, ignore_index=self.ignore_index)

    def _counts(self, logits: Tensor, references: Tensor) -> Tensor:
        batch, classes = logits.shape[:2]
        # Ignored pixels fill an extra row, which is then dropped.
        labels = references.long()
        labels = torch.where(labels == self.ignore_index, classes, labels)
        confusion = count_bins(labels * classes + logits.argmax(dim=1), (classes + 1) * classes)
        confusion = confusion.view(batch, classes + 1, classes)[:, :classes]  # (batch, labelled, predicted)
        intersections = confusion.diagonal(dim1=1, dim2=2)
        labeled = confusion.sum(dim=2)
        unions = confusion.sum(dim=1) + labeled - intersections
        return torch.cat([intersections, unions, labeled], dim=1)

    def _scores(self, totals: list[int], images: int) -> dict[str, float]:
        present = [iou for iou in self._ious(totals) if not math.isnan(iou)]
        return {"mIoU": 100 * sum(present) / self.num_classes if present else math.nan}

    def _image_scores(self, counts: list[int]) -> dict[str, float]:
        present = [iou for iou in self._ious(counts) if not math.isnan(iou)]
        return {"mIoU": 100 * sum(present) / len(present) if present else math.nan}

    def _labeled_classes(self, totals: list[int]) -> list[int]:
        return [number for number, pixels in enumerate(totals[2 * self.num_classes :]) if pixels]

    def _class_scores(self, totals: list[int]) -> list[float]:
        return [100 * iou for iou in self._ious(totals)]

    def _ious(self, totals: list[int]) -> list[float]:
        """Computes the IoU of each class; NaN for a class that is neither labelled nor predicted."""
        pairs = zip(totals[: self.num_classes], totals[self.num_classes : 2 * self.num_classes], strict=True)
        return [intersection / union if union else math.nan for intersection, union in pairs]


class SaliencyScores(RunningMetric):
    """Foreground scores at the best of 15 thresholds, in percent: `{"mIoU": ..., "maxF": ...}`.

    A pixel is foreground if its probability is strictly greater than the threshold: 0.20, 0.25 ... 0.90. Logits are
    compared with the logits of the thresholds, so the rounding of a sigmoid does not matter.

    - mIoU: mean foreground IoU over the images; 1 for an image if label and prediction are both empty.
    - maxF: F1 of the mean precision and the mean recall over the images. As in the protocol's published evaluation
      code, the precision is 0 without predicted foreground, and the recall is 0 without labelled foreground.

    In `image_scores`, each image has its own best threshold, and an image without foreground scores NaN. Images
    without a labelled pixel do not count; NaN if there are no others.

    Predictions are logits `(batch, 1, h, w)`, references are 0, 1 or -1 (unlabelled) in floating point,
    `(batch, 1, height, width)`.
    """

    def __init__(self) -> None:
        # The last two columns count the foreground, and the image if it is labelled.
        super().__init__(columns=3 * len(SALIENCY_THRESHOLDS) + 2)

    def _check(self, shape: torch.Size, references: Tensor) -> None:
        check_binary_labels("SaliencyScores", shape, references, check_values=True)

    def _counts(self, logits: Tensor, references: Tensor) -> Tensor:
        limits = [math.log(probability / (1 - probability)) for probability in SALIENCY_THRESHOLDS]
        thresholds = torch.tensor(limits, dtype=logits.dtype, device=logits.device)
        # (batch, 1, height, width): number of thresholds below the logit, 0 to 15
        passed = torch.bucketize(logits, thresholds)
        bins = len(thresholds) + 1
        # Unlabelled pixels fill an extra row, which is then dropped.
        labels = torch.where(references < 0, 2, references.long())
        counts = count_bins(labels * bins + passed, 3 * bins).view(len(logits), 3, bins)[:, :2]
        # The pixels of a bin and of all bins above it pass a threshold.
        positives = counts.flip(2).cumsum(dim=2).flip(2)[:, :, 1:]  # (batch, label, thresholds)
        false_positives, true_positives = positives.unbind(dim=1)
        foreground = counts[:, 1].sum(dim=1, keepdim=True).expand_as(true_positives)
        labeled = (counts.flatten(1).sum(dim=1, keepdim=True) > 0).long()
        iou = _fixed_point_ratio(true_positives, foreground + false_positives, empty=ONE) * labeled
        precision = _fixed_point_ratio(true_positives, true_positives + false_positives, empty=0)
        recall = _fixed_point_ratio(true_positives, foreground, empty=0)
        return torch.cat([iou, precision, recall, foreground[:, :1], labeled], dim=1)

    def _scores(self, totals: list[int], images: int) -> dict[str, float]:
        count, whole = len(SALIENCY_THRESHOLDS), ONE * totals[-1]
        if not whole:
            return {"mIoU": math.nan, "maxF": math.nan}
        ious, precisions, recalls = totals[:count], totals[count : 2 * count], totals[2 * count : -2]
        f1s = [2 * p * r / (max(p + r, 1) * whole) for p, r in zip(precisions, recalls, strict=True)]
        return {"mIoU": 100 * max(ious) / whole, "maxF": 100 * max(f1s)}

    def _image_scores(self, counts: list[int]) -> dict[str, float]:
        scores = self._scores(counts, 1)
        return scores if counts[-2] else dict.fromkeys(scores, math.nan)


class MeanAngularError(RunningMetric):
    """Angles between predicted and labelled normals over all valid pixels, in degrees: `{"mErr": ...}`.

    mErr is the mean. With `limits`, `median` is the median, to a quarter of a degree, and e.g. `within_11.25` the
    percentage of pixels with an angle below 11.25 degrees. NaN if no pixel is valid. Predictions are vectors of any
    length `(batch, 3, h, w)`; a zero vector has no direction and counts as 90 degrees. References are unit vectors,
    zero where unlabelled, `(batch, 3, height, width)`.

    Args:
        limits: Angles in degrees.
    """

    def __init__(self, limits: Sequence[float] = ()) -> None:
        self.limits = tuple(limits)
        super().__init__(columns=2 + (len(self.limits) + ANGLE_BINS if limits else 0))

    def _check(self, shape: torch.Size, references: Tensor) -> None:
        check_normal_labels("MeanAngularError", shape, references, check_values=True)

    def _counts(self, logits: Tensor, references: Tensor) -> Tensor:
        valid = (references != 0).any(dim=1)
        # The CPU has float64 on every machine; Apple's GPUs do not.
        device = "cpu" if logits.device.type == "mps" else logits.device
        angles = _angles(logits.to(device), references.to(device))
        fixed = (angles * ONE).round().long().to(logits.device)
        columns = [(fixed * valid).flatten(1).sum(dim=1), valid.flatten(1).sum(dim=1)]
        if not self.limits:
            return torch.stack(columns, dim=1)
        degrees = angles.rad2deg().to(valid.device)
        columns += [((degrees < limit) & valid).flatten(1).sum(dim=1) for limit in self.limits]
        bins = (degrees * (ANGLE_BINS / 180)).long().clamp(0, ANGLE_BINS - 1)  # NaN becomes any integer
        # Invalid pixels fill an extra bin, which is then dropped.
        histogram = count_bins(torch.where(valid, bins, ANGLE_BINS), ANGLE_BINS + 1)[:, :-1]
        return torch.cat([torch.stack(columns, dim=1), histogram], dim=1)

    def _scores(self, totals: list[int], images: int) -> dict[str, float]:
        angles, valid, *rest = totals
        scores = {"mErr": math.degrees(angles / (ONE * valid)) if valid else math.nan}
        if self.limits:
            shares, histogram = rest[: len(self.limits)], rest[len(self.limits) :]
            scores["median"] = _median_bin(histogram) * 180 / ANGLE_BINS
            for limit, count in zip(self.limits, shares, strict=True):
                scores[f"within_{limit:g}"] = 100 * count / valid if valid else math.nan
        return scores


def _median_bin(histogram: Sequence[int]) -> float:
    """Computes the median in units of bins, with the values of a bin spread evenly; NaN without a value."""
    half, below = sum(histogram) / 2, 0
    for number, count in enumerate(histogram):
        if count and below + count >= half:
            return number + (half - below) / count
        below += count
    return math.nan


def _angles(vectors: Tensor, units: Tensor) -> Tensor:
    """Computes angles between vectors `(batch, 3, height, width)` in radians; 90 degrees for a zero vector.

    atan2(|a x b|, a . b) in float64, so that the square of any float32 is finite and above 0.

    Note: A score must not depend on the position of a pixel in its batch. Products and sums are written out, as IEEE
    754 prescribes their rounding. On a CPU, `torch.atan2` mixes vector code and scalar code, which round differently;
    strided arrays, such as every second number of an array, take the scalar code only.
    """
    ax, ay, az = vectors.double().unbind(dim=1)
    bx, by, bz = units.double().unbind(dim=1)
    x, y, z = ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx
    cosine = ax * bx + ay * by + az * bz  # times the length of a, as is the sine
    sine = (x * x + y * y + z * z).sqrt()
    with_gaps = torch.stack([sine, cosine], dim=-1)
    angles = torch.atan2(with_gaps[..., 0], with_gaps[..., 1])
    return torch.where((vectors == 0).all(dim=1), math.pi / 2, angles)


def count_bins(bins: Tensor, count: int) -> Tensor:
    """Counts the bin numbers of each image, `(batch, ...)` to `(batch, count)`."""
    batch = bins.shape[0]
    offsets = count * torch.arange(batch, device=bins.device)
    return torch.bincount((bins.flatten(1) + offsets[:, None]).flatten(), minlength=batch * count).view(batch, count)


def _fixed_point_ratio(numerator: Tensor, denominator: Tensor, empty: int) -> Tensor:
    """Computes the rounded quotient in units of 1 / ONE; `empty` where the denominator is 0."""
    ratio = (numerator * ONE + denominator // 2) // denominator.clamp(min=1)
    return torch.where(denominator > 0, ratio, empty)
