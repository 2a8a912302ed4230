# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Losses of the dense tasks, as functions of (logits, target), and the checks of their labels.

Every loss brings the logits to the label's size (bilinear), computes in float32 whatever precision the model runs in,
reads no value back from the device, and returns a scalar. In the shapes, `height` and `width` are those of the label,
in pixels; logits may come at any size. The losses trust their labels: call a `check_*_labels` function first.

Each divides or weighs by a count of pixels, by default of its own label. Where a step has several batches, one after
the other or one per process, a loss is given the mean of their counts instead (`tasks.count_labels`): the mean of the
losses is then the loss of one large batch, and so is the mean of the gradients.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


IGNORE_INDEX = 255  # marks unlabeled pixels in VOC
SHORTEST_NORMAL = 1e-6  # below it a prediction has no direction worth a gradient of 1 / length
FEWEST = 1e-6  # pixels; below any mean of counts, so that no pixels make 0 / FEWEST = 0
UNIT_TOLERANCE = 0.01  # labels may have been stored in bfloat16, 8 bits of mantissa


def resize_to_label(logits: Tensor, target: Tensor) -> Tensor:
    """Brings logits `(batch, channels, h, w)` to the size of a label, bilinear and in float32.

    Corners are not aligned, as in `torch.nn.functional.interpolate(align_corners=False)`.
    """
    logits = logits.float()
    size = target.shape[-2:]
    if logits.shape[-2:] == size:
        return logits
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def count_labeled(target: Tensor) -> Tensor:
    """Pixels of class ids whose label is not 255."""
    return (target != IGNORE_INDEX).sum()


def count_background(target: Tensor) -> Tensor:
    """Pixels of a binary map that are 0."""
    return (target == 0).sum()


def count_valid(target: Tensor) -> Tensor:
    """Pixels of a map of normals `(batch, 3, height, width)` whose vector is not zero."""
    return _is_valid(target).sum()


def cross_entropy(logits: Tensor, target: Tensor, labeled: Tensor | None = None) -> Tensor:
    """Mean cross-entropy over the pixels whose label is not 255; exactly 0 if there is none.

    Args:
        logits: `(batch, classes, h, w)`.
        target: Class ids, any integer type, `(batch, height, width)`.
        labeled: What to divide by in place of `count_labeled(target)`.
    """
    target = target.long()
    losses = F.cross_entropy(resize_to_label(logits, target), target, ignore_index=IGNORE_INDEX, reduction="none")
    return losses.sum() / (count_labeled(target) if labeled is None else labeled).clamp(min=FEWEST)


def balanced_binary_cross_entropy(logits: Tensor, target: Tensor, background: Tensor | None = None) -> Tensor:
    """Binary cross-entropy in which the rarer of the two labels weighs more.

    [w * sum over positives + (1 - w) * sum over negatives] / pixels,    w = negatives / pixels

    Note: Where w is of this label, a label with one kind of pixel only gives exactly 0.

    Args:
        logits: `(batch, 1, h, w)`; the probability is their sigmoid.
        target: 1 is foreground, 0 is background, `(batch, 1, height, width)`.
        background: The negatives of w, in place of `count_background(target)`, in as many pixels as the target has.
    """
    target = target.float()
    pixels = max(target.numel(), 1)
    positive_weight = (count_background(target) if background is None else background) / pixels
    weight = torch.where(target > 0, positive_weight, 1 - positive_weight)
    logits = resize_to_label(logits, target)
    return F.binary_cross_entropy_with_logits(logits, target, weight=weight, reduction="sum") / pixels


def normal_loss(prediction: Tensor, target: Tensor, valid_pixels: Tensor | None = None) -> Tensor:
    """L1 distance of unit vectors, averaged over the components of the valid pixels; exactly 0 if there is none.

    Predictions are made unit length here, after the resize. One shorter than 1e-6 stays as it is, so that the
    gradient is finite at zero.

    Args:
        prediction: Vectors of any length, `(batch, 3, h, w)`.
        target: Unit vectors; a zero vector marks an ignored pixel, `(batch, 3, height, width)`.
        valid_pixels: What to divide by, times 3, in place of `count_valid(target)`.
    """
    target = target.float()
    prediction = resize_to_label(prediction, target)
    squared_length = prediction.square().sum(dim=1, keepdim=True)
    unit = prediction * torch.where(squared_length > SHORTEST_NORMAL**2, squared_length, 1.0).rsqrt()
    valid = _is_valid(target)
    distance = torch.where(valid, (unit - target).abs(), 0.0)
    components = target.shape[1] * (valid.sum() if valid_pixels is None else valid_pixels)
    return distance.sum() / components.clamp(min=FEWEST)


def _is_valid(normals: Tensor) -> Tensor:
    return (normals != 0).any(dim=1, keepdim=True)


def check_class_labels(
    name: str,
    logits_shape: Sequence[int],
    target: Tensor,
    check_values: bool | None = None,
    ignore_index: int = IGNORE_INDEX,
) -> None:
    """Checks a map of class ids `(batch, height, width)` against the shape of its logits.

    Args:
        name: Task or metric to name in the error.
        logits_shape: Starts with batch and classes; the rest is not looked at.
        target: The label.
        check_values: Whether to look at the values too, which makes the processor wait for a GPU. The default looks
            only at labels in CPU memory, and not while `torch.compile` traces.
        ignore_index: Value of pixels without a label.

    Raises:
        ValueError: For a wrong shape or dtype, or a value that is neither a class id nor `ignore_index`.
    """
    _check_form(name, logits_shape, target, channels=None)
    if _looks_at_values(target, check_values):
        classes = logits_shape[1]
        known = ((target >= 0) & (target < classes)) | (target == ignore_index)
        if not known.all():
            raise ValueError(
                f"Labels of {name} hold the values {_some_values(target, ~known)}; allowed are the class ids "
                f"0 to {classes - 1} and {ignore_index} for pixels to ignore. Map other values to {ignore_index}."
            )


def check_binary_labels(
    name: str, logits_shape: Sequence[int], target: Tensor, check_values: bool | None = None
) -> None:
    """Checks a map of zeros and ones `(batch, 1, height, width)`; arguments as in `check_class_labels`.

    Raises:
        ValueError: For a wrong shape or dtype, or a value other than 0 and 1.
    """
    _check_form(name, logits_shape, target, channels=1)
    if _looks_at_values(target, check_values):
        known = (target == 0) | (target == 1)
        if not known.all():
            raise ValueError(
                f"Labels of {name} hold the values {_some_values(target, ~known)}; allowed are 0 (background) and "
                "1 (foreground). Threshold a map of probabilities or gray values first."
            )


def check_normal_labels(
    name: str, logits_shape: Sequence[int], target: Tensor, check_values: bool | None = None
) -> None:
    """Checks a map of unit vectors `(batch, 3, height, width)`; arguments as in `check_class_labels`.

    Raises:
        ValueError: For a wrong shape or dtype, or a vector that is neither zero nor of length 1 (to 0.01).
    """
    _check_form(name, logits_shape, target, channels=3)
    if _looks_at_values(target, check_values):
        length = torch.linalg.vector_norm(target.float(), dim=1)
        known = (length == 0) | ((length - 1).abs() <= UNIT_TOLERANCE)
        if not known.all():
            raise ValueError(
                f"Labels of {name} hold vectors of length {_some_values(length, ~known)}; allowed are unit vectors, "
                "and zero vectors for pixels to ignore. Divide each vector by its length."
            )


def _check_form(name: str, logits_shape: Sequence[int], target: Tensor, channels: int | None) -> None:
    """Checks shapes and dtype; `channels` is None for maps of class ids, which have no channel axis."""
    if channels is not None and logits_shape[1] != channels:
        raise ValueError(
            f"Predictions of {name} have shape {tuple(logits_shape)}; they must have {channels} channel(s) in "
            "axis 1. Change the last layer of the decoder."
        )
    leading = (logits_shape[0],) if channels is None else (logits_shape[0], channels)
    if target.ndim != len(leading) + 2 or tuple(target.shape[: len(leading)]) != leading:
        wanted = ", ".join(str(size) for size in leading)
        raise ValueError(
            f"Labels of {name} have shape {tuple(target.shape)}; for predictions of shape {tuple(logits_shape)} they "
            f"must have shape ({wanted}, height, width). Add or drop axes, or match the batches."
        )
    is_integer = not (target.is_floating_point() or target.is_complex() or target.dtype == torch.bool)
    if channels is None and not is_integer:
        raise ValueError(f"Labels of {name} are {target.dtype}; they must be integer class ids. Call `.long()`.")
    if channels is not None and not target.is_floating_point():
        raise ValueError(f"Labels of {name} are {target.dtype}; they must be floating-point. Call `.float()`.")


def _looks_at_values(target: Tensor, check_values: bool | None) -> bool:
    if check_values is None:
        return target.device.type == "cpu" and not torch.compiler.is_compiling()
    return check_values


def _some_values(values: Tensor, wrong: Tensor) -> list[float]:
    """The first few of the distinct wrong values, for an error message."""
    return values[wrong].unique()[:5].tolist()
