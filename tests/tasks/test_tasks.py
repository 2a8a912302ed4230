# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Task rows, their lookup, and the relative change."""

import dataclasses
import math
import pickle
import runpy
import sys

import pytest
import torch

from peft_polyhistor.tasks.classes import voc_palette
from peft_polyhistor.tasks.table import (
    TASKS,
    Task,
    check_labels,
    count_labels,
    get_tasks,
    register_task,
    relative_change,
)


# Polyhistor, arXiv:2210.03265, Table 1 (Swin-T): single-task full fine-tuning, and Polyhistor with its printed change
SINGLE_TASK = {"semseg": 67.21, "human_parts": 61.93, "saliency": 62.35, "normals": 17.97}
POLYHISTOR = {"semseg": 70.87, "human_parts": 59.54, "saliency": 65.47, "normals": 17.47}
POLYHISTOR_CHANGE = 2.34
HYPERFORMER = {"semseg": 71.43, "human_parts": 60.73, "saliency": 65.54, "normals": 17.77}
HYPERFORMER_CHANGE = 2.64

LABELS = {
    "semseg": torch.full((2, 7, 5), 20),
    "human_parts": torch.full((2, 7, 5), 6),
    "saliency": torch.ones(2, 1, 7, 5),
    "normals": torch.tensor([0.0, 0.6, -0.8]).view(1, 3, 1, 1).expand(2, 3, 7, 5),
}


@pytest.fixture
def depth():
    return dataclasses.replace(TASKS["saliency"], name="depth")


def test_rows_are_those_of_the_protocol():
    assert [(task.name, task.channels, task.loss_weight) for task in TASKS.values()] == [
        ("semseg", 21, 1),
        ("human_parts", 7, 2),
        ("saliency", 1, 5),
        ("normals", 3, 10),
    ]
    assert all(key == task.name for key, task in TASKS.items())
    assert [task.name for task in TASKS.values() if not task.higher_is_better] == ["normals"]
    assert len(TASKS["semseg"].class_names) == 21
    assert TASKS["semseg"].class_names[15] == "person"


@pytest.mark.parametrize("name", TASKS)
def test_the_functions_of_a_row_fit_together(name):
    task, target = TASKS[name], LABELS[name]
    logits = torch.randn(2, task.channels, 4, 3)
    check_labels(name, logits.shape, target)
    assert task.loss(logits, target).isfinite()
    metric = task.metric()
    metric.add_batch(predictions=logits, references=target)
    assert task.score in metric.compute()


def test_labels_are_counted_as_the_losses_count():
    labels = dict(LABELS)
    labels["semseg"] = labels["semseg"].index_fill(1, torch.tensor([1, 4]), 255)
    labels["saliency"] = torch.tensor([0.0, 1.0, -1.0]).repeat_interleave(14).view(1, 1, 6, 7)
    expected = {"semseg": 2 * 5 * 5, "human_parts": 2 * 7 * 5, "saliency": [14, 28], "normals": 2 * 7 * 5}
    assert {task: count.tolist() for task, count in count_labels(labels, list(labels)).items()} == expected


def test_rows_can_be_pickled():
    assert pickle.loads(pickle.dumps(TASKS["semseg"])).metric().num_classes == 21


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_the_rows_import_without_evaluate(monkeypatch):
    monkeypatch.setitem(sys.modules, "evaluate", None)  # its import takes seconds, and now raises
    assert runpy.run_module("peft_polyhistor.tasks.table")["TASKS"].keys() == TASKS.keys()


def test_voc_palette_is_the_published_one():
    # VOC development kit: background, aeroplane, bicycle, person, tvmonitor, border
    palette = voc_palette(256)
    expected = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 15: (192, 128, 128), 20: (0, 64, 128)}
    assert {class_id: palette[class_id] for class_id in expected} == expected
    assert palette[255] == (224, 224, 192)
    assert len(set(palette)) == 256
    with pytest.raises(ValueError, match="0 to 256 colours, got 257"):
        voc_palette(257)


def test_get_tasks_keeps_the_order():
    assert get_tasks(["normals", "semseg"]) == [TASKS["normals"], TASKS["semseg"]]


@pytest.mark.parametrize(("names", "message"), [
    ([], "No task was given"),
    ("semseg", "must be a list of names, got 'semseg'"),
    (["semseg", "edges"], r"Unknown tasks \['edges'\]"),
    (["semseg", "semseg"], "may be named once"),
])  # fmt: skip
def test_get_tasks_names_the_fault_and_the_known_tasks(names, message):
    with pytest.raises(ValueError, match=f"{message}.*Known tasks: semseg, human_parts, saliency, normals"):
        get_tasks(names)


def test_a_registered_task_works_like_the_others(depth):
    register_task(depth)
    assert get_tasks(["depth"]) == [depth]
    check_labels("depth", (2, 1), LABELS["saliency"])
    register_task(dataclasses.replace(depth))  # the same row, as in a notebook cell that runs twice
    with pytest.raises(ValueError, match=r"'depth' exists already.*other than semseg.*del TASKS\['depth'\]"):
        register_task(dataclasses.replace(depth, score="maxF"))
    with pytest.raises(TypeError, match="created by segmentation, regression, binary, vectors, got 'depth'"):
        register_task("depth")


@pytest.mark.parametrize(("change", "message"), [
    ({"name": "a.b"}, "Python identifier, got 'a.b'"),
    ({"loss_weight": float("nan")}, "must be a finite number, got nan"),
    ({"loss_weight": -1.0}, "must be positive, got -1"),
    ({"colors": ((0, 0, 0),)}, "21 class names and 1 colours"),
    ({"classes": ("a", "b"), "colors": ((0, 0, 0), (1, 2))}, "colours of three values"),
    ({"classes": {"a": (1, 2, 3), "b": (0, 0, 0), "c": (1, 2, 3)}}, r"'a' and 'c' of .* same colour, \(1, 2, 3\)"),
    ({"classes": ("a", "b"), "values": (1, 255)}, "distinct stored values"),
    ({"classes": ("a", "a")}, "different names"),
    ({"classes": "abc"}, "different names, got 'abc'"),
    ({"classes": 5}, "different names, got 5"),
    ({"classes": {"road": None, "lane": None}}, r"`colors` of task .* must be a list of colours, got \(None, None\)"),
    ({"values": 3}, r"`values` of task .* must be a list of stored values, got 3"),
    ({"ignore": None}, r"`ignore` of task .* must be a list of stored values, got None"),
    ({"classes": ()}, "2 to 254 different names"),
    ({"classes": ("road",)}, "2 to 254 different names, got .'road',.. For one class against a background"),
])  # fmt: skip
def test_a_row_that_cannot_work_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TASKS["semseg"], **change)


@pytest.mark.parametrize("name", ["type", "train", "items", "_modules", "image", "image_id", "pixel_values"])
def test_a_name_that_modules_or_columns_have_is_refused(name):
    with pytest.raises(ValueError, match=f"must not be named '{name}': a column .* Use e.g. '{name}_map'"):
        dataclasses.replace(TASKS["semseg"], name=name)


def test_rows_are_read_only():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TASKS["semseg"].channels = 3
    assert isinstance(TASKS["semseg"], Task)


def test_check_labels_names_the_task():
    with pytest.raises(ValueError, match=r"Logits of task 'semseg' have shape \(2, 7\); they must have 21"):
        check_labels("semseg", (2, 7), LABELS["semseg"])
    with pytest.raises(ValueError, match=r"Labels of human_parts hold the values \[20\].*0 to 6"):
        check_labels("human_parts", (2, 7), LABELS["semseg"])
    with pytest.raises(ValueError, match="Unknown tasks"):
        check_labels("edges", (2, 7), LABELS["semseg"])


def test_relative_change_gives_the_figures_of_the_paper():
    assert round(relative_change(POLYHISTOR, SINGLE_TASK), 3) == 2.343
    assert round(relative_change(POLYHISTOR, SINGLE_TASK), 2) == POLYHISTOR_CHANGE
    assert round(relative_change(HYPERFORMER, SINGLE_TASK), 2) == HYPERFORMER_CHANGE
    assert relative_change(SINGLE_TASK, SINGLE_TASK) == 0


def test_relative_change_counts_a_smaller_angle_as_better():
    assert relative_change({"normals": 9.0}, {"normals": 10.0}) == pytest.approx(10)
    assert relative_change({"semseg": 9.0}, {"semseg": 10.0}) == pytest.approx(-10)


def test_relative_change_leaves_out_what_was_not_measured_on_either_side():
    nan = float("nan")
    change = relative_change({"semseg": 9.0, "normals": nan}, {"semseg": 10.0, "normals": nan})
    assert change == relative_change({"semseg": 9.0}, {"semseg": 10.0})
    for scores, reference in (({"semseg": nan}, {"semseg": nan}), ({"semseg": nan}, {"semseg": 1.0})):
        assert math.isnan(relative_change(scores, reference))
    assert math.isnan(relative_change({"semseg": 9.0, "normals": nan}, {"semseg": 10.0, "normals": 8.0}))
    assert math.isnan(relative_change({"semseg": 9.0, "normals": 8.0}, {"semseg": 10.0, "normals": nan}))


@pytest.mark.parametrize(("scores", "reference", "message"), [
    ({"semseg": 1.0}, {"normals": 1.0}, r"\['semseg'\], the reference has \['normals'\]"),
    ({"semseg": 1.0}, {"semseg": 0.0}, r"reference score of \['semseg'\] is 0"),
    ({}, {}, "No task was given"),
    ({"edges": 1.0}, {"edges": 1.0}, "Unknown tasks"),
])  # fmt: skip
def test_relative_change_refuses_scores_that_cannot_be_compared(scores, reference, message):
    with pytest.raises(ValueError, match=message):
        relative_change(scores, reference)
