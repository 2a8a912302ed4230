# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The comparison of methods over seeds, and its table."""

import json
import math
from pathlib import Path
from xml.etree import ElementTree

import pytest

from peft_polyhistor.studies import paper, tables


PAPER = Path(__file__).parents[2] / "recipes" / "paper" / "tables.csv"


@pytest.fixture
def recipe(load_recipe):
    return load_recipe("compare_methods")


def test_compares_once_and_refuses_other_settings(recipe, load_recipe, small_run, tmp_path, capsys, monkeypatch):
    methods = ("--methods", "decoders", "polyhistor_lite", "--steps", "2", "--eval_every", "2", "--seeds", "0", "1")
    arguments = small_run(tmp_path, *methods)
    summary = recipe.main(arguments)
    runs = {method: content["runs"] for method, content in summary["methods"].items()}
    assert {method: len(items) for method, items in runs.items()} == {"decoders": 2, "polyhistor_lite": 2}
    assert [run["settings"]["seed"] for run in runs["decoders"]] == [0, 1]
    assert summary["reference"] == "decoders" and summary["methods"]["decoders"]["changes"] == [0, 0]
    assert summary["methods"]["polyhistor_lite"]["paper"]["change"] == "1.74"
    printed, table = capsys.readouterr().out, (tmp_path / "comparison.md").read_text()
    error = [run["scores"]["normals"]["mErr"] for run in runs["decoders"]]
    cell = f"{sum(error) / 2:.2f} ({min(error):.2f} to {max(error):.2f})"
    assert cell in printed and f"| {cell} |" in table
    assert "| the paper, Table 1 | - | 0.41 M | 2.96 M | 70.24 | 59.12 | 64.75 | 17.40 | +1.74 |" in table
    assert json.loads((tmp_path / "comparison.json").read_text()) == summary
    assert texts_of(ElementTree.parse(tmp_path / "comparison.svg").getroot()) >= {"decoders", "polyhistor_lite"}

    monkeypatch.setattr(load_recipe("train_pascal"), "build", lambda *_: pytest.fail("trained again"))
    assert recipe.main(arguments) == summary
    with pytest.raises(ValueError, match="made with other settings: batch_size was 2 and is 3"):
        recipe.main([*arguments, "--batch_size", "3"])


def test_each_method_takes_the_best_rate_of_a_grid_on_held_out_pictures(
    recipe, load_recipe, small_run, tmp_path, monkeypatch
):
    calls, trainer = [], load_recipe("learning_rates")

    def train(method, run):
        calls.append((method, run.learning_rate, run.decoder_learning_rate, run.holdout, run.seed, run.output_dir))
        assert run.on_bad_step == ("warn" if run.holdout else "stop")
        rate = run.learning_rate
        best = {"full": 1e-3, "polyhistor_lite": 1e-2}.get(method, rate)
        return {
            "method": method, "seconds": 1.0, "parameters": {"encoder": 10, "all": 20},
            "scores": scores_of(50 - abs(math.log(rate / best)), 20.0), "settings": {"learning_rate": rate},
        }  # fmt: skip

    monkeypatch.setattr(recipe, "train", train)
    monkeypatch.setattr(trainer, "train", train)
    methods = ("--methods", "decoders", "full", "polyhistor_lite", "--seeds", "3", "4", "--learning_rate", "0.5")
    tasks = ("--tasks", "semseg", "normals", "--decoder_learning_rate", "0")
    grid = ("--learning_rates", "1e-4", "1e-3", "1e-2", "--grid_holdout", "0.3", "--grid_steps", "5")
    summary = recipe.main(small_run(tmp_path, *methods, *tasks, *grid))["methods"]
    chosen = {method: content["learning_rate"] for method, content in summary.items()}
    assert chosen == {"decoders": None, "full": 1e-3, "polyhistor_lite": 1e-2}
    assert list(summary["full"]["grid"]) == ["0.0001", "0.001", "0.01"] and summary["decoders"]["grid"] == {}
    searched, final = calls[:6], calls[6:]
    assert all((decoders, holdout, seed) == (0.5, 0.3, 3) for _, _, decoders, holdout, seed, _ in searched)
    assert {(method, rate) for method, rate, *_ in searched} == {
        (method, rate) for method in ("full", "polyhistor_lite") for rate in (1e-4, 1e-3, 1e-2)
    }
    assert len({folder for *_, folder in searched}) == 3
    assert [call[:5] for call in final] == [
        (method, rate, 0.5, 0.0, seed)
        for seed in (3, 4)
        for method, rate in (("decoders", 0.5), ("full", 1e-3), ("polyhistor_lite", 1e-2))
    ]


def test_the_rate_that_is_best_over_all_tasks_wins(load_recipe):
    choose = load_recipe("learning_rates").choose_rate
    assert choose({1e-4: scores(50, 20), 1e-3: scores(52, 20), 1e-2: scores(52, 30)}) == 1e-3
    # +10 of 10 is more than +10 of 80: what counts is the change relative to the task's own scores.
    assert choose({1e-4: {"semseg": 20, "saliency": 80}, 1e-3: {"semseg": 10, "saliency": 90}}) == 1e-4
    assert choose({1e-4: scores(50, 20), 1e-3: scores(math.nan, 1)}) == 1e-4
    assert choose({1e-4: scores(math.nan, 20), 1e-3: scores(math.nan, 19)}) == 1e-3
    assert choose({1e-4: scores(0, 20), 1e-3: scores(0, 19)}) == 1e-3
    assert choose({1e-4: scores(0.01, 10), 1e-3: scores(0.05, 20), 1e-2: scores(0.01, 11)}) == 1e-4
    with pytest.raises(ValueError, match=r"No learning rate can be chosen.*Give lower --learning_rates"):
        choose({1e-4: scores(math.nan, 20), 1e-3: scores(1, math.inf)})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0", "0"], "`seeds` must be 0 or more, each once"),
        (["--seeds", "-1"], "`seeds` must be 0 or more, each once"),
        (["--learning_rates", "1e-4", "1e-4"], "`learning_rates` must be above 0, each once"),
        (["--learning_rates", "0"], "`learning_rates` must be above 0"),
        (["--grid_holdout", "0.5"], "`grid_holdout` and `grid_steps` are for a grid: give --learning_rates too"),
        (["--grid_steps", "5"], "are for a grid: give --learning_rates too"),
        (["--learning_rates", "1", "--grid_steps", "-5"], "`grid_steps` must be at least 0, got -5"),
        (["--learning_rates", "1", "--grid_holdout", "1"], "`grid_holdout` must be a part of the training pictures"),
    ],
)
def test_bad_arguments(recipe, small_run, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        recipe.main(small_run(tmp_path, *arguments))


def texts_of(chart):
    return {element.text for element in chart.iter() if element.tag.endswith("text")}


def scores(semseg, error):
    return {"semseg": semseg, "normals": error}


def scores_of(semseg, error):
    return {"semseg": {"mIoU": semseg}, "normals": {"mErr": error}}


def run_of(semseg, error):
    return {
        "scores": scores_of(semseg, error), "parameters": {"encoder": 0, "all": 1234},
        "settings": {"learning_rate": 2e-4},
    }  # fmt: skip


def test_table_has_mean_range_and_change(load_recipe):
    results = {"decoders": [run_of(10.0, 20.0), run_of(20.0, 20.0)], "full": [run_of(11.0, 20.0), run_of(20.0, 10.0)]}
    rows = tables.make_rows(results)
    assert rows[0] == ["method", "rate", "encoder", "all", "semseg mIoU up", "normals mErr down", "change"]
    assert rows[1][:2] == ["decoders", "-"]
    assert rows[2] == [
        "full", "0.0002", "0", "1,234", "15.50 (11.00 to 20.00)", "15.00 (10.00 to 20.00)", "+15.00 (+5.00 to +25.00)",
    ]  # fmt: skip
    assert tables.to_markdown(rows, "note").splitlines()[1] == "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    header, first, second = tables.align(rows).splitlines()
    assert len(header) == len(first) == len(second)


def test_changes_are_against_single_task_models_where_there_are_any(load_recipe):
    results = {"decoders": [run_of(5.0, 20.0)], "full": [run_of(12.0, 20.0)], "single_task": [run_of(10.0, 20.0)]}
    assert [row[-1] for row in tables.make_rows(results)[1:]] == ["-25.00", "+10.00", "+0.00"]
    assert "against single-task full fine-tuning" in tables.make_note(results).replace("\n", " ")
    results.pop("single_task")
    assert [row[-1] for row in tables.make_rows(results)[1:]] == ["+0.00", "+70.00"]
    assert "against decoders only" in tables.make_note(results).replace("\n", " ")
    results.pop("decoders")
    assert [row[-1] for row in tables.make_rows(results)[1:]] == ["-"]


@pytest.mark.parametrize("reference", [run_of(0.0, 20.0), run_of(10.0, math.nan)])
def test_table_has_no_change_against_scores_that_allow_none(load_recipe, reference):
    rows = tables.make_rows({"decoders": [reference], "full": [run_of(11.0, 20.0)]})
    assert [row[-1] for row in rows[1:]] == ["-", "-"]


def test_a_task_that_no_run_could_measure_is_left_out_of_the_change(load_recipe):
    results = {"decoders": [run_of(10.0, math.nan)], "full": [run_of(11.0, math.nan)]}
    rows = load_recipe("tables").make_rows(results)
    assert [row[-2:] for row in rows[1:]] == [["not measured", "+0.00"], ["not measured", "+10.00"]]


@pytest.mark.parametrize(
    ("method", "changes", "found"),
    [
        ("single_task", [], (1, "Single-task Full Fine-tuning", "")),
        ("decoders", [], (1, "Fine-tuning Decoders", "")),
        ("full", [], (1, "Multi-task Full Fine-tuning", "")),
        ("compacter_plus_plus", [], (1, "Compacter++", "")),
        ("compacter", [], (1, "Compacter", "")),
        ("adapter", ["reduction_factor=4"], (6, "Adapter", "lambda=4")),
        ("polyhistor", ["rank=1"], (5, "Polyhistor", "rank=1")),
        ("hyperformer", [], None),  # beside the feed-forward block alone, which the paper has not on Swin-T
        ("polyhistor_lite", ["placement=serial"], None),
        ("peft_lora", [], None),
    ],
)
def test_the_papers_row_is_of_the_same_settings(recipe, load_recipe, method, changes, found):
    settings = load_recipe("settings").Settings(methods=[method], method_settings=changes)
    row = recipe.find_papers(settings)[method]
    assert (row and (row.table, row.method, row.setting)) == found


def test_a_diverged_method_stays_in_the_table_and_out_of_the_plot(recipe, tmp_path, capsys):
    results = {"decoders": [run_of(10.0, 20.0)], "full": [run_of(math.nan, 20.0)]}
    papers = dict.fromkeys(results)
    recipe.write_all(tmp_path, results, recipe.summarise(results, {}, papers), papers)
    assert {"decoders", "full"} & texts_of(ElementTree.parse(tmp_path / "comparison.svg").getroot()) == {"decoders"}
    assert "not measured" in capsys.readouterr().out


def test_all_methods_of_the_config_for_table_1_have_their_row_in_it(recipe, load_recipe):
    config = Path(recipe.__file__).parent / "configs" / "compare_pascal_swin_tiny.yaml"
    settings = load_recipe("settings").parse_settings([str(config), "--data", "scenes"], "")
    rows = recipe.find_papers(settings)
    assert [method for method, row in rows.items() if row is None] == ["vmt_adapter", "peft_lora"]
    assert {row.table for row in rows.values() if row} == {1}


@pytest.mark.parametrize("width", ["WIDE", "NARROW"])
def test_names_in_the_plot_overlap_nothing(load_recipe, monkeypatch, width):
    plot, boxes, original = load_recipe("plot"), [], load_recipe("plot")._draw_name

    def draw_name(chart, axes, name, centre, taken):
        box = original(chart, axes, name, centre, taken)
        assert not any(plot._overlap(box, other) for other in taken), name
        assert axes.encloses(box)
        boxes.append(box)
        return box

    monkeypatch.setattr(plot, "_draw_name", draw_name)
    rows = [row for row in paper.read_rows(PAPER) if row.table == 1]
    points = {
        row.method: plot.Point(
            round(1e6 * float(row.parameters["encoder"])), [float(row.change) - 1, float(row.change)]
        )
        for row in rows
    }
    assert texts_of(plot.draw_plot(points, "decoders only", getattr(plot, width))) >= set(points)
    assert len(boxes) == 17


@pytest.mark.parametrize("changes", [[0.0], [1e-9, 2e-9], [-1e4, 1e4]])
def test_a_plot_of_one_method_is_drawn(load_recipe, changes):
    plot = load_recipe("plot")
    for parameters in (0, 1, 10**8):
        plot.draw_plot({"only": plot.Point(parameters, changes)}, "decoders only")
