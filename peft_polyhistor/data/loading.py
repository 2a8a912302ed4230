# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Images and dense labels as Hugging Face datasets: from folders of files, parquet files, the Hub, or any dataset.

All sources give the same columns: `image_id` (text or integer), `image`, and one column of labels per task, stored as
the kind of the task describes. One mapping, the layout, translates other names of columns, folders and splits:
`{"image": "photo", "lanes": "mask", "val": "validation"}`.
"""

import glob
import hashlib
import json
import os
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, TypeAlias

from ..checks import check_list
from ..extras import needs_extra
from ..hub.sources import is_hub_id
from ..tasks import PASCAL_TASKS, TASKS, get_tasks
from .archive import PascalArchive
from .columns import choose_columns
from .folder import FAULTS, DenseFolder, split_star


with needs_extra("train"):
    from datasets import Dataset, DatasetDict, Features, Image, NamedSplit, Value, load_dataset
    from datasets.exceptions import DatasetGenerationError
    from pyarrow.lib import ArrowException


# Part of the cache key. Raise it when the same files are read differently.
_FORMAT_VERSION = 4

# Exceptions by the name that a worker process reports; any other fault is an OSError.
_FAULT_TYPES = {"ValueError": ValueError, "FileNotFoundError": FileNotFoundError}

Source: TypeAlias = str | os.PathLike[str] | Dataset | DatasetDict


def load_dense_dataset(
    source: Source,
    tasks: Sequence[str] = PASCAL_TASKS,
    split: str = "train",
    *,
    layout: Mapping[str, str] | None = None,
    num_proc: int | None = None,
    cache_dir: str | None = None,
    **kwargs: Any,
) -> Dataset:
    """Loads a dense dataset with the columns `image_id`, `image` and those of `tasks`.

    A folder of files is read once, into a cached, memory-mapped dataset that holds the encoded images as they are, and
    labels in a lossless format. The first call decodes and checks every file. Later calls open the cache, until a file
    changes. A fault leaves no cache behind. A warning names a task for which no image has a label. In a dataset
    without ids, the row numbers become the ids.

    Args:
        source: One of:

            - a PASCAL_MT folder;
            - a folder of image and label files, see `DenseFolder`;
            - a folder with `<split>.parquet` or `<split>-00000-of-00002.parquet` and so on, directly or in a subfolder
              `data`;
            - the id of a dataset on the Hub;
            - a `Dataset` or `DatasetDict`.
        tasks: Tasks to read, rows of `TASKS`.
        split: Name of the split.
        layout: Names in the source that differ: of the columns or folders of `image_id`, `image` and the tasks, and
            of the splits or their list files.
        num_proc: Number of worker processes that read a folder of files the first time.
        cache_dir: Cache folder; by default that of `datasets`.
        **kwargs: Passed to `datasets.load_dataset`, which reads parquet files and the Hub.

    Raises:
        TypeError: `source` is of another type; or there are further arguments, and nothing to pass them to.
        FileNotFoundError: `source` is a folder of another kind, or neither a folder nor a dataset on the Hub; or a
            file is missing.
        ConnectionError: `source` is no folder, and the Hub cannot be reached.
        ValueError: A task is unknown; the layout does not suit the source; a file is damaged; or the dataset lacks a
            column or split, or a column holds neither images nor arrays. `python -m peft_polyhistor data check FOLDER`
            lists all faults.
        ModuleNotFoundError: A task needs SciPy, which is not installed.
    """
    layout, split = layout or {}, str(split)
    check_layout(layout, [split])
    folder = open_folder(source, split, layout)
    if kwargs and (folder is not None or isinstance(source, Dataset | DatasetDict)):
        what = "a folder of files" if folder is not None else f"a {type(source).__name__}"
        raise TypeError(
            f"The arguments {sorted(kwargs)} are those of datasets.load_dataset, which does not read {what}. Leave "
            "them out."
        )
    if kwargs.get("streaming"):
        raise ValueError("A dense dataset has a length and is read in any order. Leave out `streaming=True`.")
    if folder is not None:
        return _load_folder(folder, tasks, split, num_proc, cache_dir)
    dataset = _open_dataset(source, split, layout, cache_dir, **kwargs)
    return choose_columns(dataset, [task.name for task in get_tasks(tasks)], layout, source)


def check_layout(layout: Mapping[str, str], splits: Sequence[str]) -> None:
    """Raises ValueError if a layout names anything but columns, tasks and splits."""
    known = ("image_id", "image", "train", "val", *splits, *TASKS)
    if unknown := [name for name in layout if name not in known]:
        raise ValueError(f"The layout names {unknown}, which are none of {', '.join(dict.fromkeys(known))}.")


def layout_of_split(layout: Mapping[str, str], split: str, splits: Sequence[str]) -> dict[str, str]:
    """Leaves out the names of the other splits, which the loader of one split does not know."""
    return {name: theirs for name, theirs in layout.items() if name == split or name not in splits}


def check_splits(source: Source, splits: Sequence[str]) -> None:
    """Checks the names of the splits to read.

    Raises:
        TypeError: `splits` is a string.
        ValueError: It is empty; or it has several splits, and the source is a single `Dataset`, which is all of them
            at once.
    """
    check_list("splits", splits)
    if not splits:
        raise ValueError("`splits` must name at least one split, got none. Use e.g. ['train', 'val'].")
    if isinstance(source, Dataset) and len(splits) > 1:
        raise ValueError(
            f"The source is one Dataset, so the splits {list(splits)} would all have the same rows. Give a "
            f"DatasetDict with these splits, or one split, such as splits=[{splits[0]!r}]."
        )


def open_folder(source: Source, split: str, layout: Mapping[str, str]) -> DenseFolder | None:
    """Opens a source that is a folder of files; returns `None` for parquet files, the Hub and datasets.

    Raises:
        TypeError: The source is neither a path nor a dataset with a length.
        FileNotFoundError: The source is a folder of another kind.
        ValueError: The layout does not suit the folder.
    """
    if not isinstance(source, str | os.PathLike | Dataset | DatasetDict):
        raise TypeError(
            "The source must be a folder, the id of a dataset on the Hub, a Dataset or a DatasetDict, got the type "
            f"{type(source).__name__}. Load a dataset without `streaming=True`."
        )
    if isinstance(source, Dataset | DatasetDict) or not Path(os.path.expanduser(source)).is_dir():
        return None
    folder = Path(os.path.expanduser(source))
    if not layout and (folder / "ImageSets" / "Context").is_dir():
        return PascalArchive(folder)
    if (folder / split_star(layout.get("image", "images"))[0]).is_dir():
        return DenseFolder(folder, layout)
    if _parquet_files(folder, layout.get(split, split)):
        return None
    if (folder / "ImageSets" / "Context").is_dir():
        raise ValueError(
            f"{folder}: found a PASCAL_MT archive, which takes no layout, got {dict(layout)}. Leave the layout out; "
            "or name the folder of the images as `image` in it, which reads a folder of image and label files."
        )
    raise FileNotFoundError(
        f"{folder}: found neither ImageSets/Context (a PASCAL_MT archive) nor {split}.parquet or "
        f"{split}-00000-of-00001.parquet for the split {split!r}, nor a folder of images, "
        f"{layout.get('image', 'images')}. Give one of these folders or the id of a dataset on the Hub, or give other "
        "names in the layout."
    )


def holds_data(folder: Path, split: str) -> bool:
    """Tells whether a folder holds a split that `load_dense_dataset` would read, or a folder of images."""
    try:
        open_folder(folder, split, {})
    except FileNotFoundError:
        return False
    return True


def _open_dataset(
    source: Source, split: str, layout: Mapping[str, str], cache_dir: str | None, **kwargs: Any
) -> Dataset:
    name = layout.get(split, split)
    if isinstance(source, DatasetDict):
        if name not in source:
            raise ValueError(f"The dataset has the splits {list(source)}, not {name!r}. Name one in the layout.")
        return source[name]
    if isinstance(source, Dataset):
        return source
    if cache_dir is not None:
        kwargs["cache_dir"] = cache_dir
    folder = Path(os.path.expanduser(source))
    if folder.is_dir():
        return _load_parquet(_parquet_files(folder, name), split, **kwargs)
    if not is_hub_id(str(source)):
        raise FileNotFoundError(
            f"There is no folder '{source}'. Give a folder of images and labels, or the id of a dataset on the Hub, "
            "'user/name'."
        )
    try:
        return load_dataset(str(source), split=name, **kwargs)
    except (ConnectionError, FileNotFoundError) as error:
        kind = ConnectionError if isinstance(error, ConnectionError) else FileNotFoundError
        raise kind(f"{folder.absolute()} is no folder, so {source} was looked for on the Hub. {error}") from error


def _load_folder(
    folder: DenseFolder, tasks: Sequence[str], split: str, num_proc: int | None, cache_dir: str | None
) -> Dataset:
    tasks = folder.choose_tasks(tasks)
    image_ids = folder.read_ids(split)
    fingerprint = _fingerprint(folder, image_ids, tasks, split)
    for lack in folder.find_unlabeled(image_ids, tasks, split):
        warnings.warn(lack, stacklevel=3)
    with tempfile.TemporaryDirectory() as fault_dir:
        try:
            return Dataset.from_generator(
                _read_examples,
                features=Features({"image_id": Value("string"), "image": Image()} | {task: Image() for task in tasks}),
                gen_kwargs={"folder": folder, "tasks": tasks, "image_ids": image_ids, "fault_dir": fault_dir},
                split=NamedSplit(split),
                num_proc=num_proc,
                cache_dir=cache_dir,
                fingerprint=fingerprint,
                dataset_name="dense_folder",
            )
        except DatasetGenerationError:
            for path in Path(fault_dir).iterdir():
                name, text = json.loads(path.read_text("utf-8"))
                raise _FAULT_TYPES.get(name, OSError)(text) from None
            raise


def _read_examples(
    folder: DenseFolder, tasks: tuple[str, ...], image_ids: list[str], fault_dir: str
) -> Iterator[dict[str, Any]]:
    for image_id in image_ids:
        try:
            example = folder.read(image_id, tasks)
        except FAULTS as fault:
            # `datasets` drops type and text of an error in a worker process, so a file carries them to the caller.
            report = json.dumps([type(fault).__name__, str(fault)])
            (Path(fault_dir) / str(os.getpid())).write_text(report, "utf-8")
            raise
        yield {"image_id": image_id} | example


def _fingerprint(folder: DenseFolder, image_ids: list[str], tasks: tuple[str, ...], split: str) -> str:
    """Computes the cache key from split, tasks, and the absolute path, size and change time of every file read."""
    rows = [task.to_dict() for task in get_tasks(tasks)]
    digest = hashlib.sha256(json.dumps([_FORMAT_VERSION, split, tasks, rows]).encode())
    for column, name in product(("image", *tasks), image_ids):
        for path in folder.paths(name, column):
            status = path.stat()
            digest.update(json.dumps([column, name, str(path), status.st_size, status.st_mtime_ns]).encode())
    return digest.hexdigest()[:32]


def _load_parquet(files: list[str], split: str, **kwargs: Any) -> Dataset:
    try:
        return load_dataset("parquet", data_files={split: list(map(glob.escape, files))}, split=split, **kwargs)
    except (ArrowException, DatasetGenerationError) as error:
        cause = " ".join(str(error.__cause__ or error).split())  # on one line
        which = "one of them" if len(files) > 1 else "it"
        fault = f"{', '.join(files)}: {which} is damaged, or no parquet file ({cause}). Write it again."
        raise ValueError(fault) from error


def _parquet_files(folder: Path, split: str) -> list[str]:
    """Finds the parquet files of a split: one file, or numbered parts such as the Hub has.

    Raises:
        ValueError: There are both, or a part is missing or there twice.
    """
    name = re.compile(rf"{re.escape(split)}-(?P<part>\d{{5}})(-of-(?P<count>\d{{5}}))?(-[0-9a-f]{{16}})?\.parquet")
    for place in (folder, folder / "data"):
        whole = place / f"{split}.parquet"
        matches = {path: match for path in sorted(place.glob("*.parquet")) if (match := name.fullmatch(path.name))}
        parts = [int(match["part"]) for match in matches.values()]
        counts = {int(match["count"] or len(parts)) for match in matches.values()}
        if matches and whole.is_file():
            raise ValueError(f"{whole}: found beside {next(iter(matches)).name}. Remove one of the two.")
        if matches and (len(counts) > 1 or parts != list(range(*counts))):
            raise ValueError(
                f"{place}: found the parts {parts} of {' or '.join(map(str, sorted(counts)))} of the split {split!r}. "
                "Restore the missing parts, and keep one of each."
            )
        if matches or whole.is_file():
            return [str(path.absolute()) for path in matches or [whole]]
    return []
