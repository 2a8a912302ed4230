# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Images and dense labels by task name, and their transforms."""

from .check import check_dataset
from .folder import DenseFolder
from .loading import load_dense_dataset
from .shrinking import shrink, write_shrunk
from .synthetic import synthetic_scenes
from .transforms import JointTransform, collate


__all__ = [
    "DenseFolder",
    "JointTransform",
    "check_dataset",
    "collate",
    "load_dense_dataset",
    "shrink",
    "synthetic_scenes",
    "write_shrunk",
]
