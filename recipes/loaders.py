# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The data of train_pascal.py: prepared once, then transformed and batched."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from ctypes import CDLL
from functools import partial
from itertools import islice
from pathlib import Path
from platform import libc_ver

import torch
from accelerate import Accelerator
from datasets import Dataset
from settings import Settings
from torch.utils.data import DataLoader, get_worker_info

from peft_polyhistor.data import JointTransform, collate, load_dense_dataset
from peft_polyhistor.data.synthetic import synthetic_scenes


def load_data(settings: Settings, tasks: Sequence[str], accelerator: Accelerator) -> dict[str, Dataset]:
    """The splits `train` and `val`, untransformed, with the labels of `tasks`.

    With `holdout`, `val` is a part of the training pictures, the same for every method and seed, and `train` the rest.
    """
    load = synthetic_scenes if settings.data == "scenes" else partial(load_dense_dataset, settings.data)
    # Other sources, parquet files here or on the Hub, come prepared.
    is_prepared_here = settings.data == "scenes" or (Path(settings.data).expanduser() / "ImageSets").is_dir()
    workers = settings.preparation_workers if is_prepared_here and settings.preparation_workers > 1 else None
    with accelerator.local_main_process_first():  # the others find the prepared data in the cache
        # All tasks of the settings, so that a run on one of them prepares nothing of its own.
        splits = ("train",) if settings.holdout else ("train", "val")
        data = {split: load(settings.tasks, split, num_proc=workers) for split in splits}
        if settings.holdout:
            parts = data["train"].train_test_split(settings.holdout, seed=0)
            data = {"train": parts["train"], "val": parts["test"]}
    return {split: rows.select_columns(["image_id", "image", *tasks]) for split, rows in data.items()}


def make_loader(data: Dataset, transform: JointTransform, settings: Settings) -> DataLoader:
    return DataLoader(
        data.with_transform(transform),
        batch_size=settings.batch_size,
        shuffle=transform.train,
        drop_last=transform.train,
        collate_fn=collate_and_trim,
        num_workers=settings.workers,
        persistent_workers=settings.workers > 0,
        # Of its own: a loader that starts anew after a resume must not draw from the generator of the dropout.
        generator=torch.Generator().manual_seed(settings.seed),
    )


def group(batches: Iterable[dict], size: int) -> Iterator[list[dict]]:
    """Lists of so many batches, the last of what is left."""
    batches = iter(batches)
    while some := list(islice(batches, size)):
        yield some


_trim = CDLL(None).malloc_trim if libc_ver()[0] == "glibc" else None


def collate_and_trim(samples: Sequence[Mapping]) -> dict:
    """`collate`; a worker gives back the memory of the batch before, which glibc keeps: 1 GB each at 512 px."""
    if _trim is not None and get_worker_info() is not None:
        _trim(0)
    return collate(samples)
