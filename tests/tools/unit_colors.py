# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Labels of normals to test with."""

import numpy as np


def random_unit_colors(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Random unit vectors as a label stores them, uint8 `(height, width, 3)`."""
    vectors = np.random.default_rng(seed).normal(size=(height, width, 3))
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.round((vectors + 1) * 127.5).astype(np.uint8)
