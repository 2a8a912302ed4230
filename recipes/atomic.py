# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Files and folders that are there whole or not at all, whatever stops their writing.

What is new is written beside its place, flushed to the disk and renamed. A file takes one rename; a folder takes two,
between which it is there as NAME.old, and `recover` puts it back.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from accelerate import Accelerator
from safetensors import SafetensorError


# Of a full disk: torch raises the second, safetensors the third.
WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)


def replace_folder(folder: Path, write: Callable[[Path], object], accelerator: Accelerator | None = None) -> None:
    """Writes beside `folder` first and swaps then.

    With an accelerator, all processes write and the main one swaps.

    Raises:
        OSError: It cannot be written; what stood there still does.
    """
    fresh, old = beside(folder, "new"), beside(folder, "old")
    swaps = accelerator is None or accelerator.is_main_process
    wait = accelerator.wait_for_everyone if accelerator else lambda: None
    explain = partial(explain_failure, folder, undo=partial(recover, folder) if swaps else None)
    if swaps:
        with explain():
            recover(folder)
            fresh.mkdir(parents=True)
    wait()
    with explain():
        write(fresh)
    wait()
    with explain():
        _flush_tree(fresh)
    wait()
    if swaps:
        with explain():
            if folder.exists():
                os.replace(folder, old)
            os.replace(fresh, folder)
            _flush(folder.parent)
            shutil.rmtree(old, ignore_errors=True)


def recover(folder: Path) -> None:
    """Takes away what an interrupted `replace_folder` left, after which the old folder or the new one stands there."""
    fresh, old = beside(folder, "new"), beside(folder, "old")
    if old.is_dir() and not folder.exists():
        os.replace(old, folder)
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)


def replace_file(file: Path, write: Callable[[Path], object]) -> None:
    """Writes beside `file` first and renames then.

    Raises:
        OSError: It cannot be written; what stood there still does.
    """
    fresh = beside(file, "new")
    with explain_failure(file, undo=partial(fresh.unlink, missing_ok=True)):
        write(fresh)
        _flush(fresh)
        os.replace(fresh, file)
        _flush(file.parent)


def write_json(file: Path, content: dict) -> None:
    """As `replace_file`."""
    replace_file(file, lambda fresh: fresh.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8"))


def read_json(file: Path) -> dict:
    """What `write_json` wrote.

    Raises:
        ValueError: The file holds something else.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}). {_HOW_TO_REPAIR}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} is damaged: it holds {content!r}. {_HOW_TO_REPAIR}")
    return content


_HOW_TO_REPAIR = "Delete it and give the command again with --resume True, which makes what is missing."


def beside(path: Path, ending: str) -> Path:
    return path.with_name(f"{path.name}.{ending}")


@contextmanager
def explain_failure(path: Path, undo: Callable[[], object] | None = None) -> Iterator[None]:
    """Turns an error of writing into an OSError that names `path` and says what to do, after `undo`."""
    try:
        yield
    except WRITE_ERRORS as error:
        with suppress(OSError):  # what cannot be undone now is undone when the run resumes
            if undo:
                undo()
        raise OSError(
            f"{path} cannot be written ({error}). What was there before is whole. Free space on the disk and see that "
            "the folder may be written to, or give another --output_dir; then give the command again, train_pascal.py "
            "with --resume True, which goes on from the last state."
        ) from error


def _flush_tree(folder: Path) -> None:
    for parent, _, files in os.walk(folder):
        for name in files:
            _flush(Path(parent, name))
        _flush(Path(parent))


def _flush(path: Path) -> None:
    """Waits until the content of a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
