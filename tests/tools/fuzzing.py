# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Cases of the fuzz tests, damage, and the bounds of a case.

`FUZZ_CASES=2000 pytest -m slow -k fuzz` runs 2,000 cases of every test in place of 50; tests whose cases take long
run a part of that. A case is accepted, and its result is checked by the test, or refused with an error that names the
file or the field. It takes at most `SECONDS` and `MEMORY`.
"""

import os
import resource
import signal
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


pytest.importorskip("hypothesis", reason="of the extra `slow`")
if sys.platform != "linux":
    pytest.skip("reads the memory of a process from /proc", allow_module_level=True)

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st


CASES = int(os.environ.get("FUZZ_CASES", "50"))
SECONDS = 20
MEMORY = 2**30  # bytes, beyond what the process holds before


def fuzz(part: float = 1.0) -> settings:
    """Settings of a test that runs this part of the cases."""
    return settings(
        max_examples=max(5, int(CASES * part)),
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )


def outcome(call: Callable[[], Any], *names: str, errors: tuple[type[Exception], ...] = (ValueError, OSError)) -> Any:
    """Result of `call`, or None where it raises one of `errors` whose text has one of `names`."""
    with bounded():
        try:
            return call()
        except errors as error:
            refusal = error
    text = str(refusal)
    assert any(name in text for name in names), f"{refusal!r} names none of {names}"
    assert len(text) < 10_000, f"a message of {len(text)} characters"
    return None


@contextmanager
def bounded() -> Iterator[None]:
    """AssertionError where the block hangs or takes too much memory; nothing beyond four times that is given out."""
    before = _status("VmRSS")
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + 4 * MEMORY, limits[1]))
    Path("/proc/self/clear_refs").write_text("5")  # starts the peak anew
    signal.signal(signal.SIGALRM, _hang)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, limits)
    grown = _status("VmHWM") - before
    assert grown < MEMORY, f"took {grown} bytes"


def _hang(*_) -> None:
    raise AssertionError(f"took more than {SECONDS} seconds")


def _status(field: str) -> int:
    [line] = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


# Lengths, counts and offsets that code gets wrong.
NUMBERS = [0, 1, 2**7, 2**8 - 1, 2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1]


@st.composite
def damaged(draw, content: bytes) -> bytes:
    """`content` with one to four of: a cut, a piece taken out, doubled or replaced, bytes changed, numbers put in."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, max(0, len(data) - 1)))
        end = min(len(data), start + draw(st.sampled_from([1, 2, 4, 8, 16, 64])))
        match draw(st.sampled_from(["cut", "drop", "double", "bytes", "number", "number"])):
            case "cut":
                del data[start:]
            case "drop":
                del data[start:end]
            case "double":
                data[end:end] = data[start:end]
            case "bytes":
                data[start:end] = draw(st.binary(min_size=end - start, max_size=end - start))
            case "number":
                order = draw(st.sampled_from("<>"))
                data[start : start + 4] = struct.pack(f"{order}I", draw(st.sampled_from(NUMBERS)))
    return bytes(data)


def with_checksums(png: bytes) -> bytes:
    """A PNG whose chunks have the checksums that their content asks for, so that damage is not found by them."""
    data, position = bytearray(png), 8
    while position + 12 <= len(data):
        end = position + 8 + int.from_bytes(data[position : position + 4], "big")
        if end + 4 > len(data):
            break
        data[end : end + 4] = zlib.crc32(data[position + 4 : end]).to_bytes(4, "big")
        position = end + 4
    return bytes(data)


# Values of settings as JSON and YAML give them, of any type.
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 70),
    st.sampled_from([2**31, 2**63, 2**64, -(2**70), 10**30]),
    st.floats(allow_nan=True, allow_infinity=True),
    st.text(max_size=8),
    st.sampled_from(
        ["semseg", "normals", "../../etc", "a/b/../../c", "(", "feed_forward", "parallel", "\x00", "é", ""]
    ),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
