# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Loads the data of a run in batches, in an order that a resumed run repeats."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from ctypes import CDLL
from functools import partial
from itertools import islice
from platform import libc_ver
from typing import Any

import torch
from accelerate import Accelerator
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from ..data import JointTransform, collate, load_dense_dataset, synthetic_scenes
from ..data.columns import are_row_numbers
from ..tasks import TASKS


Batch = dict[str, Any]
SAMPLE_SIZE = 128  # pixels of the side of a label that biases are fitted to


def load_splits(
    source: str,
    tasks: Sequence[str],
    accelerator: Accelerator,
    holdout: float = 0.0,
    left_out: float = 0.0,
    workers: int = 1,
    layout: Mapping[str, str] | None = None,
) -> dict[str, Dataset]:
    """Loads the splits `train` and `val` with the labels of `tasks`, without transforms.

    Args:
        source: 'scenes', or a source of `load_dense_dataset`.
        tasks: Names of the tasks.
        accelerator: The accelerator of this process. One process per machine prepares the data for the other
            processes.
        holdout: Fraction of the training images that replaces the split `val`, the same images in every run. 0 uses
            the split `val`.
        left_out: Fraction of the training images that no split has: those of an equal `holdout` in other runs.
        workers: Number of processes that prepare the data.
        layout: Names in the source, as in `load_dense_dataset`.
    """
    load = synthetic_scenes if source == "scenes" else partial(load_dense_dataset, source, layout=layout)
    num_proc = workers if workers > 1 else None
    with accelerator.local_main_process_first():  # the other processes find the prepared data in the cache
        data = {split: load(tasks, split, num_proc=num_proc) for split in ("train", "val")[: 1 if holdout else 2]}
        is_numbered = any(are_row_numbers(rows["image_id"][:]) for rows in data.values())
        if left_out:
            data["train"] = data["train"].train_test_split(left_out, seed=0)["train"]
        if holdout:
            parts = data["train"].train_test_split(holdout, seed=0)
            data = {"train": parts["train"], "val": parts["test"]}
    if accelerator.is_main_process and not is_numbered:
        _warn_of_shared(data)
    return data


def _warn_of_shared(data: Mapping[str, Dataset]) -> None:
    """Warns of images that a model is both trained and scored on."""
    if shared := set.intersection(*(set(rows["image_id"][:]) for rows in data.values())):
        warnings.warn(
            f"Images in both splits, train and val: {len(shared)}, such as {min(shared)}. A model is scored on images "
            "that it was trained on. Take them out of one split.",
            stacklevel=3,
        )


def make_loader(
    data: Dataset, transform: JointTransform, batch_size: int, workers: int = 0, seed: int = 0
) -> "DataLoader[Batch]":
    """Makes the loader of a split. A loader for training shuffles, and drops the last incomplete batch."""
    return DataLoader(
        data.with_transform(transform),
        batch_size=batch_size,
        shuffle=transform.train,
        drop_last=transform.train,
        collate_fn=collate_and_trim,
        num_workers=workers,
        persistent_workers=workers > 0,
        # Its own generator, so that a resumed loader does not advance the generator of dropout.
        generator=torch.Generator().manual_seed(seed),
    )


def sample_labels(data: Dataset, count: int) -> dict[str, Tensor]:
    """Reads the labels of at most `count` images, at equal distances in a split, by task and in `SAMPLE_SIZE`."""
    count = min(count, len(data))
    rows = data.select([number * len(data) // count for number in range(count)])
    labels: dict[str, Tensor] = collate(list(rows.with_transform(JointTransform(SAMPLE_SIZE, train=False))))["labels"]
    return labels


def check_labels_exist(data: Dataset, tasks: Sequence[str]) -> None:
    """Reads labels of a split, without transforms, until each task has one that a model can learn from.

    Raises:
        ValueError: A task has none in the whole split, or a label before the first of them is not allowed.
    """
    for task in tasks:
        fault = f"None of the {len(data)} training images has a label of {task}."
        contents: set[Any] = set()
        labels = 0
        for sample in data.select_columns(["image_id", task]):
            if sample[task] is None:
                continue
            try:
                found = TASKS[task].read(TASKS[task].to_image(sample[task]))
            except ValueError as error:
                raise ValueError(f"{task} of {sample['image_id']}: {error}.") from error
            contents.update(TASKS[task].contents(found))
            labels += 1
            try:
                TASKS[task].review(contents, labels)
            except ValueError as error:
                fault = str(error)
            else:
                break
        else:
            raise ValueError(f"The split train: {fault}")


def rest_of_epoch(
    loader: Any, epoch: int, done: int, gradient_accumulation: int, accelerator: Accelerator
) -> Iterator[list[Batch]]:
    """Yields the batches of each optimiser step of an epoch; the last step may have fewer batches.

    Args:
        loader: Loader of the training images, prepared by `accelerator`.
        epoch: Number of the epoch, which determines the order of its images.
        done: Steps of this epoch that an interrupted run took before.
        gradient_accumulation: Batches per step.
        accelerator: The accelerator of this process.
    """
    loader.set_epoch(epoch)
    if done:  # a skipping loader starts new workers, so whole epochs use the loader whose workers persist
        loader = accelerator.skip_first_batches(loader, done * gradient_accumulation)
        loader.set_epoch(epoch)  # accelerate 1.10 to 1.12 makes a loader of epoch 0
    batches = iter(loader)
    while group := list(islice(batches, gradient_accumulation)):
        yield group


_trim = CDLL(None).malloc_trim if libc_ver()[0] == "glibc" else None


def collate_and_trim(samples: Sequence[Mapping[str, Any]]) -> Batch:
    """Collates samples, after a worker has freed the memory of its last batch, which glibc keeps (1 GB at 512 px)."""
    if _trim is not None and get_worker_info() is not None:
        _trim(0)
    return collate(samples)
