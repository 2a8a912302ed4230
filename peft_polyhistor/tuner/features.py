# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Features of single tasks that sites leave for the stage maps of a pass which all tasks share."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def add_features(maps: Any, features: Mapping[int, Tensor], task: int) -> Any:
    """The output of a shared pass for one task: itself, or where the task has features the stage maps plus those.

    Args:
        maps: Output of the encoder; stage maps `(batch, channels, height, width)` where there are features.
        features: By stage `(tasks, batch, tokens, channels)`; tokens in front of those of the map are left out.
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


def drop_features(route: Any) -> None:
    """Lets go of what layers left on a route.

    Autograd holds on to the route of checkpointed layers, and what they leave to autograd: a circle never collected.
    """
    getattr(route, "features", {}).clear()
