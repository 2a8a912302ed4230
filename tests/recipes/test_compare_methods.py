# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The comparison of methods over seeds, and its table."""

import json
import math

import pytest


@pytest.fixture
def recipe(load_recipe):
    return load_recipe("compare_methods")


def test_compares_once_and_refuses_other_settings(recipe, load_recipe, small_run, tmp_path, capsys, monkeypatch):
    methods = ("--methods", "decoders", "polyhistor_lite", "--steps", "2", "--eval_every", "2", "--seeds", "0", "1")
    arguments = small_run(tmp_path, *methods)
    results = recipe.main(arguments)
    assert {method: len(runs) for method, runs in results.items()} == {"decoders": 2, "polyhistor_lite": 2}
    assert [run["settings"]["seed"] for run in results["decoders"]] == [0, 1]
    printed, table = capsys.readouterr().out, (tmp_path / "comparison.md").read_text()
    error = [run["scores"]["normals"]["mErr"] for run in results["decoders"]]
    cell = f"{sum(error) / 2:.2f} ({min(error):.2f} to {max(error):.2f})"
    assert cell in printed and f"| {cell} |" in table
    assert json.loads((tmp_path / "comparison.json").read_text()) == results

    monkeypatch.setattr(load_recipe("train_pascal"), "build", lambda *_: pytest.fail("trained again"))
    assert recipe.main(arguments) == results
    with pytest.raises(ValueError, match="made with other settings: batch_size was 2 and is 3"):
        recipe.main([*arguments, "--batch_size", "3"])


@pytest.mark.parametrize("seeds", [["0", "0"], ["-1"]])
def test_bad_seeds(recipe, small_run, tmp_path, seeds):
    with pytest.raises(ValueError, match="`seeds` must be 0 or more, each once"):
        recipe.main(small_run(tmp_path, "--seeds", *seeds))


def run_of(semseg, error):
    scores = {"semseg": {"mIoU": semseg}, "normals": {"mErr": error}}
    return {"scores": scores, "parameters": {"encoder": 0, "all": 1234}}


def test_table_has_mean_range_and_change(load_recipe):
    tables = load_recipe("tables")
    rows = tables.make_rows(
        {"decoders": [run_of(10.0, 20.0), run_of(20.0, 20.0)], "full": [run_of(11.0, 20.0), run_of(20.0, 10.0)]}
    )
    assert rows[0] == ["method", "encoder", "all", "semseg mIoU up", "normals mErr down", "change"]
    assert rows[2] == [
        "full", "0", "1,234", "15.50 (11.00 to 20.00)", "15.00 (10.00 to 20.00)", "+15.00 (+5.00 to +25.00)",
    ]  # fmt: skip
    assert tables.to_markdown(rows).splitlines()[1] == "| --- | ---: | ---: | ---: | ---: | ---: |"
    header, first, second = tables.to_text(rows).splitlines()[:3]
    assert len(header) == len(first) == len(second)


@pytest.mark.parametrize("reference", [run_of(0.0, 20.0), run_of(10.0, math.nan)])
def test_table_has_no_change_against_scores_that_allow_none(load_recipe, reference):
    rows = load_recipe("tables").make_rows({"decoders": [reference], "full": [run_of(11.0, 20.0)]})
    assert [row[-1] for row in rows[1:]] == ["-", "-"]
