# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Finds every fault of a PASCAL_MT archive in one go."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial

from tqdm.auto import tqdm

from .archive import DENSE_TASKS, FAULTS, SPLITS, PascalArchive, check_tasks, is_id


# Pictures handed to a worker process at a time.
_CHUNK = 16


def find_faults(
    data_dir: str | os.PathLike[str],
    tasks: Sequence[str] = DENSE_TASKS,
    splits: Sequence[str] = SPLITS,
    *,
    workers: int = 1,
) -> list[str]:
    """Reads every file that `load_pascal_context` would read and returns the faults, one line each.

    Each list, picture and label is read whatever is wrong with the others, and tells the first thing wrong with it.

    Args:
        data_dir: The PASCAL_MT folder.
        tasks: Tasks whose files are read, of `DENSE_TASKS`.
        splits: Splits whose pictures are read, of `train` and `val`.
        workers: Processes that read; with 1, no process is started.

    Raises:
        ValueError: A task or split is unknown.
    """
    tasks = check_tasks(tasks)
    unknown = [split for split in splits if split not in SPLITS]
    if unknown:
        raise ValueError(f"Unknown splits {unknown}; PASCAL_MT has {', '.join(SPLITS)}.")
    try:
        archive = PascalArchive(data_dir)
    except FileNotFoundError as fault:
        return [str(fault)]
    faults: list[str] = []
    image_ids: dict[str, None] = {}
    for split in splits:
        try:
            lines = archive.read_lines(split)
            image_ids |= dict.fromkeys(filter(is_id, lines))
            archive.check_lines(lines, split)
        except FAULTS as fault:
            faults.append(_one_line(fault))
    with _mapper(workers) as mapper:
        found = mapper(partial(_picture_faults, archive, tasks), image_ids)
        for lines in tqdm(found, total=len(image_ids), desc="Checking pictures"):
            faults += lines
    return faults


def _picture_faults(archive: PascalArchive, tasks: Sequence[str], image_id: str) -> list[str]:
    faults, size = [], None
    try:
        _, size = archive.read_image(image_id)
    except FAULTS as fault:
        faults.append(_one_line(fault))
    for task in tasks:
        try:
            archive.read_label(image_id, task, size)
        except FAULTS as fault:
            faults.append(_one_line(fault))
    return faults


def _one_line(fault: Exception) -> str:
    return " ".join(str(fault).split())


@contextmanager
def _mapper(workers: int) -> Iterator[Callable[..., Iterator[list[str]]]]:
    """A `map` in order of its input, over `workers` processes."""
    if workers <= 1:
        yield map
        return
    with ProcessPoolExecutor(workers) as pool:
        yield partial(pool.map, chunksize=_CHUNK)
