# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The recipe's settings: YAML of any kind, and values of any type."""

from dataclasses import fields
from typing import get_origin

import pytest
import train_pascal as recipe
import yaml
from fuzzing import VALUES, damaged, fuzz, outcome
from hypothesis import given
from hypothesis import strategies as st

from peft_polyhistor.training import parse_settings


pytestmark = pytest.mark.slow

WHOLE = b"""steps: 7
learning_rate: 1e-3
mixed_precision: no
methods: [bitfit, polyhistor: {rank: 4, target_modules: [a, b]}]
loss_weights: {semseg: 2, normals: 0.5}
tasks: [semseg, normals]
"""
TEXTS = [
    "steps: &a [1]\nmethods: *a",
    "a: &a [*a]",
    "[" * 5000,
    "steps: 2020-99-99",
    "? [a]\n: 1",
    "!!python/name:a.b",
]


def check(file):
    def parse():
        [settings] = parse_settings([str(file)], "", recipe.DEFAULT_CONFIG, recipe.Settings)
        return settings

    settings = outcome(parse, str(file), "`", "ask", "Nothing to train")
    for item in fields(recipe.Settings) if settings else ():
        assert type(getattr(settings, item.name)) is (get_origin(item.type) or item.type), item.name


@fuzz(part=2)
@given(data=st.data())
def test_damaged_yaml(tmp_path_factory, data):
    file = tmp_path_factory.getbasetemp() / "settings.yaml"
    content = (
        damaged(WHOLE) | st.binary(max_size=40) | st.sampled_from(TEXTS).map(str.encode) | st.text().map(str.encode)
    )
    file.write_bytes(data.draw(content))
    check(file)


@fuzz(part=2)
@given(data=st.data())
def test_values_of_any_type(tmp_path_factory, data):
    names = [*(item.name for item in fields(recipe.Settings)), "unknown", ""]
    file = tmp_path_factory.getbasetemp() / "settings.yaml"
    values = data.draw(st.dictionaries(st.sampled_from(names), VALUES, min_size=1, max_size=3))
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    check(file)
