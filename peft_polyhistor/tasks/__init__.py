# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Dense tasks: the table of tasks, the kinds of its rows, and the losses and metrics behind them."""

from .table import (
    PASCAL_TASKS,
    TASKS,
    binary,
    declare_tasks,
    describe_tasks,
    get_tasks,
    register_task,
    regression,
    relative_change,
    segmentation,
    vectors,
)
from .task import Task


__all__ = [
    "PASCAL_TASKS",
    "TASKS",
    "Task",
    "binary",
    "declare_tasks",
    "describe_tasks",
    "get_tasks",
    "register_task",
    "regression",
    "relative_change",
    "segmentation",
    "vectors",
]
