# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The cost of a run: operations counted, and what follows from them."""

import math

import pytest


@pytest.fixture
def recipe(load_recipe):
    return load_recipe("cost_table")


def test_hours_are_operations_over_the_rate(recipe, monkeypatch, capsys):
    monkeypatch.setattr(recipe, "measure", lambda settings: (10**12, 10**11, 2.0))
    _, *rows = recipe.main(recipe.CostSettings(epochs=2, batch_size=100, utilization=[50]))
    total = 4900 * 2 * 10**12 + 5105 * 2 * 10**11
    assert [row[0] for row in rows] == list(recipe.PEAKS)
    for (_, peak, share, hours, speed, cores), published in zip(rows, recipe.PEAKS.values(), strict=True):
        rate = published * 1e12 / 2
        assert (peak, share, hours) == (str(published), "50 %", f"{total / rate / 3600:.1f}")
        assert (speed, cores) == (f"{rate / 1e12:.0f}", str(math.ceil(rate / 1e12 / recipe.LOADED)))
    printed = capsys.readouterr().out
    assert "9,800 pictures in training, 1000.0 GFLOP each, 10,210 predicted" in printed
    assert "computed, not measured" in printed and "0.50 pictures/s" in printed


def test_a_step_takes_more_than_a_prediction(recipe):
    train, predict, seconds = recipe.measure(recipe.CostSettings("swin-micro", image_size=32))
    assert train > 1.5 * predict > 0 and seconds > 0


@pytest.mark.parametrize(
    "values", [{"encoder": "Swin-X"}, {"method": "x"}, {"epochs": 0}, {"utilization": []}, {"utilization": [101]}]
)
def test_bad_settings(recipe, values):
    with pytest.raises(ValueError, match=f"`{next(iter(values))}`"):
        recipe.CostSettings(**values)
