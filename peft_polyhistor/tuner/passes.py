# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Passes of the encoder: the default number of tasks in a pass, and the outputs of a pass by task."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .batches import first_tensor, repeat_batch, split_batch
from .route import Route


# On a CPU, passes with more pixels are no faster (recipes/results/speed.md).
ENOUGH_PIXELS = 2**19


def choose_tasks_per_pass(pixel_values: Tensor | None, tasks: int) -> int:
    """Returns the number of tasks that run through the encoder together.

    Accelerators run all tasks at once. CPUs do so up to the size that keeps them busy; beyond it, smaller passes are
    as fast and need less memory.

    Args:
        pixel_values: Images `(batch, channels, height, width)`; for any other value all tasks run at once.
        tasks: Number of tasks of the call.
    """
    if pixel_values is None or pixel_values.ndim != 4 or pixel_values.device.type != "cpu":
        return tasks
    if torch.compiler.is_compiling():
        return tasks  # one graph for every size
    pixels = pixel_values.shape[0] * pixel_values.shape[-2] * pixel_values.shape[-1]
    passes = max(1, math.ceil(tasks * pixels / max(ENOUGH_PIXELS, pixels)))
    return math.ceil(tasks / passes)


def run_pass(
    forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], route: Route
) -> Sequence[Any]:
    """Runs the encoder once, and returns its output for each task of the pass."""
    tasks = len(route.tasks)
    if route.is_shared:
        output = forward(*args, **kwargs)
        return [add_features(output, route.features, task) for task in range(tasks)]
    batch = first_tensor((args, kwargs))
    if tasks == 1 or batch is None:
        return [forward(*args, **kwargs)]
    args, kwargs = repeat_batch((args, kwargs), tasks)
    return split_batch(forward(*args, **kwargs), tasks, batch.shape[0])


def add_features(maps: Any, features: Mapping[int, Tensor], task: int) -> Any:
    """Adds the features of one task to the stage maps of a shared pass; without features returns `maps` itself.

    Args:
        maps: Output of the encoder; stage maps `(batch, channels, height, width)` if there are features.
        features: By stage, `(tasks, batch, tokens, channels)`. Tokens before those of the map are dropped.
        task: Index of the task in the features.
    """
    if not features:
        return maps
    of_task = list(maps)
    for stage, of_tasks in features.items():
        height, width = maps[stage].shape[-2:]
        tokens = of_tasks[task][:, -height * width :]
        of_task[stage] = maps[stage] + tokens.mT.unflatten(-1, (height, width)).to(maps[stage].dtype)
    return type(maps)(of_task)
