# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The recipes as modules, and the problems of the benchmarks."""

import importlib

import pytest
import torch


@pytest.fixture
def load_recipe():
    """`load_recipe(name)`: a recipe as a module."""
    return importlib.import_module


@pytest.fixture
def contestants(load_recipe):
    return load_recipe("problem")


@pytest.fixture
def make_problem(contestants):
    """`make_problem(tasks)`: few pixels, and the smallest encoder."""

    def make(tasks, **changes):
        sizes = {"encoder": "swin-mini", "image_size": 64, "batch_size": 2, "decoder_width": 16}
        device = {"device": torch.device("cpu"), "dtype": torch.float32}
        return contestants.Problem(tasks=tasks, **{**sizes, **device, **changes})

    return make
