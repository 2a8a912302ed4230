# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Files, folders and links that are there whole or not at all: written as NAME.tmp, then renamed."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Writes a file that is there whole or not at all.

    Raises:
        OSError: It cannot be written; what stood there still does.
    """
    with explain_failure(file, beside(file)):
        beside(file).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        flush(beside(file))
        os.replace(beside(file), file)


def read_json(file: Path) -> dict[str, Any]:
    """Reads what `write_json` wrote; raises ValueError where the file holds something else."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"it holds {content!r}")
    except ValueError as error:
        how = "Delete it and give the command again with --resume True, which makes what is missing."
        raise ValueError(f"{file} is damaged ({error}). {how}") from error
    return content


@contextmanager
def explain_failure(path: Path, fresh: Path | None = None) -> Iterator[None]:
    """Turns an error of writing into an OSError that names `path` and says what to do; deletes `fresh`."""
    try:
        yield
    except BlockingIOError:  # of a lock
        raise
    except (OSError, RuntimeError, SafetensorError) as error:  # the second is torch's
        if fresh is not None:
            _delete(fresh)
        raise OSError(
            f"{path} cannot be written ({error}). What was there before is whole. Free space on the disk and see that "
            "the folder may be written to, or give another --output_dir; then give the command again with --resume "
            "True, which goes on from the last checkpoint."
        ) from error


def beside(path: Path) -> Path:
    """The path where a file or folder is written before it gets its name."""
    return path.with_name(f"{path.name}.tmp")


def flush(file: Path) -> None:
    """Waits until a file is on the disk, so that a power cut after a rename loses nothing."""
    with file.open("rb+") as stream:
        os.fsync(stream.fileno())


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def discard(folder: Path) -> None:
    """Deletes a folder, which loses its name at once."""
    nameless = folder.with_name(f"{folder.name}.old.tmp")
    os.replace(folder, nameless)
    shutil.rmtree(nameless)


def link(name: Path, target: Path) -> None:
    """Lets `name` be a link to a folder below its own; a copy without `state` where the system allows no links."""
    fresh = beside(name)
    _delete(fresh)
    try:
        fresh.symlink_to(target.relative_to(name.parent), target_is_directory=True)
        os.replace(fresh, name)
    except OSError:  # as on Windows, which neither lets everyone make links nor replaces one
        _delete(fresh)
        shutil.copytree(target, fresh, ignore=shutil.ignore_patterns("state"))
        _delete(name)
        os.replace(fresh, name)
