# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Struct arrays of MATLAB, for the files of PASCAL-Part."""

import numpy as np


def structs(*rows):
    """A struct array of shape `(1, rows)` from dictionaries with the same keys."""
    array = np.empty((1, len(rows)), dtype=[(name, object) for name in rows[0]])
    for index, row in enumerate(rows):
        array[0, index] = tuple(row.values())
    return array
