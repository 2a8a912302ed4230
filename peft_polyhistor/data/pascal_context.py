# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Pictures and dense labels as Hugging Face datasets: from a PASCAL_MT folder, parquet files or the Hub.

All sources give the same columns: `image_id` (string), `image`, and one `datasets.Image` column per task:

| column | mode | values |
|---|---|---|
| semseg | L | class ids 0 to 20, 255 = ignore |
| human_parts | L | 0 = background, parts 1 to 6 |
| saliency | L | probability * 255; or a mask of 0 and 1 alone |
| normals | RGB | component = value / 127.5 - 1; black, and every color far from a unit vector = no normal |
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..extras import needs_extra
from .archive import DENSE_TASKS, FAULTS, PascalArchive, check_tasks
from .decode import check_readers


with needs_extra("train"):
    from datasets import Dataset, Features, Image, NamedSplit, Value, load_dataset
    from datasets.exceptions import DatasetGenerationError
    from pyarrow.lib import ArrowException


# Part of the cache key: raise it when what is read from the same files changes.
_FORMAT_VERSION = 1

# What a worker process reports a fault as; any other is some OSError.
_FAULT_TYPES = {"ValueError": ValueError, "FileNotFoundError": FileNotFoundError}


def load_pascal_context(
    data_dir: str | os.PathLike[str],
    tasks: Sequence[str] = DENSE_TASKS,
    split: str = "train",
    *,
    num_proc: int | None = None,
    cache_dir: str | None = None,
) -> Dataset:
    """Reads a PASCAL_MT folder into a cached, memory-mapped dataset that holds its own pictures.

    The first call decodes and checks every file; later calls open the cache, until a file of the folder changes. The
    archive is only read, and a fault leaves no cache behind. JPEG bytes are kept; labels are lossless PNG.

    Args:
        data_dir: The PASCAL_MT folder.
        tasks: Tasks to read, of `DENSE_TASKS`. The files of other tasks need not exist.
        split: `train` or `val`.
        num_proc: Worker processes for the first call.
        cache_dir: Cache folder in place of the one of `datasets`.

    Raises:
        FileNotFoundError: `data_dir` is no such folder, or a file is missing.
        ValueError: A task or split is unknown, or a file is damaged, of another size than its picture or out of range.
            `python -m peft_polyhistor data check FOLDER` lists all faults.
        ModuleNotFoundError: A task needs SciPy, which is not installed.
    """
    tasks = check_tasks(tasks)
    check_readers(tasks)
    archive = PascalArchive(data_dir)
    image_ids = archive.read_ids(split)
    fingerprint = _fingerprint(archive, image_ids, tasks, split)
    with tempfile.TemporaryDirectory() as fault_dir:
        try:
            return Dataset.from_generator(
                _read_examples,
                features=_features(tasks),
                gen_kwargs={"archive": archive, "tasks": tasks, "image_ids": image_ids, "fault_dir": fault_dir},
                split=NamedSplit(split),
                num_proc=num_proc,
                cache_dir=cache_dir,
                fingerprint=fingerprint,
                dataset_name="pascal_context",
            )
        except DatasetGenerationError:
            for path in Path(fault_dir).iterdir():
                name, text = json.loads(path.read_text("utf-8"))
                raise _FAULT_TYPES.get(name, OSError)(text) from None
            raise


def load_dense_dataset(
    source: str | os.PathLike[str], tasks: Sequence[str] = DENSE_TASKS, split: str = "train", **kwargs: Any
) -> Dataset:
    """A dense dataset from wherever it lies, cut to `image_id`, `image` and the columns of `tasks`.

    Args:
        source: A PASCAL_MT folder; a folder with the parquet files of a split, `<split>.parquet` or
            `<split>-*.parquet`, in it or in its `data` folder; or the id of a dataset on the Hub.
        tasks: Tasks to read, of `DENSE_TASKS`.
        split: Name of the split.
        **kwargs: Passed to `load_pascal_context` or `datasets.load_dataset`, such as `num_proc` and `cache_dir`.

    Raises:
        FileNotFoundError: `source` is a folder of another kind, or neither a folder nor a dataset on the Hub.
        ConnectionError: `source` is no folder and the Hub cannot be reached.
        ValueError: A task is unknown, a parquet file is damaged, or the dataset lacks a column or stores it as
            something else than pictures.
    """
    folder = Path(os.path.expanduser(source))
    if (folder / "ImageSets" / "Context").is_dir():
        return load_pascal_context(folder, tasks, split, **kwargs)
    tasks = check_tasks(tasks)
    if folder.is_dir():
        dataset = _load_parquet(_parquet_files(folder, split), split, **kwargs)
    else:
        dataset = load_dataset(str(source), split=split, **kwargs)
    expected = _features(tasks)
    found = dataset.features
    kinds = {name: getattr(found.get(name), "dtype", None) for name in expected}
    # An id may be a text or a whole number.
    is_id = str(kinds["image_id"]).startswith(("string", "large_string", "int", "uint"))
    wrong = [name for name in expected if kinds[name] != expected[name].dtype and not (name == "image_id" and is_id)]
    if wrong:
        raise ValueError(
            f"{source}: found no {', '.join(wrong)} of the right kind; the dataset has {dict(found)}. Leave "
            "out tasks it lacks, and cast or rename columns to: image_id a string or integer, the "
            "others datasets.Image."
        )
    return dataset.select_columns(list(expected))


def _features(tasks: Sequence[str]) -> Features:
    return Features({"image_id": Value("string"), "image": Image()} | {task: Image() for task in tasks})


def _read_examples(
    archive: PascalArchive, tasks: tuple[str, ...], image_ids: list[str], fault_dir: str
) -> Iterator[dict[str, Any]]:
    for image_id in image_ids:
        try:
            example = archive.read(image_id, tasks)
        except FAULTS as fault:
            # `datasets` drops type and text of what a worker process raises: leave it where the caller finds it.
            report = json.dumps([type(fault).__name__, str(fault)])
            (Path(fault_dir) / str(os.getpid())).write_text(report, "utf-8")
            raise
        yield {"image_id": image_id} | example


def _fingerprint(archive: PascalArchive, image_ids: list[str], tasks: tuple[str, ...], split: str) -> str:
    """Key of the cache: what is read, and the absolute path, size and time of change of every file it is read from."""
    digest = hashlib.sha256(json.dumps([_FORMAT_VERSION, split, tasks]).encode())
    for image_id in image_ids:
        for column in ("image", *tasks):
            for path in archive.paths(image_id, column):
                status = path.stat()
                digest.update(json.dumps([str(path), status.st_size, status.st_mtime_ns]).encode())
    return digest.hexdigest()[:32]


def _load_parquet(files: list[str], split: str, **kwargs: Any) -> Dataset:
    try:
        return load_dataset("parquet", data_files={split: files}, split=split, **kwargs)
    except (ArrowException, DatasetGenerationError) as error:
        cause = " ".join(str(error.__cause__ or error).split())  # in one line
        which = "one of them" if len(files) > 1 else "it"
        raise ValueError(
            f"{', '.join(files)}: {which} is damaged, or no parquet file ({cause}). Write it again."
        ) from error


def _parquet_files(folder: Path, split: str) -> list[str]:
    for place in (folder, folder / "data"):
        files = sorted({*place.glob(f"{split}.parquet"), *place.glob(f"{split}-*.parquet")})
        if files:
            return [str(path.absolute()) for path in files]
    raise FileNotFoundError(
        f"{folder}: found neither ImageSets/Context (a PASCAL_MT archive) nor {split}.parquet or {split}-*.parquet "
        f"for the split {split!r}. Give one of these folders or the id of a dataset on the Hub."
    )
