# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The recipe's settings: YAML of any kind, and values of any type."""

from dataclasses import fields

import pytest
import yaml
from fuzzing import VALUES, damaged, fuzz, outcome
from hypothesis import given
from hypothesis import strategies as st


pytestmark = pytest.mark.slow

WHOLE = b"""steps: 7
learning_rate: 1e-3
mixed_precision: no
methods: [polyhistor, bitfit]
method_settings: {polyhistor.rank: 4, target_modules: [a, b]}
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


def check(recipe, file):
    known = {field.name: field.type for field in fields(recipe.Settings)}
    settings = outcome(lambda: recipe.parse_settings([str(file)], ""), str(file), "`", "ask", "Nothing to train")
    for name, wanted in known.items() if settings else ():
        value = getattr(settings, name)
        assert type(value) is wanted or (wanted == list[str] and all(type(item) is str for item in value)), name


@fuzz(part=2)
@given(data=st.data())
def test_damaged_yaml(load_recipe, tmp_path_factory, data):
    file = tmp_path_factory.getbasetemp() / "settings.yaml"
    content = (
        damaged(WHOLE) | st.binary(max_size=40) | st.sampled_from(TEXTS).map(str.encode) | st.text().map(str.encode)
    )
    file.write_bytes(data.draw(content))
    check(load_recipe("settings"), file)


@fuzz(part=2)
@given(data=st.data())
def test_values_of_any_type(load_recipe, tmp_path_factory, data):
    recipe = load_recipe("settings")
    names = [*(field.name for field in fields(recipe.Settings)), "unknown", ""]
    file = tmp_path_factory.getbasetemp() / "settings.yaml"
    values = data.draw(st.dictionaries(st.sampled_from(names), VALUES, min_size=1, max_size=3))
    pairs = st.lists(st.builds("{}={}".format, st.sampled_from(["rank", "semseg", "polyhistor_lite.rank"]), st.text()))
    if data.draw(st.booleans()):
        values |= {data.draw(st.sampled_from(["method_settings", "loss_weights"])): data.draw(pairs)}
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    check(recipe, file)
