# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""One run at a time in a folder."""

import fcntl
import os
import platform
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator
from atomic import explain_failure


@contextmanager
def lock_folder(accelerator: Accelerator, folder: Path) -> Iterator[None]:
    """Makes the folder and keeps other runs out of it; a run that is killed leaves no lock behind, only its file.

    The main process has the lock, for all.

    Raises:
        BlockingIOError: Another run is in the folder.
        OSError: The folder cannot be written to.
    """
    if not accelerator.is_main_process:
        yield
        return
    file = folder / "lock"
    with explain_failure(file):
        folder.mkdir(parents=True, exist_ok=True)
        stream = file.open("a+", encoding="utf-8")
    with stream:
        try:
            # Not `flock`: the workers of a killed run inherit that one, and outlive the run by seconds.
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            stream.seek(0)
            raise BlockingIOError(
                f"{folder} is in use by another run, {stream.read() or 'which has just started'}. Wait for its end, "
                "or give another --output_dir."
            ) from error
        except OSError as error:
            warnings.warn(f"{file} cannot be locked ({error}): start no other run in this folder.", stacklevel=2)
        with explain_failure(file):
            stream.truncate(0)
            stream.write(f"process {os.getpid()} on {platform.node()}")
            stream.flush()
        yield
