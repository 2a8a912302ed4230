# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The recipes as modules."""

import importlib

import pytest


@pytest.fixture
def load_recipe():
    """`load_recipe(name)`: a recipe as a module."""
    return importlib.import_module
