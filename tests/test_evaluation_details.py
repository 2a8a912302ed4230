# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""What a run records beside its scores, and the pictures it draws."""

import math

import pytest
import torch
from datasets import Dataset

from peft_polyhistor.tasks.metrics import ONE


@pytest.fixture
def details(load_recipe):
    return load_recipe("details")


def rows_of(degrees):
    """Rows of the metric of normals, a pixel per picture; None for a picture without a label."""
    angles = [0 if angle is None else round(ONE * math.radians(angle)) for angle in degrees]
    return torch.tensor(
        [[fixed, int(angle is not None), 0] for fixed, angle in zip(angles, degrees, strict=True)], dtype=torch.int64
    )


def indices_of(details, degrees):
    data = Dataset.from_dict({"image_id": [f"picture_{i}" for i in range(len(degrees))]})
    ends = details.find_details({"normals": rows_of(degrees)}, data)["pictures"]["normals"]
    for entry in ends["best"] + ends["worst"]:
        assert entry["image_id"] == f"picture_{entry['index']}"
        assert entry["score"] == pytest.approx(degrees[entry["index"]])
    return [[entry["index"] for entry in ends[end]] for end in ("best", "worst")]


def test_best_and_worst_pictures_have_labels_and_are_none_of_each_other(details):
    assert indices_of(details, [5, 1, None, 7, 3, 2, 6, 4]) == [[1, 5, 4], [3, 6, 0]]
    assert indices_of(details, [5, 1, 5, 5]) == [[1, 0, 2], [3]]
    assert indices_of(details, [None, 1]) == [[1], []]
    assert indices_of(details, [None]) == [[], []]


def test_pictures_of_a_higher_score_are_better_and_a_diverged_one_is_neither(details):
    rows = torch.zeros(3, 43, dtype=torch.int64)  # intersections, unions, and predictions that are not finite
    rows[:, 0], rows[:, 21], rows[:, -1] = torch.tensor([1, 9, 8]), 10, torch.tensor([0, 1, 0])
    data = Dataset.from_dict({"image_id": ["a", "b", "c"]})
    found = details.find_details({"semseg": rows}, data)
    assert [entry["image_id"] for entry in found["pictures"]["semseg"]["best"]] == ["c", "a"]
    assert set(found["classes"]["semseg"].values()) == {None}  # one prediction is not finite, so nothing is known
    classes = details.find_details({"semseg": rows[[0, 2]]}, data)["classes"]["semseg"]
    assert classes["background"] == pytest.approx(45) and classes["bus"] is None and len(classes) == 21


def test_runs_on_single_tasks_are_joined_whatever_they_recorded(details):
    parameters = {"encoder": 1, "all": 2}
    old = {"parameters": parameters, "scores": {"semseg": 1}, "seconds": 1.0}
    entries = [{"step": step, "losses": {"normals": step}} for step in (2, 4)]
    new = {
        **{"parameters": parameters, "scores": {"normals": 2}, "seconds": 2.0, "losses": entries},
        **{"classes": {}, "pictures": {"normals": 3}, "history": [{"step": 4, "scores": {"normals": 2}}]},
    }
    joined = details.join_runs({"semseg": old, "normals": new})
    assert joined["parameters"] == {"encoder": 2, "all": 4} and joined["seconds"] == 3.0
    assert joined["scores"] == {"semseg": 1, "normals": 2} and joined["pictures"] == {"normals": 3}
    assert joined["losses"] == entries and joined["history"] == new["history"] and joined["classes"] == {}
    both = details.join_runs({"depth": {**new, "losses": [{"step": 4, "losses": {"depth": 9}}]}, "normals": new})
    assert both["losses"] == [entries[0], {"step": 4, "losses": {"depth": 9, "normals": 4}}]
