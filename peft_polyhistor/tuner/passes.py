# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The default number of tasks that go through the encoder together."""

import math

import torch
from torch import Tensor


# Pixels of a pass beyond which a larger one is no faster on a CPU (recipes/results/speed.md).
ENOUGH_PIXELS = 2**19


def choose_tasks_per_pass(pixel_values: Tensor | None, tasks: int) -> int:
    """Tasks that go through the encoder together.

    Accelerators take all at once. So do CPUs up to the size that keeps them busy; beyond it, smaller passes are as
    fast and need less memory.

    Args:
        pixel_values: Images `(batch, channels, height, width)`; anything else says nothing.
        tasks: Number of tasks asked for.
    """
    if pixel_values is None or pixel_values.ndim != 4 or pixel_values.device.type != "cpu":
        return tasks
    if torch.compiler.is_compiling():
        return tasks  # one graph, whatever the size
    pixels = pixel_values.shape[0] * pixel_values.shape[-2] * pixel_values.shape[-1]
    passes = max(1, math.ceil(tasks * pixels / max(ENOUGH_PIXELS, pixels)))
    return math.ceil(tasks / passes)
