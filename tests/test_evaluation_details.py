# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The best evaluation of a run, and the details of an evaluation for reports."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from peft_polyhistor.evaluation import find_best, find_details
from peft_polyhistor.tasks.metrics import ONE


def best_of(*evaluations):
    """Index of the best of evaluations with a mIoU of semseg and an error of normals each."""
    scores = [{"semseg": {"mIoU": miou}, "normals": {"mErr": error}} for miou, error in evaluations]
    return find_best([{"scores": entry} for entry in scores])


def test_units_of_the_tasks_do_not_decide_which_evaluation_is_best():
    for unit in (1e-3, 1, 1e3):
        # Three times the overlap is worth an error that is 7 % larger, whatever the error is measured in.
        assert best_of((10.0, 840 * unit), (30.0, 900 * unit)) == 1
        assert best_of((50.0, 20 * unit), (50.0, 19 * unit), (52.0, 19 * unit), (51.0, 19 * unit)) == 2


def test_an_evaluation_with_more_finite_scores_is_better():
    assert best_of((50.0, math.nan), (51.0, math.nan), (1.0, 80.0), (52.0, math.inf)) == 2
    assert best_of((math.nan, math.nan), (math.nan, math.inf)) == 1  # without a score the last one is trained most


def test_a_task_that_starts_near_zero_does_not_outweigh_the_others():
    for start in (0.02, 1.0):
        assert best_of((start, 30.0), (40.0, 20.0), (40.4, 29.0)) == 1


def test_a_later_evaluation_does_not_change_the_order_of_earlier_ones():
    """Their checkpoints are gone."""
    random = np.random.default_rng(0)
    for _ in range(50):
        evaluations = [(random.uniform(0, 3), random.uniform(0, 50)) for _ in range(8)]
        best = [best_of(*evaluations[: i + 1]) for i in range(8)]
        assert all(now in (before, i) for i, (before, now) in enumerate(pairwise(best), 1))


def test_the_first_of_equal_evaluations_is_best():
    assert best_of((50.0, 20.0), (50.0, 20.0)) == 0


def rows_of(degrees):
    """Rows of the metric of normals, a pixel per picture; None for a picture without a label."""
    angles = [0 if angle is None else round(ONE * math.radians(angle)) for angle in degrees]
    return torch.tensor(
        [[fixed, int(angle is not None), 0] for fixed, angle in zip(angles, degrees, strict=True)], dtype=torch.int64
    )


def indices_of(degrees):
    image_ids = [f"picture_{i}" for i in range(len(degrees))]
    ends = find_details({"normals": rows_of(degrees)}, image_ids)["examples"]["normals"]
    for entry in ends["best"] + ends["worst"]:
        assert entry["image_id"] == f"picture_{entry['index']}"
        assert entry["score"] == pytest.approx(degrees[entry["index"]])
    return [[entry["index"] for entry in ends[end]] for end in ("best", "worst")]


def test_best_and_worst_pictures_have_labels_and_are_none_of_each_other():
    assert indices_of([5, 1, None, 7, 3, 2, 6, 4]) == [[1, 5, 4], [3, 6, 0]]
    assert indices_of([5, 1, 5, 5]) == [[1, 0, 2], [3]]
    assert indices_of([None, 1]) == [[1], []]
    assert indices_of([None]) == [[], []]


def test_pictures_of_a_higher_score_are_better_and_a_diverged_one_is_neither():
    rows = torch.zeros(3, 64, dtype=torch.int64)  # intersections, unions, labels, and predictions that are not finite
    rows[:, 0], rows[:, 21], rows[:, -1] = torch.tensor([1, 9, 8]), 10, torch.tensor([0, 1, 0])
    found = find_details({"semseg": rows}, ["a", "b", "c"])
    assert [entry["image_id"] for entry in found["examples"]["semseg"]["best"]] == ["c", "a"]
    assert set(found["classes"]["semseg"].values()) == {None}  # one prediction is not finite, so nothing is known
    classes = find_details({"semseg": rows[[0, 2]]}, ["a", "c"])["classes"]["semseg"]
    assert classes["background"] == pytest.approx(45) and classes["bus"] is None and len(classes) == 21
