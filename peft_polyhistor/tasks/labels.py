# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Validation of the targets of dense tasks: shape, dtype and values, before a loss or a metric uses them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .losses import IGNORE_INDEX, NO_LABEL


UNIT_TOLERANCE = 0.01  # labels may have been stored in bfloat16, which has a mantissa of 8 bits


def check_class_labels(
    name: str,
    logits_shape: Sequence[int],
    target: Tensor,
    check_values: bool | None = None,
    ignore_index: int = IGNORE_INDEX,
) -> None:
    """Checks a map of class ids `(batch, height, width)` against the shape of its logits.

    Args:
        name: Task or metric that the error names.
        logits_shape: Shape of the logits; only batch and classes, its first two sizes, are used.
        target: Labels.
        check_values: Whether to check the values too, which makes the CPU wait for a GPU. By default, values are
            checked in CPU memory only, and not while `torch.compile` traces.
        ignore_index: Value of unlabelled pixels.

    Raises:
        ValueError: The shape or dtype is wrong, or a value is neither a class id nor `ignore_index`.
    """
    _check_form(name, logits_shape, target, channels=None)
    if _looks_at_values(target, check_values):
        classes, target = logits_shape[1], target.long()  # torch does not compare unsigned integers of 16 bits or more
        known = ((target >= 0) & (target < classes)) | (target == ignore_index)
        if not known.all():
            raise ValueError(
                f"Labels of {name} hold the values {_some_values(target, ~known)}; allowed are the class ids "
                f"0 to {classes - 1} and {ignore_index} for pixels to ignore. Map other values to {ignore_index}."
            )


def check_binary_labels(
    name: str, logits_shape: Sequence[int], target: Tensor, check_values: bool | None = None
) -> None:
    """Checks a map of 0, 1 and -1 (unlabelled), `(batch, 1, height, width)`; arguments as in `check_class_labels`.

    Raises:
        ValueError: The shape, dtype or a value is wrong.
    """
    _check_form(name, logits_shape, target, channels=1)
    if _looks_at_values(target, check_values):
        known = (target == 0) | (target.abs() == 1)  # NO_LABEL is -1
        if not known.all():
            raise ValueError(
                f"Labels of {name} hold the values {_some_values(target, ~known)}; allowed are 0 (background) and 1 "
                f"(foreground), and {NO_LABEL:g} for pixels to ignore. Threshold probabilities or grey values first."
            )


def check_normal_labels(
    name: str, logits_shape: Sequence[int], target: Tensor, check_values: bool | None = None
) -> None:
    """Checks a map of unit vectors `(batch, 3, height, width)`; arguments as in `check_class_labels`.

    Raises:
        ValueError: The shape or dtype is wrong, or a vector is neither zero nor of length 1 (within 0.01).
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


def check_scalar_labels(
    name: str, logits_shape: Sequence[int], target: Tensor, check_values: bool | None = None, positive: bool = False
) -> None:
    """Checks a map of numbers or NaN (unlabelled), `(batch, 1, height, width)`; arguments as in `check_class_labels`.

    Args:
        positive: Whether all numbers must be above 0, as for a loss of logarithms.

    Raises:
        ValueError: The shape or dtype is wrong, or a value is infinite or not `positive`.
    """
    _check_form(name, logits_shape, target, channels=1)
    if _looks_at_values(target, check_values):
        wrong = target.isinf() | (target <= 0) if positive else target.isinf()
        if wrong.any():
            raise ValueError(
                f"Labels of {name} hold the values {_some_values(target, wrong)}; allowed are finite numbers"
                f"{' above 0' if positive else ''}, and NaN for pixels to ignore. Map other values to NaN."
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
    """Lists a few distinct wrong values for an error message."""
    return values[wrong].unique()[:5].tolist()
