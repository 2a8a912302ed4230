# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Losses of the dense tasks, as functions of (logits, target).

Every loss brings the logits to the label's size (bilinear), computes in float32 whatever precision the model runs in,
reads no value back from the device, and returns a scalar. In the shapes, `height` and `width` are those of the label,
in pixels; logits may come at any size. The losses trust their labels: call a function of `labels` first.

Each divides or weighs by a count of pixels or images, by default of its own label. Where a step has several batches,
one after the other or one per process, a loss is given the mean of their counts instead (`tasks.count_labels`): the
mean of the losses is then the loss of one large batch, and so is the mean of the gradients.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


IGNORE_INDEX = 255  # marks unlabeled pixels of classes, as in VOC
NO_LABEL = -1.0  # marks those of binary maps, as 255 would take in masks of 0 and 255
SHORTEST_NORMAL = 1e-6  # below it a prediction has no direction worth a gradient of 1 / length
FEWEST = 1e-6  # pixels; below any mean of counts, so that no pixels make 0 / FEWEST = 0
VARIANCE_SHARE = 0.5  # lambda of the scale-invariant error


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


def count_binary(target: Tensor) -> Tensor:
    """Pixels of a binary map that are 0, and those that are not -1, `(2,)`."""
    return torch.stack([(target == 0).sum(), (target >= 0).sum()])


def count_valid(target: Tensor) -> Tensor:
    """Pixels of a map of normals `(batch, 3, height, width)` whose vector is not zero."""
    return _is_valid(target).sum()


def count_numbers(target: Tensor) -> Tensor:
    """Pixels of a scalar map that are not NaN."""
    return (~target.isnan()).sum()


def count_images(target: Tensor) -> Tensor:
    """Images of a batch of scalar maps in which a pixel is not NaN."""
    return (~target.isnan()).flatten(1).any(dim=1).sum()


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


def balanced_binary_cross_entropy(
    logits: Tensor, target: Tensor, counts: Tensor | None = None, positive_weight: float | None = None
) -> Tensor:
    """Binary cross-entropy in which the rarer of the two labels weighs more; unlabeled pixels do not count.

    [w * sum over positives + (1 - w) * sum over negatives] / pixels,    w = negatives / pixels

    Note: Where w is of this label, a label with one kind of pixel only gives exactly 0.

    Args:
        logits: `(batch, 1, h, w)`; the probability is their sigmoid.
        target: 1 is foreground, 0 is background, -1 is unlabeled, `(batch, 1, height, width)`.
        counts: Negatives and pixels, in place of `count_binary(target)`.
        positive_weight: A fixed w, such as the 0.95 of the literature on edges.
    """
    target = target.float()
    background, pixels = (count_binary(target) if counts is None else counts).unbind()
    pixels = pixels.clamp(min=FEWEST)
    weight = background / pixels if positive_weight is None else target.new_tensor(positive_weight)
    weights = torch.where(target > 0, weight, 1 - weight) * (target >= 0)
    logits = resize_to_label(logits, target)
    # An unlabeled pixel has the weight 0.
    return F.binary_cross_entropy_with_logits(logits, target, weight=weights, reduction="sum") / pixels


def normal_loss(prediction: Tensor, target: Tensor, valid_pixels: Tensor | None = None) -> Tensor:
    """L1 distance of unit vectors, averaged over the components of the valid pixels; exactly 0 if there is none.

    Predictions are made unit length here, after the resize. One shorter than 1e-6 stays as it is, so that the
    gradient is finite at zero.

    Args:
        prediction: Vectors of any length, `(batch, 3, h, w)`.
        target: Unit vectors; a zero vector marks an ignored pixel, `(batch, 3, height, width)`.
        valid_pixels: What to divide by, times 3, in place of `count_valid(target)`.
    """
    target, valid = target.float(), _is_valid(target)
    distance = torch.where(valid, (_directions(prediction, target) - target).abs(), 0.0)
    components = target.shape[1] * (valid.sum() if valid_pixels is None else valid_pixels)
    return distance.sum() / components.clamp(min=FEWEST)


def cosine_loss(prediction: Tensor, target: Tensor, valid_pixels: Tensor | None = None) -> Tensor:
    """1 - cosine of the angle between vectors, averaged over the valid pixels; arguments as in `normal_loss`."""
    cosine = (_directions(prediction, target) * target.float()).sum(dim=1, keepdim=True)
    distance = torch.where(_is_valid(target), 1 - cosine, 0.0)
    return distance.sum() / (count_valid(target) if valid_pixels is None else valid_pixels).clamp(min=FEWEST)


def l1_loss(prediction: Tensor, target: Tensor, labeled: Tensor | None = None) -> Tensor:
    """Mean absolute difference over the labeled pixels; exactly 0 if there is none.

    Args:
        prediction: Values, `(batch, 1, h, w)`.
        target: Values; NaN is unlabeled, `(batch, 1, height, width)`.
        labeled: What to divide by in place of `count_numbers(target)`.
    """
    difference = _differences(prediction, target)
    return difference.abs().sum() / (count_numbers(target) if labeled is None else labeled).clamp(min=FEWEST)


def scale_invariant_loss(prediction: Tensor, target: Tensor, images: Tensor | None = None) -> Tensor:
    """Scale-invariant error of logarithms, averaged over the images with a label; exactly 0 if there is none.

    mean(d^2) - 0.5 * mean(d)^2,    d = log of the predicted value - log of the label
    (Eigen et al., arXiv:1406.2283, Eq. 4)

    Args:
        prediction: Logarithms of values, `(batch, 1, h, w)`.
        target: Values above 0; NaN is unlabeled, `(batch, 1, height, width)`.
        images: What to divide by in place of `count_images(target)`.
    """
    difference = _differences(prediction, target.float().log()).flatten(1)
    pixels = (~target.isnan()).flatten(1).sum(dim=1).clamp(min=1)
    mean, mean_square = difference.sum(dim=1) / pixels, difference.square().sum(dim=1) / pixels
    error = (mean_square - VARIANCE_SHARE * mean.square()).sum()
    return error / (count_images(target) if images is None else images).clamp(min=FEWEST)


def _is_valid(normals: Tensor) -> Tensor:
    return (normals != 0).any(dim=1, keepdim=True)


def _directions(prediction: Tensor, target: Tensor) -> Tensor:
    """Vectors at the label's size, of unit length unless they are shorter than 1e-6."""
    prediction = resize_to_label(prediction, target)
    squared_length = prediction.square().sum(dim=1, keepdim=True)
    return prediction * torch.where(squared_length > SHORTEST_NORMAL**2, squared_length, 1.0).rsqrt()


def _differences(prediction: Tensor, target: Tensor) -> Tensor:
    """Prediction minus target, 0 where the target is NaN."""
    target = target.float()
    # NaN goes before the difference: its gradient would be NaN under any mask.
    return torch.where(target.isnan(), 0.0, resize_to_label(prediction, target) - target.nan_to_num())
