# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Memory that a process and those that it started hold, over time, on Linux."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from threading import Event, Thread
from typing import NamedTuple


class Memory(NamedTuple):
    """Bytes in memory, summed over processes: what they share counts for each of them.

    Args:
        own: Without a file behind it.
        mapped: Pages of files, such as prepared data, which the system takes back when it needs the room.
    """

    own: int
    mapped: int


def resident_memory(process: int | None = None) -> Memory:
    """Memory of a process, of this one by default, and of all that it started."""
    own = mapped = 0
    for number in _family(process or os.getpid()):
        try:
            lines = Path(f"/proc/{number}/status").read_text(encoding="utf-8").splitlines()
        except (FileNotFoundError, ProcessLookupError):  # it has just ended
            continue
        sizes = {line.partition(":")[0]: line.split()[1] for line in lines if line.startswith("Rss")}  # kB
        own += 1024 * (int(sizes.get("RssAnon", 0)) + int(sizes.get("RssShmem", 0)))
        mapped += 1024 * int(sizes.get("RssFile", 0))
    return Memory(own, mapped)


def _family(process: int) -> Iterator[int]:
    yield process
    for children in Path(f"/proc/{process}/task").glob("*/children"):
        try:
            numbers = children.read_text(encoding="utf-8").split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        for number in numbers:
            yield from _family(int(number))


@contextmanager
def sample_memory(seconds: float = 0.5) -> Iterator[list[Memory]]:
    """The memory every so many seconds, in a list that grows until the end of the block."""
    samples, is_over = [resident_memory()], Event()

    def sample() -> None:
        while not is_over.wait(seconds):
            samples.append(resident_memory())

    sampler = Thread(target=sample, daemon=True)
    sampler.start()
    try:
        yield samples
    finally:
        is_over.set()
        sampler.join()
        samples.append(resident_memory())


def growth(values: list[int]) -> float:
    """Median of the last tenth of the values over that of the first, in percent above it."""
    tenth = max(1, len(values) // 10)
    return 100 * (median(values[-tenth:]) / median(values[:tenth]) - 1)
