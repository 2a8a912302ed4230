# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Losses of the dense tasks, as functions of (logits, target).

Every loss resizes the logits to the label (bilinear), computes in float32 at any precision of the model, reads no
value back from the device, and returns a scalar. In the shapes, `height` and `width` are those of the label, in
pixels; logits may have any size. The losses do not check their labels: call a function of `labels` first.

A loss is normalised by a count of pixels or images, by default that of its own label. If a step has several batches,
in sequence or on several processes, pass the mean of their counts (`count_labels`) instead: the mean of the losses,
and of the gradients, is then that of one large batch.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


IGNORE_INDEX = 255  # unlabelled pixels in maps of class ids, as in VOC
NO_LABEL = -1.0  # unlabelled pixels in binary maps, where 255 may be the foreground
SHORTEST_NORMAL = 1e-6  # a shorter prediction is not normalised: its gradient, 1 / length, would be too large
FEWEST = 1e-6  # pixels; less than any mean of counts, so a step without labels has the loss 0 / FEWEST = 0
RAREST = 1e-4  # share of the pixels that a fitted bias gives a class at least, so that its logarithm is finite
VARIANCE_SHARE = 0.5  # lambda of the scale-invariant error


def resize_to_label(logits: Tensor, target: Tensor) -> Tensor:
    """Resizes logits `(batch, channels, h, w)` to a label, in float32 (bilinear, `align_corners=False`)."""
    logits = logits.float()
    size = target.shape[-2:]
    if logits.shape[-2:] == size:
        return logits
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def count_labeled(target: Tensor) -> Tensor:
    """Counts the pixels of a map of class ids that are not 255."""
    return (target != IGNORE_INDEX).sum()


def count_binary(target: Tensor) -> Tensor:
    """Counts the pixels of a binary map that are 0, and the pixels that are not -1, `(2,)`."""
    return torch.stack([(target == 0).sum(), (target >= 0).sum()])


def count_valid(target: Tensor) -> Tensor:
    """Counts the pixels of a map of normals `(batch, 3, height, width)` whose vector is not zero."""
    return _is_valid(target).sum()


def count_numbers(target: Tensor) -> Tensor:
    """Counts the pixels of a scalar map that are not NaN."""
    return (~target.isnan()).sum()


def count_images(target: Tensor) -> Tensor:
    """Counts the images of a batch of scalar maps that have a pixel other than NaN."""
    return (~target.isnan()).flatten(1).any(dim=1).sum()


def cross_entropy(logits: Tensor, target: Tensor, labeled: Tensor | None = None) -> Tensor:
    """Computes the mean cross-entropy over the labelled pixels; exactly 0 if there is none.

    Args:
        logits: `(batch, classes, h, w)`.
        target: Class ids of any integer type, 255 where unlabelled, `(batch, height, width)`.
        labeled: Divisor; `None` takes `count_labeled(target)`.
    """
    target = target.long()
    losses = F.cross_entropy(resize_to_label(logits, target), target, ignore_index=IGNORE_INDEX, reduction="none")
    return losses.sum() / (count_labeled(target) if labeled is None else labeled).clamp(min=FEWEST)


def balanced_binary_cross_entropy(
    logits: Tensor, target: Tensor, counts: Tensor | None = None, positive_weight: float | None = None
) -> Tensor:
    """Computes the binary cross-entropy with class weights that favour the rarer class; unlabelled pixels are ignored.

    [w * sum over positives + (1 - w) * sum over negatives] / pixels,    w = negatives / pixels

    Note: If w is computed from this label alone, a label with only one class has the loss 0.

    Args:
        logits: `(batch, 1, h, w)`; their sigmoid is the probability of foreground.
        target: 1 foreground, 0 background, -1 unlabelled, `(batch, 1, height, width)`.
        counts: Numbers of negatives and of pixels, `(2,)`; `None` takes `count_binary(target)`.
        positive_weight: Fixed w, such as 0.95 in the literature on edges.
    """
    target = target.float()
    background, pixels = (count_binary(target) if counts is None else counts).unbind()
    pixels = pixels.clamp(min=FEWEST)
    weight = background / pixels if positive_weight is None else target.new_tensor(positive_weight)
    weights = torch.where(target > 0, weight, 1 - weight) * (target >= 0)
    logits = resize_to_label(logits, target)
    # Unlabelled pixels have the weight 0.
    return F.binary_cross_entropy_with_logits(logits, target, weight=weights, reduction="sum") / pixels


def normal_loss(prediction: Tensor, target: Tensor, valid_pixels: Tensor | None = None) -> Tensor:
    """Computes the mean L1 distance between unit vectors over the valid pixels; exactly 0 if there is none.

    Predictions are normalised to unit length after the resize. A prediction shorter than 1e-6 is not normalised, so
    the gradient is finite at zero.

    Args:
        prediction: Vectors of any length, `(batch, 3, h, w)`.
        target: Unit vectors, zero where unlabelled, `(batch, 3, height, width)`.
        valid_pixels: A third of the divisor; `None` takes `count_valid(target)`.
    """
    target, valid = target.float(), _is_valid(target)
    distance = torch.where(valid, (_directions(prediction, target) - target).abs(), 0.0)
    components = target.shape[1] * (valid.sum() if valid_pixels is None else valid_pixels)
    return distance.sum() / components.clamp(min=FEWEST)


def cosine_loss(prediction: Tensor, target: Tensor, valid_pixels: Tensor | None = None) -> Tensor:
    """Computes the mean of 1 - cosine of the angle over the valid pixels; arguments as in `normal_loss`."""
    cosine = (_directions(prediction, target) * target.float()).sum(dim=1, keepdim=True)
    distance = torch.where(_is_valid(target), 1 - cosine, 0.0)
    return distance.sum() / (count_valid(target) if valid_pixels is None else valid_pixels).clamp(min=FEWEST)


def l1_loss(prediction: Tensor, target: Tensor, labeled: Tensor | None = None) -> Tensor:
    """Computes the mean absolute difference over the labelled pixels; exactly 0 if there is none.

    Args:
        prediction: Values, `(batch, 1, h, w)`.
        target: Values, NaN where unlabelled, `(batch, 1, height, width)`.
        labeled: Divisor; `None` takes `count_numbers(target)`.
    """
    difference = _differences(prediction, target)
    return difference.abs().sum() / (count_numbers(target) if labeled is None else labeled).clamp(min=FEWEST)


def scale_invariant_loss(prediction: Tensor, target: Tensor, images: Tensor | None = None) -> Tensor:
    """Computes the mean scale-invariant logarithmic error over the labelled images; exactly 0 if there is none.

    mean(d^2) - 0.5 * mean(d)^2,    d = log of the predicted value - log of the label
    (Eigen et al., arXiv:1406.2283, Eq. 4)

    Args:
        prediction: Logarithms of values, `(batch, 1, h, w)`.
        target: Values above 0, NaN where unlabelled, `(batch, 1, height, width)`.
        images: Divisor; `None` takes `count_images(target)`.
    """
    difference = _differences(prediction, target.float().log()).flatten(1)
    pixels = (~target.isnan()).flatten(1).sum(dim=1).clamp(min=1)
    mean, mean_square = difference.sum(dim=1) / pixels, difference.square().sum(dim=1) / pixels
    error = (mean_square - VARIANCE_SHARE * mean.square()).sum()
    return error / (count_images(target) if images is None else images).clamp(min=FEWEST)


def _is_valid(normals: Tensor) -> Tensor:
    return (normals != 0).any(dim=1, keepdim=True)


def _directions(prediction: Tensor, target: Tensor) -> Tensor:
    """Resizes vectors to the label and normalises them to unit length, unless they are shorter than 1e-6."""
    prediction = resize_to_label(prediction, target)
    squared_length = prediction.square().sum(dim=1, keepdim=True)
    return prediction * torch.where(squared_length > SHORTEST_NORMAL**2, squared_length, 1.0).rsqrt()


def _differences(prediction: Tensor, target: Tensor) -> Tensor:
    """Computes prediction minus target, 0 where the target is NaN."""
    target = target.float()
    # NaN is replaced before the subtraction: its gradient would be NaN under any mask.
    return torch.where(target.isnan(), 0.0, resize_to_label(prediction, target) - target.nan_to_num())
