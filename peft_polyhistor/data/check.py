# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Finds every fault of a PASCAL_MT archive in one go."""

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field

import numpy as np
from tqdm.auto import tqdm

from .archive import DENSE_TASKS, FAULTS, SPLITS, PascalArchive, check_tasks, is_id
from .decode import check_readers, find_normals


NOTES = {
    "saliency": "Labels of saliency of 0 and 1 alone, which are read as masks of 0 and 1: {count}, such as {example}.",
    "normals": "Labels of normals with colors far from a unit vector, which are ignored: {count}, such as {example}.",
}


@dataclass(frozen=True)
class ArchiveReport:
    """Faults and notes of an archive, each file of which was read.

    Args:
        faults: One line each; `load_pascal_context` refuses an archive that has one.
        notes: One line for each kind of label that is read in a way of its own.
    """

    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def find_faults(
    data_dir: str | os.PathLike[str],
    tasks: Sequence[str] = DENSE_TASKS,
    splits: Sequence[str] = SPLITS,
    *,
    workers: int = 1,
) -> list[str]:
    """The faults of `check_archive` alone, which says more of the arguments and errors."""
    return check_archive(data_dir, tasks, splits, workers=workers).faults


def check_archive(
    data_dir: str | os.PathLike[str],
    tasks: Sequence[str] = DENSE_TASKS,
    splits: Sequence[str] = SPLITS,
    *,
    workers: int = 1,
) -> ArchiveReport:
    """Reads every file that `load_pascal_context` would read.

    Each list, picture and label is read whatever is wrong with the others, and tells the first thing wrong with it.
    The files are read in processes of their own: one on which SciPy or Pillow crashes is a fault among the others.

    Args:
        data_dir: The PASCAL_MT folder.
        tasks: Tasks whose files are read, of `DENSE_TASKS`.
        splits: Splits whose pictures are read, of `train` and `val`.
        workers: Processes that read, at least 1.

    Raises:
        ValueError: A task or split is unknown, or there is no worker.
        ModuleNotFoundError: A task needs SciPy, which is not installed.
    """
    tasks = check_tasks(tasks)
    unknown = [split for split in splits if split not in SPLITS]
    if unknown:
        raise ValueError(f"Unknown splits {unknown}; PASCAL_MT has {', '.join(SPLITS)}.")
    check_readers(tasks)
    try:
        archive = PascalArchive(data_dir)
    except FileNotFoundError as fault:
        return ArchiveReport([str(fault)])
    faults: list[str] = []
    image_ids: dict[str, None] = {}
    for split in splits:
        try:
            lines = archive.read_lines(split)
            image_ids |= dict.fromkeys(filter(is_id, lines))
            archive.check_lines(lines, split)
        except FAULTS as fault:
            faults.append(_one_line(fault))
    noted: dict[str, list[str]] = {}
    found = _read_all(archive, tasks, image_ids, workers)
    for image_id, (lines, notes) in tqdm(found, total=len(image_ids), desc="Checking pictures"):
        faults += lines
        for note in notes:
            noted.setdefault(note, []).append(image_id)
    sentences = [NOTES[note].format(count=len(ids), example=ids[0]) for note, ids in sorted(noted.items())]
    return ArchiveReport(faults, sentences)


# Faults and keys of `NOTES`.
_Found = tuple[list[str], list[str]]


def _read_all(
    archive: PascalArchive, tasks: Sequence[str], image_ids: Iterable[str], workers: int
) -> Iterator[tuple[str, _Found]]:
    """Ids and what was found, in order. A process that dies ends its pool: the next one starts behind the image."""
    rest = deque(image_ids)
    while rest:
        pool = ProcessPoolExecutor(workers)
        try:
            futures = deque(pool.submit(_read_picture, archive, tasks, image_id) for image_id in rest)
            while rest:
                found = futures.popleft().result()
                yield rest.popleft(), found
        except BrokenProcessPool:  # of this image, or of another that was read at the same time
            image_id = rest.popleft()
            yield image_id, _read_alone(archive, tasks, image_id)
        finally:
            pool.shutdown(cancel_futures=True)


def _read_alone(archive: PascalArchive, tasks: Sequence[str], image_id: str) -> _Found:
    """Reads each file of one image in a process of its own."""
    lines: dict[str, None] = {}
    notes: list[str] = []
    for part in ([], *([task] for task in tasks)):
        with ProcessPoolExecutor(1) as pool:
            try:
                found = pool.submit(_read_picture, archive, part, image_id).result()
            except BrokenProcessPool:
                paths = " or ".join(map(str, archive.paths(image_id, *(part or ["image"]))))
                lines[f"{paths}: found a file that ends the process which reads it. Restore it."] = None
                if not part:
                    break
            else:
                lines |= dict.fromkeys(found[0])
                notes += found[1]
    return list(lines), notes


def _read_picture(archive: PascalArchive, tasks: Iterable[str], image_id: str) -> _Found:
    faults: list[str] = []
    notes: list[str] = []
    size = None
    try:
        _, size = archive.read_image(image_id)
    except FAULTS as fault:
        faults.append(_one_line(fault))
    for task in tasks:
        try:
            label = archive.read_label(image_id, task, size)
        except FAULTS as fault:
            faults.append(_one_line(fault))
        else:
            notes += [task] if _is_noted(task, label) else []
    return faults, notes


def _is_noted(task: str, label: np.ndarray) -> bool:
    if task == "saliency":
        return bool(label.max() == 1)
    return task == "normals" and bool((label.any(axis=-1) & ~find_normals(label)).any())


def _one_line(fault: Exception) -> str:
    return " ".join(str(fault).split())
