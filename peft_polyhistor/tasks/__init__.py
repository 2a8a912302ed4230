# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Dense tasks: the table of tasks, and the losses and metrics behind its rows."""

from .table import TASKS, Task, get_tasks, register_task, relative_change


__all__ = ["TASKS", "Task", "get_tasks", "register_task", "relative_change"]
