# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Building blocks of training recipes. `recipes/train_pascal.py` holds the training loop, to be copied."""

from .arguments import option, parse_settings, run_recipe
from .gradients import add_gradients
from .guard import ON_BAD_STEP, StepGuard
from .keys import key_of_data, key_of_weights, keys_of_inputs
from .methods import MethodChoice, adapt, parse_methods
from .progress import Progress
from .run_folder import RunFolder
from .settings import Settings
from .single_tasks import join_tasks


__all__ = [
    "ON_BAD_STEP",
    "MethodChoice",
    "Progress",
    "RunFolder",
    "Settings",
    "StepGuard",
    "adapt",
    "add_gradients",
    "join_tasks",
    "key_of_data",
    "key_of_weights",
    "keys_of_inputs",
    "option",
    "parse_methods",
    "parse_settings",
    "run_recipe",
]
