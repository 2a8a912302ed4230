# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Validation of single settings and images."""

import math
import warnings
from collections import Counter
from collections.abc import Iterable
from typing import Any, TypeVar


ItemT = TypeVar("ItemT")

# No size in an encoder comes near this limit: a larger number is a typing error, which would exhaust the memory.
LARGEST = 2**16

# Pillow modes with 8 bits per channel or less, which convert to RGB without clipping.
IMAGE_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")

# Keys of `made_for`, and of its entry `decoders`, where the oldest adapters have only those that are needed.
NEEDED_RECORD = {"encoder", "model_type", "blocks", "widths", "decoders"}
RECORD = NEEDED_RECORD | {"block_sizes"}
NEEDED_DECODERS = {"decoder_width", "decoder_dropout", "shared_norms", "loss_weights"}
DECODERS = NEEDED_DECODERS | {"image_size", "image_mean", "image_std", "tasks"}


def find_repeated(items: Iterable[ItemT]) -> list[ItemT]:
    """Returns the items that occur several times, each once."""
    return [item for item, count in Counter(items).items() if count > 1]


def check_list(name: str, value: Any) -> None:
    """Raises TypeError for a string in place of a list of strings, which would count as the list of its letters."""
    if isinstance(value, str):
        raise TypeError(f"`{name}` must be a list of strings, got {value!r}. Write [{value!r}].")


def check_image(name: str, image: Any) -> None:
    """Raises ValueError unless `image` is a PIL image of at most 8 bits per channel; others would be clipped."""
    mode = getattr(image, "mode", None)
    if mode not in IMAGE_MODES:
        found = f"mode {mode}" if mode else f"the type {type(image).__name__}"
        how = "Convert it, with its values scaled to 0 ... 255" if mode else "Cast its column to datasets.Image()"
        raise ValueError(
            f"{name} must be a PIL image of 8 bits per channel, e.g. mode RGB or L, got {found}. {how}, or leave it "
            "out."
        )


def check_positive(name: str, value: Any) -> None:
    """Raises ValueError unless `value` is an integer from 1 to `LARGEST`."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LARGEST:
        raise ValueError(f"`{name}` must be an integer of at least 1, got {value!r}; at most {LARGEST}.")


def check_sides(name: str, value: Any) -> None:
    """Raises ValueError unless `value` is the side of a square or a (height, width), in pixels."""
    for side in value if isinstance(value, list | tuple) and len(value) == 2 else [value]:
        if isinstance(side, bool) or not isinstance(side, int) or not 1 <= side <= LARGEST:
            raise ValueError(f"`{name}` must be a side or (height, width), pixels from 1 to {LARGEST}, got {value!r}.")


def check_statistics(image_mean: Any, image_std: Any) -> None:
    """Raises ValueError unless mean and standard deviation are three numbers each, and the latter above 0."""
    for name, values in (("image_mean", image_mean), ("image_std", image_std)):
        is_three = isinstance(values, list | tuple) and len(values) == 3
        for value in values if is_three else ():
            check_number(name, value)
        if not is_three or (name == "image_std" and min(values) <= 0):
            raise ValueError(f"`{name}` must be three numbers, those of `image_std` above 0, got {values!r}.")


def check_truth(name: str, value: Any) -> None:
    """Raises TypeError unless `value` is a bool."""
    if not isinstance(value, bool):
        raise TypeError(f"`{name}` must be True or False, got {value!r}.")


def check_probability(name: str, value: Any) -> None:
    """Raises ValueError unless `value` is a number from 0 to less than 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise ValueError(f"`{name}` must be a probability in [0, 1), got {value!r}.")


def check_record(made_for: Any) -> None:
    """Raises ValueError unless `made_for` is None or a record as adapters save it.

    Warns of keys that only a newer version of this package knows; they have no effect.
    """
    if made_for is None:
        return
    is_record = isinstance(made_for, dict) and made_for.keys() >= NEEDED_RECORD
    decoders = made_for["decoders"] if is_record else None
    is_complete = decoders is None or (isinstance(decoders, dict) and decoders.keys() >= NEEDED_DECODERS)
    sizes = made_for.get("block_sizes") if is_record else None
    are_sizes = sizes is None or (
        isinstance(sizes, list) and len(sizes) == made_for["blocks"] and all(isinstance(size, float) for size in sizes)
    )
    if not is_record or not is_complete or not are_sizes or not isinstance(made_for["encoder"], str | None):
        raise ValueError(
            f"`made_for` must be the record that an adapter saved, with the keys {sorted(NEEDED_RECORD)}, at least "
            f"{sorted(NEEDED_DECODERS)} in `decoders`, and a number for each block in `block_sizes`; got "
            f"{made_for!r}. Leave it out for a new adapter."
        )
    unknown = [*(made_for.keys() - RECORD), *((decoders or {}).keys() - DECODERS)]
    if unknown:
        warnings.warn(
            f"`made_for` holds {sorted(map(str, unknown))}, which this version of peft-polyhistor does not use. The "
            "adapter was probably saved by a newer version: upgrade with `pip install -U peft-polyhistor`.",
            stacklevel=3,
        )


def check_number(name: str, value: Any) -> None:
    """Raises ValueError unless `value` is a finite number."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value):
        raise ValueError(f"`{name}` must be a finite number, got {value!r}.")


def check_whole(name: str, value: Any) -> None:
    """Raises ValueError unless `value` is a signed 64-bit integer of at least 0."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise ValueError(f"`{name}` must be 0 or more, got {value!r}; a signed 64-bit integer.")
