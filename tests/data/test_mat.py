# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""MATLAB files, against SciPy's reader, and what is refused before it takes memory."""

import struct
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from scipy.io import loadmat, savemat, whosmat

from peft_polyhistor.data import mat
from peft_polyhistor.data.mat import read_variable


def save(compressed=False, **content):
    buffer = BytesIO()
    savemat(buffer, content, do_compression=compressed)
    return buffer.getvalue()


def as_values(array):
    """What SciPy gives, as `read_variable` gives it."""
    if array is None:
        return np.zeros((0, 0))
    if array.dtype.names:
        return [tuple(as_values(field) for field in row) for row in array.ravel(order="F")]
    if array.dtype == object:
        return [as_values(cell) for cell in array.ravel(order="F")]
    return array.item() if array.dtype.kind == "U" and array.size == 1 else array


def check_equal(ours, expected):
    if isinstance(expected, list | tuple):
        assert type(ours) is type(expected)
        for ours_part, expected_part in zip(ours, expected, strict=True):
            check_equal(ours_part, expected_part)
    else:
        np.testing.assert_array_equal(ours, expected)


# Files that MATLAB itself wrote, little and big endian, which some distributions of SciPy leave out.
WRITTEN_BY_MATLAB = [
    path
    for kind in (
        "double",
        "multi",
        "minus",
        "matrix",
        "3dmatrix",
        "cell",
        "cellnest",
        "structnest",
        "structarr",
    )
    for path in (Path(scipy.io.__file__).parent / "matlab/tests/data").glob(f"test{kind}_[67]*.mat")
]


@pytest.mark.parametrize("path", WRITTEN_BY_MATLAB, ids=lambda path: path.stem)
def test_files_of_matlab_are_read_as_scipy_reads_them(path):
    for name, _, _ in whosmat(path):
        check_equal(read_variable(path.read_bytes(), name), as_values(loadmat(path)[name]))


@pytest.mark.parametrize("compressed", [False, True])
def test_one_variable_of_several_is_read(compressed):
    data = save(compressed, first=np.arange(6.0).reshape(2, 3), second="text", third=np.array([[1, "two"]], object))
    check_equal(read_variable(data, "first"), np.arange(6.0).reshape(2, 3))
    assert read_variable(data, "second") == "text" and read_variable(data, "third")[1] == "two"
    assert read_variable(data, "fourth") is None


def element(kind, content):
    return struct.pack("<II", kind, len(content)) + content + bytes(-len(content) % 8)


def variable(kind, shape, *content, name=b"x"):
    """A matrix of a kind; it declares this shape, whatever its content."""
    dimensions = struct.pack(f"<{len(shape)}i", *shape)
    head = element(6, struct.pack("<II", kind, 0)) + element(5, dimensions) + element(1, name)
    return element(14, head + b"".join(content))


def file_of(matrix):
    return b"MATLAB 5.0".ljust(124) + struct.pack("<H", 0x100) + b"IM" + matrix


def nested(depth):
    matrix = variable(6, (1, 1), element(9, bytes(8)))
    for _ in range(depth):
        matrix = variable(1, (1, 1), matrix)
    return matrix


NUMBER = element(9, bytes(8))
REFUSED = {
    "no file": (b"", "no MATLAB file"),
    "version 4": (struct.pack("<5i", 0, 1, 1, 0, 2) + b"x\0" + bytes(200), "no MATLAB file of version 5 to 7"),
    "more cells than there are": (file_of(variable(1, (2**30, 2))), "2147483648 parts of 1 fields declared, 0 values"),
    "more structs": (
        file_of(variable(2, (9, 9), element(5, b"\2\0\0\0"), element(1, b"a\0"))),
        "81 parts of 1 fields",
    ),
    "more numbers": (file_of(variable(6, (2**30, 2), NUMBER)), "cannot reshape"),
    "negative size": (file_of(variable(6, (-1, 1), NUMBER)), "the smallest -1"),
    "no sizes": (file_of(variable(6, (), NUMBER)), "0 dimensions"),
    "no number type": (file_of(variable(6, (1, 1), element(99, bytes(8)))), "numbers of type 99"),
    "complex": (file_of(variable(0x806, (1, 1), NUMBER)), "allowed are structs, cells, texts and real numbers"),
    "sparse": (file_of(variable(5, (1, 1), NUMBER)), "a matrix of kind 5"),
    "two lines": (file_of(variable(4, (2, 2), element(16, b"abcd"))), "a text of 2 lines"),
    "beyond the end": (file_of(struct.pack("<II", 14, 2**31) + bytes(64)), "an element of 2147483648 bytes where 64"),
    "deep": (file_of(nested(20)), "nested deeper than 16"),
    "cut inside": (save(True, x=np.zeros((9, 9)))[:-2], "bytes where"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_file_does_not_hold_is_not_made(name):
    data, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        read_variable(data, "x")


def test_variables_that_inflate_without_end_are_not_inflated(monkeypatch):
    data = save(True, x=np.zeros((300, 300)), y=np.zeros((3, 3)))
    monkeypatch.setattr(mat, "MAX_BYTES", 2**16)
    with pytest.raises(ValueError, match="more than 65536 bytes in variable 'x'"):
        read_variable(data, "x")
    assert read_variable(data, "y").shape == (3, 3)
    monkeypatch.setattr(mat, "MAX_MATRICES", 3)
    with pytest.raises(ValueError, match="more than 3 matrices"):
        read_variable(save(x=np.array([[1, 2, 3]], object)), "x")
