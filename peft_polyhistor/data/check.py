# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Finds every fault of a dataset in one run."""

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from ..checks import check_image, find_repeated
from ..tasks import PASCAL_TASKS, TASKS
from ..tasks.kinds.regression import Regression
from .archive import SPLITS, PascalArchive
from .columns import are_row_numbers, is_encoded_turned, keep_encoded
from .decode import Size
from .folder import FAULTS, DenseFolder
from .loading import Source, check_layout, check_splits, layout_of_split, load_dense_dataset, open_folder


STRIDE = 32  # of the coarsest maps, in pixels
TURNED = "Images that an EXIF orientation turns, whose labels must fit the turned image"


@dataclass
class DataReport:
    """Faults and notes of a dataset.

    Args:
        faults: Faults, one line each. The loader refuses a dataset that has one, but for a task without labels or
            without valid values.
        notes: Labels that are missing, that have a special interpretation or that differ from others, images that
            several splits share, and ids that several rows of a split share, one line for each kind.
        counts: Number of images by split.
    """

    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)


@dataclass
class _Findings:
    """Faults of an image and its labels, notes such as "Labels of depth that are missing", and what labels hold."""

    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    contents: dict[str, Collection[Any]] = field(default_factory=dict)
    dtypes: dict[str, str] = field(default_factory=dict)

    def add_image(self, size: Size) -> None:
        """Adds the note of an image that is too small for the encoders."""
        if min(size) < STRIDE:
            self.notes.append(f"Images below {STRIDE} pixels, the coarsest stride of the encoders")

    def add_label(self, task: str, label: Any, size: Size | None = None) -> None:
        """Adds the note and the contents of a stored label, `None` if it is missing; ValueError for a fault."""
        if label is None:
            self.notes.append(_missing(task))
            return
        row = TASKS[task]
        image = row.to_image(label)
        row.check_stored(image, size)
        found = row.read(image)
        if note := row.note(image, found):
            self.notes.append(f"Labels of {task} {note}")
        self.contents[task] = row.contents(found)
        if isinstance(row, Regression):
            self.dtypes[task] = np.asarray(label).dtype.name


def _missing(task: str) -> str:
    return f"Labels of {task} that are missing"


def check_dataset(
    source: Source,
    tasks: Sequence[str] = PASCAL_TASKS,
    splits: Sequence[str] = SPLITS,
    *,
    layout: Mapping[str, str] | None = None,
    workers: int = 1,
) -> DataReport:
    """Reads everything that `load_dense_dataset` would read, and reports all faults instead of stopping at the first.

    Each list, image and label reports its first fault. Worker processes read the files of a folder, so a file on
    which SciPy or Pillow crashes is reported as a fault too.

    Args:
        source: See `load_dense_dataset`.
        tasks: Tasks whose labels are read, rows of `TASKS`.
        splits: Splits whose images are read.
        layout: Layout of the source, see `load_dense_dataset`.
        workers: Number of processes that read a folder of files, at least 1.

    Raises:
        TypeError: `splits` is a string, or the source is of another type.
        ValueError: A task or split is unknown, there is no split, `workers` is below 1, the dataset cannot be opened,
            or there are several splits and the source is a single `Dataset`.
        FileNotFoundError: The source is neither a known kind of folder nor a dataset on the Hub.
        ConnectionError: The Hub cannot be reached.
        ModuleNotFoundError: A task needs SciPy, which is not installed.
    """
    check_splits(source, splits)
    splits, layout = list(map(str, splits)), layout or {}
    check_layout(layout, splits)
    report = DataReport()
    try:
        folder = open_folder(source, splits[0], layout)
    except FileNotFoundError as fault:
        report.faults.append(str(fault))
        return report
    if folder is not None:
        found = _check_folder(folder, tasks, splits, workers, report)
    else:
        found = _check_rows(source, tasks, splits, layout, report)
    noted: dict[str, list[str]] = {}
    contents: dict[str, list[Collection[Any]]] = {}
    dtypes: dict[str, dict[str, list[str]]] = {}
    for image_id, findings in found:
        report.faults += findings.faults
        for note in findings.notes:
            noted.setdefault(note, []).append(image_id)
        for task, held in findings.contents.items():
            contents.setdefault(task, []).append(held)
        for task, dtype in findings.dtypes.items():
            dtypes.setdefault(task, {}).setdefault(dtype, []).append(image_id)
    for task, ids_by_dtype in dtypes.items():
        if "uint8" in ids_by_dtype and len(ids_by_dtype) > 1:
            noted[f"Labels of {task} with 8 bits a pixel, beside labels with more"] = ids_by_dtype["uint8"]
    report.notes += [f"{note}: {len(ids)}, such as {_few(ids)}." for note, ids in sorted(noted.items())]
    for task, labels in contents.items():
        try:
            lack = TASKS[task].review(set().union(*labels), len(labels))
            report.notes += [lack] if lack else []
        except ValueError as fault:
            report.faults.append(str(fault))
    return report


def _check_folder(
    folder: DenseFolder, tasks: Sequence[str], splits: Sequence[str], workers: int, report: DataReport
) -> Iterator[tuple[str, _Findings]]:
    tasks = folder.choose_tasks(tasks)
    unknown = [split for split in splits if split not in SPLITS] if isinstance(folder, PascalArchive) else []
    if unknown:
        raise ValueError(f"Unknown splits {unknown}; PASCAL_MT has {', '.join(SPLITS)}.")
    image_ids: dict[str, None] = {}
    by_split: list[list[str]] = []
    for split in splits:
        try:
            lines = folder.read_lines(split)
            ids = list(filter(folder.is_id, lines))
            by_split.append(ids)
            image_ids |= dict.fromkeys(ids)
            report.counts[split] = len(lines)
            report.faults += folder.find_unlabeled(ids, tasks, split)
            if others := folder.find_others(split):
                what = f"Files of the split {split} whose endings are of no image"
                report.notes.append(f"{what}: {len(others)}, such as {_few(others)}.")
            folder.check_lines(lines, split)
        except FAULTS as fault:
            report.faults.append(_one_line(fault))
    report.notes += _note_shared("Images", by_split, splits)
    yield from tqdm(_read_all(folder, tasks, image_ids, workers), total=len(image_ids), desc="Checking images")


def _note_shared(what: str, by_split: Iterable[Iterable[Any]], splits: Sequence[str]) -> list[str]:
    """Notes the ids that are in several splits."""
    shared = find_repeated(image_id for ids in by_split for image_id in dict.fromkeys(ids))
    if not shared:
        return []
    return [f"{what} in several of the splits {', '.join(splits)}: {len(shared)}, such as {_few(shared)}."]


def _few(ids: Iterable[Any]) -> str:
    """Lists the first three ids; the rows of two splits may share one."""
    return ", ".join(list(dict.fromkeys(map(str, ids)))[:3])


def _check_rows(
    source: Source, tasks: Sequence[str], splits: Sequence[str], layout: Mapping[str, str], report: DataReport
) -> Iterator[tuple[str, _Findings]]:
    by_split: list[Sequence[Any]] = []
    for split in splits:
        dataset = load_dense_dataset(source, tasks, split, layout=layout_of_split(layout, split, splits))
        report.counts[split] = len(dataset)
        ids, encoded, unlabeled = dataset["image_id"][:], keep_encoded(dataset), list(tasks)
        if not are_row_numbers(ids):
            by_split.append(ids)
            if again := find_repeated(ids):
                report.notes.append(f"Ids of several rows of the split {split}: {len(again)}, such as {_few(again)}.")
        for index in tqdm(range(len(dataset)), desc=f"Checking {split}"):
            findings, name = _Findings(), f"{ids[index]}"
            size = None
            for column in ("image", *tasks):
                try:
                    value = dataset.select_columns([column])[index][column]
                    if column == "image":
                        check_image("it", value)
                        size = value.size
                        findings.add_image(size)
                        findings.notes += [TURNED] if is_encoded_turned(encoded[index]["image"]) else []
                    else:
                        findings.add_label(column, value, size)
                except Exception as fault:  # an image that cannot be decoded raises one of many exceptions
                    findings.faults.append(f"{column} of {name} ({split}): {_one_line(fault).removesuffix('.')}.")
            unlabeled = [task for task in unlabeled if _missing(task) in findings.notes]
            yield name, findings
        report.faults += [
            f"No image of the split {split!r} has a label of {task}. Correct the layout, or leave the task out."
            for task in unlabeled
        ]
    report.notes += _note_shared("Ids of rows", by_split, splits)


def _read_all(
    folder: DenseFolder, tasks: Sequence[str], image_ids: Iterable[str], workers: int
) -> Iterator[tuple[str, _Findings]]:
    """Yields ids and findings in order. A crash ends its process pool; a new pool continues after the image."""
    rest = deque(image_ids)
    while rest:
        pool = ProcessPoolExecutor(workers)
        try:
            futures = deque(pool.submit(_read_image, folder, tasks, image_id) for image_id in rest)
            while rest:
                found = futures.popleft().result()
                yield rest.popleft(), found
        except BrokenProcessPool:  # this image or another one that was read at the same time caused the crash
            image_id = rest.popleft()
            yield image_id, _read_alone(folder, tasks, image_id)
        finally:
            pool.shutdown(cancel_futures=True)


def _read_alone(folder: DenseFolder, tasks: Sequence[str], image_id: str) -> _Findings:
    """Reads each file of one image in a separate process."""
    result = _Findings()
    for part in ([], *([task] for task in tasks)):
        with ProcessPoolExecutor(1) as pool:
            try:
                found = pool.submit(_read_image, folder, part, image_id).result()
            except BrokenProcessPool:
                paths = " or ".join(map(str, folder.paths(image_id, *(part or ["image"]))))
                found = _Findings([f"{paths}: found a file that crashes the process which reads it. Restore it."])
                if not part:
                    return found
        result.faults = list(dict.fromkeys(result.faults + found.faults))
        result.notes += found.notes
        result.contents |= found.contents
        result.dtypes |= found.dtypes
    return result


def _read_image(folder: DenseFolder, tasks: Iterable[str], image_id: str) -> _Findings:
    findings = _Findings()
    size = None
    try:
        _, size = folder.read_image(image_id)
        findings.add_image(size)
    except FAULTS as fault:
        findings.faults.append(_one_line(fault))
    for task in tasks:
        try:
            label = folder.read_label(image_id, task, size)
            if label is not None or size is not None:  # an id without a readable image is a fault already
                findings.add_label(task, label, size)
        except FAULTS as fault:
            findings.faults.append(_one_line(fault))
    return findings


def _one_line(fault: Exception) -> str:
    return " ".join(str(fault).split())
