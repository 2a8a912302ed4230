# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Procedural scenes with the four tasks of PASCAL-Context: a dataset that needs neither files nor a network.

A scene shows 1 to 4 objects of the 20 classes of VOC where they are seen: in a room, in a meadow, on a road or on
water. More than half of the scenes show people. Labels are exact. The columns are those of `load_dense_dataset`, so
both train with the same code.
"""

import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image as PILImage

from ..extras import needs_extra
from ..models.image_processor import normalize_image_size
from ..tasks import PASCAL_TASKS
from .archive import check_tasks


with needs_extra("train"):
    from datasets import Dataset, Features, Image, NamedSplit, Value


SCENE_COUNTS = {"train": 800, "val": 200}  # default number of scenes by split

_SMALLEST, _LARGEST = 16, 2048  # sides of an image, in pixels


def synthetic_scenes(
    tasks: Sequence[str] = PASCAL_TASKS,
    split: str = "train",
    *,
    count: int | None = None,
    image_size: int | tuple[int, int] = 128,
    seed: int = 0,
    num_proc: int | None = None,
    cache_dir: str | None = None,
) -> Dataset:
    """Renders procedural scenes once; later calls open the Arrow cache.

    Args:
        tasks: Tasks to render labels for, from `PASCAL_TASKS`.
        split: "train" or "val". The splits share no scene, whatever their counts.
        count: Number of scenes, by default that of `SCENE_COUNTS`. A larger count continues a smaller one.
        image_size: (height, width) in pixels, or the side of a square.
        seed: Seed of the series of scenes, 0 or more.
        num_proc: Number of processes that render, one by default. A scene of 128 pixels takes about 15 ms.
        cache_dir: Cache folder; by default that of `datasets`.

    Returns:
        Rows of `image_id`, `image` (RGB) and a lossless image per task: `semseg` (mode L: 0 background, 1 to 20 the
        classes of VOC, 255 ignored), `human_parts` (L: 0 to 6), `saliency` (L: 0 or 255) and `normals` (RGB:
        (n + 1) * 127.5; black has no normal). `scenes.render_scene` describes them in detail.

    Raises:
        ValueError: A task or split is unknown, or `count`, `image_size`, `seed` or `num_proc` is out of range.
        ModuleNotFoundError: SciPy, which the renderer needs, is not installed.
    """
    from .scenes import RENDERER_VERSION

    tasks, size = check_tasks(tasks), normalize_image_size(image_size)
    count = SCENE_COUNTS.get(str(split), 0) if count is None else count
    num_proc = 1 if num_proc is None else num_proc
    _check(split, count, size, seed, num_proc)
    return Dataset.from_generator(
        _generate,
        features=Features({"image_id": Value("string"), "image": Image()} | {task: Image() for task in tasks}),
        # `datasets` computes the cache key from these values, and divides the list among the processes.
        gen_kwargs={
            "tasks": tasks,
            "split": split,
            "size": size,
            "seed": seed,
            "version": RENDERER_VERSION,
            "numbers": list(range(count)),
        },
        split=NamedSplit(split),
        num_proc=min(num_proc, count) if num_proc > 1 else None,
        cache_dir=cache_dir,
        dataset_name="synthetic_scenes",
    )


def _generate(
    tasks: tuple[str, ...], split: str, size: tuple[int, int], seed: int, version: int, numbers: list[int]
) -> Iterator[dict[str, Any]]:
    from .scenes import render_scene

    splits = list(SCENE_COUNTS)
    for number in numbers:
        # The splits take turns in one series, so they share no scene at any length.
        scene = render_scene(seed, number * len(splits) + splits.index(split), size)
        images = {name: {"path": None, "bytes": _png(scene[name])} for name in ("image", *tasks)}
        yield {"image_id": f"synthetic_{seed}_{split}_{number:06d}", **images}


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    PILImage.fromarray(pixels).save(buffer, "PNG", compress_level=1)  # higher levels are slow and save little
    return buffer.getvalue()


def _check(split: str, count: int, size: tuple[int, int], seed: int, num_proc: int) -> None:
    if split not in list(SCENE_COUNTS):
        raise ValueError(f"`split` is {split!r}, but the splits are {list(SCENE_COUNTS)}. Choose one of them.")
    if min(size) < _SMALLEST or max(size) > _LARGEST:
        raise ValueError(
            f"`image_size` is {size}, but scenes are rendered from {_SMALLEST} to {_LARGEST} pixels a side. "
            "Choose sides in this range."
        )
    for name, value, least in (("count", count, 1), ("seed", seed, 0), ("num_proc", num_proc, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"`{name}` is {value!r}, but must be a whole number. Give {least} or more.")
