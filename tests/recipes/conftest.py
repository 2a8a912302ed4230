# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The recipes as modules, and data that is small enough for a few steps."""

import importlib
import sys
from pathlib import Path

import pytest

from peft_polyhistor.data.synthetic import synthetic_scenes


RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture
def load_recipe(monkeypatch):
    """`load_recipe(name)`: a recipe as a module, found next to its siblings as a script finds them."""
    monkeypatch.syspath_prepend(str(RECIPES))
    yield importlib.import_module
    for path in RECIPES.glob("*.py"):
        sys.modules.pop(path.stem, None)


@pytest.fixture(scope="session")
def write_scenes(tmp_path_factory):
    """`write_scenes(train, val)`: a folder of parquet files with so many scenes."""

    def write(**counts):
        folder = tmp_path_factory.mktemp("scenes")
        for split, count in counts.items():
            data = synthetic_scenes(split=split, count=count, image_size=64, cache_dir=str(folder / "cache"))
            data.to_parquet(folder / f"{split}.parquet")
        return folder

    return write


@pytest.fixture(scope="session")
def parquet_scenes(write_scenes):
    """A folder of parquet files: 10 scenes to train on, 3 to validate."""
    return write_scenes(train=10, val=3)


@pytest.fixture
def small_run(parquet_scenes):
    """`small_run(output_dir, *more)`: arguments of six steps on the small scenes, scored after the third and sixth."""

    def arguments(output_dir, *more):
        text = f"--data {parquet_scenes} --image_size 64 --decoder_width 8 --batch_size 2 --workers 0 --steps 6"
        return [*text.split(), "--eval_every", "3", "--output_dir", str(output_dir), *more]

    return arguments


@pytest.fixture
def settings_of(load_recipe, small_run):
    """`settings_of(output_dir, *more)`: the settings of such arguments."""
    return lambda *arguments: load_recipe("settings").parse_settings(small_run(*arguments), "")
