# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Pictures and dense labels by task name, and their transforms."""

from ..models.image_processor import IMAGENET_MEAN, IMAGENET_STD, normalize_image_size
from ..tasks import PASCAL_TASKS as DENSE_TASKS
from ..tasks.vectors import flip_normals, rotate_normals
from .check import check_archive, find_faults
from .folder import DenseFolder
from .loading import load_dense_dataset, load_pascal_context
from .shrink import shrink, write_shrunk
from .synthetic import synthetic_scenes
from .transforms import JointTransform, collate


__all__ = [
    "DENSE_TASKS",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "DenseFolder",
    "JointTransform",
    "check_archive",
    "collate",
    "find_faults",
    "flip_normals",
    "load_dense_dataset",
    "load_pascal_context",
    "normalize_image_size",
    "rotate_normals",
    "shrink",
    "synthetic_scenes",
    "write_shrunk",
]
