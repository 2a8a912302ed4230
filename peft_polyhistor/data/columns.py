# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Chooses the columns of any dataset that have images and dense labels."""

from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image as PILImage

from ..extras import needs_extra
from .decode import is_turned


with needs_extra("train"):
    from datasets import Array2D, Array3D, Dataset, Image, List, concatenate_datasets


def choose_columns(dataset: Dataset, tasks: Sequence[str], layout: Mapping[str, str], source: object) -> Dataset:
    """Selects the columns `image_id`, `image` and the tasks, and gives them these names.

    In a dataset without ids, the row numbers become the ids. Several tasks may have one column.

    Args:
        dataset: Dataset with names of its own.
        tasks: Rows of `TASKS`.
        layout: Names in the dataset that differ.
        source: Source of the dataset, which an error names.

    Raises:
        ValueError: The dataset is empty, or a column is missing or is of another kind.
    """
    name = source if isinstance(source, str | Path) else f"this {type(source).__name__}"
    if not len(dataset):
        raise ValueError(f"{name}: found no rows. Give a dataset with images, or another split.")
    dataset = dataset.with_format(None)  # the values below are images and lists, not arrays of a format or transform
    theirs = {ours: layout.get(ours, ours) for ours in ("image_id", "image", *tasks)}
    if "image_id" not in layout and "image_id" not in dataset.features:
        dataset = dataset.add_column("image_id", list(range(len(dataset))))
    found = dataset.features
    kinds: dict[str, Callable[[Any], bool]] = {"image_id": _is_id, "image": lambda feature: isinstance(feature, Image)}
    wrong = [ours for ours, column in theirs.items() if not kinds.get(ours, _is_map)(found.get(column))]
    if wrong:
        own = [ours for ours in wrong if ours in found and theirs[ours] not in found]  # as in a copy of `shrink`
        hint = f" Take {', '.join(own)} out of the layout: the dataset has columns of these names." if own else ""
        raise ValueError(
            f"{name}: found no {', '.join(wrong)} of the right kind; the dataset has {dict(found)}.{hint} Leave out "
            "tasks it lacks, name other columns in the layout, or cast columns: image_id to a string or integer, "
            "images to datasets.Image, labels to datasets.Image or Array2D."
        )
    names: dict[str, str] = {}
    for ours, column in theirs.items():
        names.setdefault(column, ours)
    again = [ours for ours, column in theirs.items() if names[column] != ours]
    copies = [dataset.select_columns([theirs[ours]]).rename_column(theirs[ours], ours) for ours in again]
    dataset = dataset.select_columns(list(names))
    dataset = dataset.rename_columns({column: ours for column, ours in names.items() if column != ours})
    return concatenate_datasets([dataset, *copies], split=dataset.split, axis=1) if copies else dataset


def are_row_numbers(ids: Sequence[Any]) -> bool:
    """Tells whether the ids of a split are the row numbers, which name no image of another split."""
    return list(ids) == list(range(len(ids)))


def keep_encoded(dataset: Dataset) -> Dataset:
    """Selects the column of images, as encoded bytes or paths."""
    return dataset.with_format(None).select_columns(["image"]).cast_column("image", Image(decode=False))


def is_encoded_turned(encoded: Mapping[str, Any]) -> bool:
    """Tells whether `datasets` turns an image when it decodes it; False for an image behind a URL."""
    data, path = encoded["bytes"], encoded["path"]
    if data is None and not Path(path).is_file():
        return False
    with PILImage.open(path if data is None else BytesIO(data)) as image:
        return is_turned(image)


def _is_id(feature: Any) -> bool:
    return str(getattr(feature, "dtype", "")).startswith(("string", "large_string", "int", "uint"))


def _is_map(feature: Any) -> bool:
    """Tells whether a column holds images, or arrays of two axes or more."""
    is_nested = isinstance(feature, List) and isinstance(feature.feature, List)
    return isinstance(feature, Image | Array2D | Array3D) or is_nested
