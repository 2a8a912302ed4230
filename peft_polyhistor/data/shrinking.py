# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Smaller copies of a dense dataset, which decode and augment faster when training at small sizes."""

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from PIL.Image import Resampling

from ..checks import check_image
from ..extras import needs_extra
from ..tasks import PASCAL_TASKS, TASKS, Task
from .loading import Source, check_layout, check_splits, holds_data, layout_of_split, load_dense_dataset


with needs_extra("train"):
    from datasets import Dataset, Features, Image
    from datasets.utils.file_utils import xopen


def shrink(dataset: Dataset, longest: int, num_proc: int | None = None) -> Dataset:
    """Shrinks images and labels whose longer side exceeds `longest` pixels, and keeps smaller ones unchanged.

    Images are interpolated with a cubic kernel (antialias). Labels take the nearest pixel, so every value is one of
    the original; arrays become images. The aspect ratio is kept, so normals stay valid.

    Args:
        dataset: Dataset from `load_dense_dataset`.
        longest: Maximum length of the longer side, in pixels.
        num_proc: Number of worker processes.

    Raises:
        ValueError: `longest` is below 1, a column is no task, an image has more than 8 bits per channel, or a label
            has another size than its image.
    """
    if longest < 1:
        raise ValueError(f"`longest` must be at least 1 pixel, got {longest}.")
    kinds = dataset.features
    if others := [name for name in kinds if name not in ("image_id", "image", *TASKS)]:
        raise ValueError(
            f"The columns {others} are no tasks; known are {', '.join(TASKS)}. Load the dataset with "
            "`load_dense_dataset`, or leave them out with `dataset.select_columns`."
        )
    images = {name: kind for name, kind in kinds.items() if isinstance(kind, Image)}
    rows = {name: TASKS[name] for name in kinds if name in TASKS}  # a process that is spawned knows no others
    encoded = dataset.with_format(None).cast(Features({**kinds, **dict.fromkeys(images, Image(decode=False))}))
    return encoded.map(
        partial(_shrink_row, longest=longest, images=images, rows=rows),
        features=Features({**kinds, **dict.fromkeys(rows, Image()), **images}),
        num_proc=num_proc,
        desc="shrinking",
    )


def write_shrunk(
    source: Source,
    folder: str | os.PathLike[str],
    longest: int,
    tasks: Sequence[str] = PASCAL_TASKS,
    splits: Sequence[str] = ("train", "val"),
    num_proc: int | None = None,
    layout: Mapping[str, str] | None = None,
) -> list[Path]:
    """Writes a smaller copy as one `<split>.parquet` per split, which `load_dense_dataset` reads.

    If one split fails, no file is written. The arguments `source`, `tasks` and `layout` are those of
    `load_dense_dataset`, `longest` and `num_proc` those of `shrink`; both functions raise their own errors here too.

    Args:
        folder: Output folder, which is created if it is missing.
        splits: Splits to copy.

    Returns:
        The files written.

    Raises:
        FileExistsError: The folder holds one of the splits already, or a folder of images; nothing is written.
        TypeError: `splits` is a string.
        ValueError: There is no split; or there are several, and `source` is a single `Dataset`.
    """
    check_splits(source, splits)
    check_layout(layout or {}, splits)
    folder = Path(os.path.expanduser(folder))
    files = [folder / f"{split}.parquet" for split in splits]
    for split, file in zip(splits, files, strict=True):
        if os.path.lexists(file) or (folder.is_dir() and holds_data(folder, split)):
            raise FileExistsError(
                f"{folder} holds images or parquet files of the split {split!r} already. Remove them, or give another "
                "folder."
            )
    # All splits are computed before the first is written, and all are written before the first gets its final name.
    smalls = []
    for split in splits:
        own = layout_of_split(layout or {}, split, splits)
        smalls.append(
            shrink(load_dense_dataset(source, tasks, split, layout=own, num_proc=num_proc), longest, num_proc)
        )
    unfinished = [file.with_suffix(".unfinished") for file in files]
    try:
        for small, fresh in zip(smalls, unfinished, strict=True):
            fresh.parent.mkdir(parents=True, exist_ok=True)
            small.to_parquet(fresh)
        for fresh, file in zip(unfinished, files, strict=True):
            fresh.rename(file)
    finally:
        for fresh in unfinished:
            fresh.unlink(missing_ok=True)
    return files


def _shrink_row(
    row: dict[str, Any], longest: int, images: Mapping[str, Image], rows: Mapping[str, Task]
) -> dict[str, Any]:
    image = images["image"].decode_example(row["image"])
    check_image(f"The image of {row['image_id']}", image)
    stored = [name for name in rows if row[name] is not None]
    labels = {}
    for name in stored:
        try:
            is_image = name in images
            labels[name] = images[name].decode_example(row[name]) if is_image else rows[name].to_image(row[name])
            rows[name].check_stored(labels[name], image.size)
        except ValueError as error:
            raise ValueError(f"{name} of {row['image_id']}: {error}.") from error
    scale = min(1.0, longest / max(image.size))
    width, height = image.size
    size = max(1, round(width * scale)), max(1, round(height * scale))
    if size == image.size:  # the encoded bytes stay, as a second JPEG compression would lose detail
        return row | labels | {name: _embed(row[name]) for name in ("image", *stored) if name in images}
    small = {name: label.resize(size, Resampling.NEAREST) for name, label in labels.items()}
    return row | small | {"image": image.convert("RGB").resize(size, Resampling.BICUBIC)}


def _embed(encoded: dict[str, Any]) -> dict[str, Any]:
    """Reads the file of an image that is stored as a path or URL, so that the dataset no longer needs the file."""
    if encoded["bytes"] is not None:
        return encoded
    with xopen(encoded["path"], "rb") as file:
        return {"bytes": file.read(), "path": None}
