# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Writes files, folders and links atomically: as NAME.tmp, which is then renamed to NAME; and locks folders."""

import json
import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError


_PATIENCE = 10  # seconds; the workers of a killed run live 5 seconds longer and may hold its lock


def write_text(file: Path, text: str) -> None:
    """Writes a text file atomically."""
    with replacing(file) as fresh:
        fresh.write_text(text, encoding="utf-8")


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file atomically.

    Raises:
        OSError: The file cannot be written. An earlier file does not change.
    """
    with explain_failure(file):
        write_text(file, json.dumps(content, indent=2) + "\n")


def read_json(file: Path) -> dict[str, Any]:
    """Reads a file of `write_json`; raises ValueError if it is damaged."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"it holds {content!r}")
    except ValueError as error:
        how = "Delete it and resume the run that wrote it, which writes it again."
        raise ValueError(f"{file} is damaged ({error}). {how}") from error
    return content


@contextmanager
def explain_failure(path: Path) -> Iterator[None]:
    """Turns a write error into an OSError that names `path` and a remedy."""
    try:
        yield
    except BlockingIOError:  # from a lock
        raise
    except (OSError, RuntimeError, SafetensorError) as error:  # PyTorch raises RuntimeError
        raise OSError(
            f"{path} cannot be written ({error}). Earlier files are complete. Free space on the disk and check the "
            "permissions of the folder, then resume the run; or start it with another output folder."
        ) from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes a folder and locks it against other runs; the lock of a killed run is released.

    Raises:
        BlockingIOError: Another run uses the folder.
        OSError: The folder cannot be written to.
    """
    lock, owner = FileLock(folder / "lock"), folder / "process.txt"
    with explain_failure(folder / "lock"):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=_PATIENCE)
        except Timeout as error:
            other = owner.read_text(encoding="utf-8") if owner.is_file() else "which has just started"
            how = "Wait until it ends, or give another folder."
            raise BlockingIOError(f"{folder} is in use by another run, {other}. {how}") from error
    try:
        with explain_failure(owner):
            owner.write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")
        yield
    finally:
        lock.release()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path, and renames the file or folder there to `path` if the block succeeds.

    Raises:
        IsADirectoryError: The block wrote a file, and `path` is a folder, which stays.
    """
    fresh = beside(path)
    delete(fresh)
    try:
        yield fresh
        for file in (path for path in (fresh, *fresh.rglob("*")) if path.is_file()):
            with file.open("rb+") as stream:
                os.fsync(stream.fileno())  # so that a power failure after the rename loses nothing
        if path.is_dir() and fresh.is_dir():
            discard(path)
        os.replace(fresh, path)
    finally:
        delete(fresh)


def beside(path: Path) -> Path:
    """Returns the temporary path under which `path` is written."""
    return path.with_name(f"{path.name}.tmp")


def delete(path: Path) -> None:
    """Deletes a file, a link or a folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def discard(folder: Path) -> None:
    """Deletes a folder after renaming it, so that no half-deleted folder keeps its name."""
    nameless = folder.with_name(f"{folder.name}.old.tmp")
    delete(nameless)  # of a process that was killed
    os.replace(folder, nameless)
    shutil.rmtree(nameless)


def link(name: Path, target: Path) -> None:
    """Links `name` to a folder below its own; copies the folder without `state` if the system allows no links."""
    fresh = beside(name)
    delete(fresh)
    try:
        os.symlink(target.relative_to(name.parent), fresh, target_is_directory=True)
        os.replace(fresh, name)
    except OSError:  # Windows restricts links to some users, and cannot replace a link
        delete(fresh)
        shutil.copytree(target, fresh, ignore=shutil.ignore_patterns("state"))
        delete(name)
        os.replace(fresh, name)
