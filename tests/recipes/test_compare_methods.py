# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The comparison of methods over seeds."""

import json
import math
from pathlib import Path
from xml.etree import ElementTree

import pytest
from run_results import run_of

from peft_polyhistor import PASCAL_TASKS, declare_tasks
from peft_polyhistor.training import parse_settings


SCENES = ["--data", "scenes"]


@pytest.fixture
def recipe(load_recipe):
    return load_recipe("compare_methods")


@pytest.fixture
def compare(recipe):
    """`compare(arguments)`: the results by method."""
    return lambda arguments: recipe.main(*parse(recipe, arguments))


def parse(recipe, arguments):
    return parse_settings(arguments, "", recipe.DEFAULT_CONFIG, recipe.Settings, recipe.Comparison)


def texts_of(file):
    return {element.text for element in ElementTree.parse(file).iter() if element.tag.endswith("text")}


def test_compares_once_and_refuses_other_settings(compare, recipe, small_run, tmp_path, capsys):
    methods = ("--methods", "decoders", "polyhistor_lite", "--steps", "1", "--eval_every", "1", "--seeds", "0", "1")
    arguments = small_run(tmp_path, *methods)
    runs = compare(arguments)
    assert {method: len(items) for method, items in runs.items()} == {"decoders": 2, "polyhistor_lite": 2}
    assert [run["settings"]["seed"] for run in runs["decoders"]] == [0, 1]
    summary = json.loads((tmp_path / "comparison.json").read_text())
    assert {method: content["runs"] for method, content in summary["methods"].items()} == runs
    assert summary["reference"] == "decoders" and summary["methods"]["decoders"]["changes"] == [0, 0]
    assert summary["methods"]["polyhistor_lite"]["paper"]["change"] == "1.74"
    printed, table = capsys.readouterr().out, (tmp_path / "comparison.md").read_text()
    error = [run["scores"]["normals"]["mErr"] for run in runs["decoders"]]
    cell = f"{sum(error) / 2:.2f} ({min(error):.2f} to {max(error):.2f})"
    assert cell in printed and f"| {cell} |" in table
    assert "| the paper, Table 1 | - | 0.41 M | 2.96 M | 70.24 | 59.12 | 64.75 | 17.40 | +1.74 |" in table
    assert texts_of(tmp_path / "comparison.svg") >= {"decoders", "polyhistor_lite"}

    before = [file.stat().st_mtime_ns for file in sorted(tmp_path.glob("seed*/*/results.json"))]
    assert compare(arguments) == runs
    assert [file.stat().st_mtime_ns for file in sorted(tmp_path.glob("seed*/*/results.json"))] == before
    compare([*arguments, "--seeds", "0", "--resume", "False"])
    after = [file.stat().st_mtime_ns for file in sorted(tmp_path.glob("seed*/*/results.json"))]
    assert [time == other for time, other in zip(after, before, strict=True)] == [False, False, True, True]
    with pytest.raises(ValueError, match="made with other settings: batch_size was 2 and is 3"):
        compare([*arguments, "--batch_size", "3"])


def test_each_method_takes_the_best_rate_of_a_grid_on_held_out_images(
    compare, recipe, small_run, tmp_path, monkeypatch, capsys
):
    calls, left_out = [], []

    def train(method, run):
        calls.append((method, run.learning_rate, run.decoder_learning_rate, run.holdout, run.seed, run.output_dir))
        left_out.append(run.left_out)
        best = {"full": 1e-3, "polyhistor_lite": 1e-2}.get(method, run.learning_rate)
        if method == "full" and run.learning_rate == 1e-2:
            raise FloatingPointError("Step 3 is bad")
        return run_of(50 - abs(math.log(run.learning_rate / best)), 20.0, run.learning_rate)

    monkeypatch.setattr(recipe, "train", train)
    methods = ("--methods", "decoders", "full", "polyhistor_lite", "--seeds", "3", "4", "--learning_rate", "0.5")
    tasks = ("--tasks", "semseg", "normals", "--decoder_learning_rate", "0", "--holdout", "0.2")
    grid = ("--learning_rates", "1e-4", "1e-3", "1e-2", "--grid_holdout", "0.3", "--grid_steps", "5")
    compare(small_run(tmp_path, *methods, *tasks, *grid))
    summary = json.loads((tmp_path / "comparison.json").read_text())["methods"]
    chosen = {method: content["learning_rate"] for method, content in summary.items()}
    assert chosen == {"decoders": None, "full": 1e-3, "polyhistor_lite": 1e-2}
    assert list(summary["full"]["grid"]) == ["0.0001", "0.001", "0.01"] and summary["decoders"]["grid"] == {}
    assert math.isnan(summary["full"]["grid"]["0.01"]["semseg"])  # it diverged
    searched, final = calls[:6], calls[6:]
    assert all((decoders, holdout, seed) == (0.5, 0.3, 3) for _, _, decoders, holdout, seed, _ in searched)
    assert {(method, rate) for method, rate, *_ in searched} == {
        (method, rate) for method in ("full", "polyhistor_lite") for rate in (1e-4, 1e-3, 1e-2)
    }
    assert len({folder for *_, folder in searched}) == 3
    assert [call[:5] for call in final] == [
        (method, rate, 0.5, 0.2, seed)
        for seed in (3, 4)
        for method, rate in (("decoders", 0.5), ("full", 1e-3), ("polyhistor_lite", 1e-2))
    ]
    assert left_out == [0.2] * 6 + [0] * 6
    printed = capsys.readouterr()
    assert "a rate beyond may be better: polyhistor_lite (highest)." in printed.out
    assert "full, learning rate 0.01: Step 3 is bad" in printed.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0", "0"], "`seeds` must be 0 or more, each once"),
        (["--seeds", "-1"], "`seeds` must be 0 or more, each once"),
        (
            ["--learning_rates", "1", "--grid_steps", "50", "--steps", "300", "--warmup_steps", "100"],
            "`grid_steps` must be above `warmup_steps`, 100, got 50",
        ),
        (["--seed", "7"], r"`seed` has no effect here, got 7\. Give --seeds 7\."),
        (["--learning_rates", "1e-4", "1e-4"], "`learning_rates` must be above 0, each once"),
        (["--learning_rates", "0"], "`learning_rates` must be above 0"),
        (["--grid_holdout", "0.5"], "`grid_holdout` and `grid_steps` are for a grid: give --learning_rates too"),
        (["--grid_steps", "5"], "are for a grid: give --learning_rates too"),
        (["--learning_rates", "1", "--grid_steps", "-5"], "`grid_steps` must be at least 0, got -5"),
        (["--learning_rates", "1", "--grid_holdout", "1"], "`grid_holdout` must be below 1"),
        (["--learning_rates", "1", "--grid_holdout", "0"], "`grid_holdout` must be above 0"),
        (["--learning_rates", "1", "--left_out", "0.1"], "`left_out` must be 0 with --learning_rates"),
    ],
)
def test_bad_arguments(compare, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        compare([*SCENES, "--output_dir", str(tmp_path), *arguments])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seeds: 0 1", "`seeds` must be a list whose items are each an integer, got '0 1'"),
        ("seeds: [0.5]", "`seeds` must be a list whose items are each an integer, got 0.5"),
        ("learning_rates: [1e-4, fast]", "`learning_rates` must be a list whose items are each a number, got 'fast'"),
        ("learning_rates: [true]", "a number, got True"),
    ],
)
def test_items_of_lists_are_checked(recipe, tmp_path, text, message):
    file = tmp_path / "study.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        parse(recipe, [str(file)])
    file.write_text("learning_rates: [1]")
    assert [type(rate) for rate in parse(recipe, [str(file)])[1].learning_rates] == [float]


def test_a_diverged_method_stays_in_the_table_and_out_of_the_plot(recipe, tmp_path, capsys):
    results = {"decoders": [run_of(10.0, 20.0)], "full": [run_of(math.nan, 20.0)]}
    recipe.write_all(tmp_path, results, {}, dict.fromkeys(results))
    assert {"decoders", "full"} & texts_of(tmp_path / "comparison.svg") == {"decoders"}
    assert "not measured" in capsys.readouterr().out


def test_a_run_that_stops_does_not_keep_the_others_from_the_table(compare, recipe, small_run, tmp_path, monkeypatch):
    def train(method, run):
        if method == "full" and run.seed == 1:
            raise FloatingPointError("Step 3 is bad")
        return run_of(50.0, 20.0)

    monkeypatch.setattr(recipe, "train", train)
    methods = ("--methods", "decoders", "full", "adapter", "--tasks", "semseg", "normals")
    with pytest.raises(
        FloatingPointError, match=r"(?s)no methods but \['decoders', 'adapter'\]:.full, seed 1: Step 3"
    ):
        compare(small_run(tmp_path, *methods, "--seeds", "0", "1"))
    assert list(json.loads((tmp_path / "comparison.json").read_text())["methods"]) == ["decoders", "adapter"]


def test_a_method_that_diverges_at_every_rate_does_not_keep_the_others_from_the_table(
    compare, recipe, small_run, tmp_path, monkeypatch
):
    def train(method, run):
        if method == "full":
            raise FloatingPointError("Step 3 is bad")
        return run_of(50.0, 20.0, run.learning_rate)

    monkeypatch.setattr(recipe, "train", train)
    methods = ("--methods", "decoders", "full", "adapter", "--tasks", "semseg", "normals")
    grid = ("--seeds", "0", "--learning_rates", "1e-3", "1e-2", "--grid_steps", "2")
    with pytest.raises(FloatingPointError, match=r"(?s)but \['decoders', 'adapter'\]:.full: No learning rate"):
        compare(small_run(tmp_path, *methods, *grid))
    assert list(json.loads((tmp_path / "comparison.json").read_text())["methods"]) == ["decoders", "adapter"]


def test_one_method_with_several_settings_is_several_rows(recipe, tmp_path):
    methods = ["--methods", "decoders", "adapter", "adapter: {reduction_factor: 4, label: adapter_4}"]
    settings, _ = parse(recipe, [*SCENES, *methods])
    choices = recipe.parse_methods(settings.methods)
    papers = recipe.find_papers(choices, settings.tasks)
    assert list(papers) == ["decoders", "adapter", "adapter_4"]
    assert [(row.table, row.setting) for row in papers.values()] == [(1, ""), (1, ""), (6, "lambda=4")]


def test_other_tasks_have_no_row_of_the_paper(recipe):
    choices = recipe.parse_methods(["decoders", "adapter"])
    depth = {"depth": {"kind": "regression"}}
    for tasks in (["semseg", "normals"], [depth], [*PASCAL_TASKS, depth]):
        assert recipe.find_papers(choices, declare_tasks(tasks)) == {"decoders": None, "adapter": None}
    assert all(recipe.find_papers(choices, PASCAL_TASKS[::-1]).values())


def test_all_methods_of_the_config_for_table_1_have_their_row_in_it(recipe):
    config = Path(recipe.__file__).parent / "configs" / "compare_pascal_swin_tiny.yaml"
    settings, _ = parse(recipe, [str(config), *SCENES])
    rows = recipe.find_papers(recipe.parse_methods(settings.methods), settings.tasks)
    assert [method for method, row in rows.items() if row is None] == ["vmt_adapter", "peft_lora"]
    assert {row.table for row in rows.values() if row} == {1}
