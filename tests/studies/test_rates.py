# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The learning rate that a grid of scores chooses."""

import math

import pytest

from peft_polyhistor import register_task, regression
from peft_polyhistor.studies.rates import choose_rate, edge_note


def scores(semseg, error):
    return {"semseg": semseg, "normals": error}


def test_the_rate_that_is_best_over_all_tasks_wins():
    assert choose_rate({1e-4: scores(50, 20), 1e-3: scores(52, 20), 1e-2: scores(52, 30)}) == 1e-3
    # +10 of 10 is more than +10 of 80: what counts is the change relative to the task's own scores.
    assert choose_rate({1e-4: {"semseg": 20, "saliency": 80}, 1e-3: {"semseg": 10, "saliency": 90}}) == 1e-4
    assert choose_rate({1e-4: scores(50, 20), 1e-3: scores(math.nan, 1)}) == 1e-4
    assert choose_rate({1e-4: scores(math.nan, 20), 1e-3: scores(math.nan, 19)}) == 1e-3
    assert choose_rate({1e-4: scores(0, 20), 1e-3: scores(0, 19)}) == 1e-3
    assert choose_rate({1e-4: scores(0.01, 10), 1e-3: scores(0.05, 20), 1e-2: scores(0.01, 11)}) == 1e-4
    with pytest.raises(ValueError, match=r"No learning rate can be chosen.*Give lower --learning_rates"):
        choose_rate({1e-4: scores(math.nan, 20), 1e-3: scores(1, math.inf)})


def test_a_best_rate_at_the_edge_of_its_grid_is_named():
    rising = {rate: scores(50 + rate, 20) for rate in (1, 2, 3)}
    falling = {rate: scores(50 - rate, 20) for rate in (1, 2, 3)}
    inside = {rate: scores(50 - abs(rate - 2), 20) for rate in (1, 2, 3)}
    note = edge_note({"a": rising, "b": falling, "c": inside, "d": {1: scores(1, 1)}, "decoders": {}})
    assert note.endswith("may be better: a (highest), b (lowest).")
    assert edge_note({"c": inside}) == edge_note({}) == ""


def test_the_unit_of_a_score_does_not_matter():
    register_task(regression("depth", unit="m"))
    metres = {1e-4: {"semseg": 40.0, "depth": 0.4}, 1e-3: {"semseg": 44.0, "depth": 0.5}}
    millimetres = {rate: scores | {"depth": 1000 * scores["depth"]} for rate, scores in metres.items()}
    assert choose_rate(metres) == choose_rate(millimetres) == 1e-4
