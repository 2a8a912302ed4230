# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The table of results and the note below it."""

import math

import pytest
from run_results import run_of, scores_of

from peft_polyhistor import register_task, regression
from peft_polyhistor.studies.paper import PaperRow
from peft_polyhistor.studies.tables import align, change_of, find_best_methods, make_note, make_rows, to_markdown


def test_table_has_mean_range_and_change():
    results = {"decoders": [run_of(10.0, 20.0), run_of(20.0, 20.0)], "full": [run_of(11.0, 20.0), run_of(20.0, 10.0)]}
    rows = make_rows(results)
    assert rows[0] == ["method", "rate", "encoder", "all", "semseg mIoU up", "normals mErr down", "change"]
    assert rows[1][:2] == ["decoders", "-"]
    assert rows[2] == [
        "full", "0.0002", "0", "1,234", "15.50 (11.00 to 20.00)", "15.00 (10.00 to 20.00)", "+15.00 (+5.00 to +25.00)",
    ]  # fmt: skip
    assert to_markdown(rows, "note").splitlines()[1] == "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    header, first, second = align(rows).splitlines()
    assert len(header) == len(first) == len(second)


def test_the_header_names_a_unit_that_a_score_does_not_imply():
    register_task(regression("depth", unit="m"))
    run = run_of(40.0, 20.0) | {"scores": {"depth": {"RMSE": 1.5}, **scores_of(40.0, 20.0)}}
    titles = make_rows({"decoders": [run]})[0]
    assert titles[4:-1] == ["depth RMSE (m) down", "semseg mIoU up", "normals mErr down"]


def test_scores_in_small_units_keep_their_digits_and_the_better_one_is_the_best():
    register_task(regression("inverse", unit="1/m", valid=(0.001, 0.1)))
    results = {
        method: [run_of(40.0, 20.0) | {"scores": {"inverse": {"RMSE": error}}} for error in errors]
        for method, errors in {"decoders": [0.00112, 0.00134], "full": [0.00111, 0.00131]}.items()
    }
    cells = [row[4] for row in make_rows(results)[1:]]
    assert cells == ["0.00123 (0.00112 to 0.00134)", "0.00121 (0.00111 to 0.00131)"]
    assert find_best_methods(results)[3] == ["full"]


def test_changes_are_against_single_task_models_where_there_are_any():
    results = {"decoders": [run_of(5.0, 20.0)], "full": [run_of(12.0, 20.0)], "single_task": [run_of(10.0, 20.0)]}
    assert [row[-1] for row in make_rows(results)[1:]] == ["-25.00", "+10.00", "+0.00"]
    assert "against single-task full fine-tuning" in make_note(results).replace("\n", " ")
    results.pop("single_task")
    assert [row[-1] for row in make_rows(results)[1:]] == ["+0.00", "+70.00"]
    assert "against decoders alone" in make_note(results).replace("\n", " ")
    results.pop("decoders")
    assert [row[-1] for row in make_rows(results)[1:]] == ["-"]


@pytest.mark.parametrize("reference", [run_of(0.0, 20.0), run_of(10.0, math.nan)])
def test_table_has_no_change_against_scores_that_allow_none(reference):
    rows = make_rows({"decoders": [reference], "full": [run_of(11.0, 20.0)]})
    assert [row[-1] for row in rows[1:]] == ["-", "-"]


def test_the_best_of_each_column_is_marked():
    results = {
        "decoders": [run_of(1.0, 10.0)] * 2,
        "full": [run_of(2.0, 9.001), run_of(4.0, 9.001)],
        "bitfit": [run_of(3.0, 9.0)] * 2,
        "vpt": [run_of(9.0, math.nan)] * 2,
        "phm": [run_of(9.0, 8.0), run_of(math.nan, 8.001)],
    }
    assert find_best_methods(results) == [[], [], [], ["vpt"], ["phm"], ["bitfit"]]
    del results["vpt"], results["phm"]
    # The mean of `full` is printed as 9.00 too.
    assert find_best_methods(results) == [[], [], [], ["full", "bitfit"], ["bitfit"], ["bitfit"]]
    assert find_best_methods({"full": results["full"]}) == [[]] * 6
    del results["decoders"]
    assert find_best_methods(results)[-1] == []


def test_what_was_not_measured_is_said_in_words():
    results = {"decoders": [run_of(10.0, math.nan)] * 2, "full": [run_of(11.0, math.nan), run_of(12.0, math.nan)]}
    rows = make_rows(results)
    assert [row[5] for row in rows[1:]] == ["not measured"] * 2
    assert change_of(results, "full") == pytest.approx([10.0, 20.0])  # over the task that was measured
    assert "not measured: no label of the split belongs to the task" in make_note(results)
    assert "not measured" not in make_note({"decoders": [run_of(10.0, 20.0)]})
    one = {"decoders": [run_of(10.0, 20.0)], "full": [run_of(math.nan, 20.0)]}
    assert make_rows(one)[2][-3:] == ["not measured", "20.00", "not measured"]


def test_the_order_of_methods_is_compared_with_the_papers():
    changes = {"decoders": "-11", "bitfit": "-5", "adapter": "-3", "full": "2"}
    papers = {
        method: PaperRow(1, "Swin-T", "ImageNet-1k", method, "", {}, {}, text) for method, text in changes.items()
    }
    scores = {"decoders": 10.0, "bitfit": 11.0, "adapter": 13.0, "full": 12.0}
    results = {method: [run_of(score, 20.0)] for method, score in scores.items()}
    # Two neighbours are swapped: 1 - 6 * (1 + 1) / (4 * (16 - 1)) = 0.8.
    assert "with the paper's: 0.80 over 4 methods" in make_note(results, papers)
    alike = dict.fromkeys(results, results["full"])
    assert "Rank correlation" not in make_note(alike, papers)
    assert "Rank correlation" not in make_note(results, {"full": papers["full"], "adapter": None})
