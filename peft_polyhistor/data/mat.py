# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Reads one variable of a MATLAB file (version 5 to 7), whatever the file declares.

`scipy.io.loadmat` allocates what a file says its arrays hold, follows its nesting as deep as it goes, and ends the
process on some damaged files (SciPy 1.17: numbers said to be complex, without an imaginary part). Here nothing is made
that is larger than what was read, and what was read has limits.
"""

import math
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np


MAX_BYTES = 2**28  # of a variable, inflated: 1,000 masks of PASCAL's largest pictures, 500 x 500 pixels
MAX_MATRICES = 2**16  # a part of a person takes 2
MAX_DEPTH = 16  # PASCAL-Part needs 4

# Of the format ("MAT-File Format", MathWorks, Level 5).
_HEADER = 128  # bytes
_MATRIX, _COMPRESSED = 14, 15
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_TEXTS = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}
_CELL, _STRUCT, _TEXT, _NUMERIC = 1, 2, 4, range(6, 16)
_COMPLEX = 0x800
_BYTE_ORDERS = {b"IM": "<", b"MI": ">"}

# A matrix of numbers, a text of one line, the cells of an array, or of an array of structs the fields of each.
Value = np.ndarray | str | list[Any]


def read_variable(data: bytes, key: str) -> Value | None:
    """The variable `key` of a file's bytes; None if there is none.

    Cells and structs are listed column by column, and the fields of a struct are a tuple in their order.

    Raises:
        ValueError: The file is of another version, or the variable is cut, beyond the limits above, of another kind
            than these values, or holds something else than it declares.
        struct.error, zlib.error: The file is damaged.
    """
    order = _BYTE_ORDERS.get(data[126:_HEADER])
    if order is None or struct.unpack_from(f"{order}H", data, 124)[0] >> 8 != 1:
        raise ValueError("no MATLAB file of version 5 to 7")
    reader = _Reader(order)
    for kind, content in reader.elements(memoryview(data)[_HEADER:], alignment=1):
        matrix = reader.inflate(content, key) if kind == _COMPRESSED else content
        if matrix and kind in (_MATRIX, _COMPRESSED) and reader.name(matrix) == key:
            return reader.value(matrix)
    return None


class _Reader:
    """Reads the elements of a file.

    Args:
        order: Of bytes, as `struct` and numpy write it.
    """

    def __init__(self, order: str):
        self.order = order
        self.matrices = 0

    def elements(self, data: memoryview, alignment: int = 8) -> Iterator[tuple[int, memoryview]]:
        """Types and contents of the elements in `data`, which start at multiples of `alignment` bytes."""
        position = 0
        while position < len(data):
            kind, length = struct.unpack_from(f"{self.order}II", data, position)
            start = position + 8
            if kind >> 16:  # a small element: type, length and content share 8 bytes
                kind, length, start = kind & 0xFFFF, min(kind >> 16, 4), position + 4
            end = start + length
            if end > len(data):
                raise ValueError(f"an element of {length} bytes where {len(data) - start} are left")
            yield kind, data[start:end]
            position = max(end, position + 8)
            position += -position % alignment

    def name(self, matrix: memoryview) -> str:
        """The name of a variable."""
        (_, _, (_, name)) = (element for _, element in zip(range(3), self.elements(matrix), strict=False))
        return bytes(name).decode("latin-1")

    def inflate(self, content: memoryview, key: str) -> memoryview | None:
        """A compressed variable, if `key` is its name."""
        stream = zlib.decompressobj()
        start = stream.decompress(content, 512)  # its name is among the first
        kind, length = struct.unpack_from(f"{self.order}II", start)
        if kind != _MATRIX or self.name(memoryview(start)[8:]) != key:
            return None
        inflated = start + stream.decompress(stream.unconsumed_tail, MAX_BYTES)
        if len(inflated) > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES} bytes in variable {key!r}")
        if not stream.eof or len(inflated) < length + 8:
            raise ValueError(f"variable {key!r} is cut")
        return memoryview(inflated)[8 : length + 8]

    def value(self, matrix: memoryview, depth: int = 1) -> Value:
        """What a matrix holds."""
        self.matrices += 1
        if depth > MAX_DEPTH or self.matrices > MAX_MATRICES:
            raise ValueError(f"more than {MAX_MATRICES} matrices, or nested deeper than {MAX_DEPTH}")
        if not matrix:  # an empty matrix may have no content at all
            return np.zeros((0, 0))
        elements = self.elements(matrix)
        (_, flags), (_, dimensions), _ = (next(elements, (0, b"")) for _ in range(3))  # the third is its name
        flags = struct.unpack_from(f"{self.order}I", flags)[0]
        shape = struct.unpack(f"{self.order}{len(dimensions) // 4}i", dimensions)
        if not 2 <= len(shape) <= 8 or min(shape) < 0:
            raise ValueError(f"a matrix of {len(shape)} dimensions, the smallest {min(shape, default=None)}")
        kind = flags & 0xFF
        if kind in (_CELL, _STRUCT):
            fields = self._count_fields(elements) if kind == _STRUCT else None
            return self._parts(elements, math.prod(shape), fields, depth)
        if kind not in (_TEXT, *_NUMERIC) or flags & _COMPLEX:
            raise ValueError(f"a matrix of kind {kind}; allowed are structs, cells, texts and real numbers")
        [(stored, content)] = elements
        return self._text(stored, content, shape) if kind == _TEXT else self._numbers(stored, content, shape)

    def _numbers(self, stored: int, content: memoryview, shape: tuple[int, ...]) -> np.ndarray:
        if stored not in _NUMBERS:
            raise ValueError(f"numbers of type {stored}")
        return np.frombuffer(content, self.order + _NUMBERS[stored]).reshape(shape, order="F")

    def _text(self, stored: int, content: memoryview, shape: tuple[int, ...]) -> str:
        if stored not in _TEXTS or (len(content) and shape[0] != 1):
            raise ValueError(f"a text of {shape[0]} lines and type {stored}")
        ending = {"<": "-le", ">": "-be"}[self.order] if _TEXTS[stored] in ("utf-16", "utf-32") else ""
        return bytes(content).decode(_TEXTS[stored] + ending)

    def _count_fields(self, elements: Iterator[tuple[int, memoryview]]) -> int:
        (_, length), (_, names) = (next(elements, (0, b"")) for _ in range(2))
        return len(names) // max(1, struct.unpack_from(f"{self.order}i", length)[0])

    def _parts(
        self, elements: Iterator[tuple[int, memoryview]], count: int, fields: int | None, depth: int
    ) -> list[Value] | list[tuple[Value, ...]]:
        values = []
        for kind, part in elements:
            if kind != _MATRIX:
                raise ValueError(f"an element of type {kind} among the parts of a matrix")
            values.append(self.value(part, depth + 1))
        if len(values) != count * (1 if fields is None else fields):
            raise ValueError(f"{count} parts of {fields or 1} fields declared, {len(values)} values found")
        if fields is None:
            return values
        return [tuple(values[i : i + fields]) for i in range(0, len(values), fields or 1)]
