# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Rows of one's own: made in one call, checked, read from YAML, and true to what their kinds say of labels."""

import dataclasses
import json
import math
from io import BytesIO

import dill
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from peft_polyhistor.data.geometry import Draw, Geometry
from peft_polyhistor.tasks import (
    TASKS,
    Task,
    binary,
    declare_tasks,
    describe_tasks,
    register_task,
    regression,
    segmentation,
    vectors,
)
from peft_polyhistor.tasks.table import check_labels


SIZE = (6, 8)  # (height, width)
LANES = segmentation("lanes", classes={"road": [9, 8, 7], "lane": [0, 255, 0], "curb": [200, 0, 0]})
ROWS = [
    LANES,
    segmentation("ids", classes=["a", "b"], values=[7, 11], ignore=[0, 255]),
    regression("depth", unit="m", scale=0.001, valid=(0.1, 10)),
    regression("disparity", objective="silog", valid=[0.5, 64], zoom="multiply", loss_weight=2),
    binary("edges", score="odsF", positive_weight=0.95, tolerance=0.011),
    vectors("surface", objective="cosine"),
]


def test_a_scale_of_zero_is_refused():
    with pytest.raises(ValueError, match="`scale` of depth must not be 0"):
        regression("depth", scale=0)


def test_black_is_the_colour_of_the_background_alone():
    colours = [segmentation("a", classes=["x", "y", "z"], background=flag).palette for flag in (True, False)]
    assert colours == [((0, 0, 0), (128, 0, 0), (0, 128, 0)), ((128, 0, 0), (0, 128, 0), (128, 128, 0))]


def target_of(row, values, size=None, draw=None):
    label = Image.fromarray(values) if isinstance(values, np.ndarray) else values
    return row.to_target(label, Geometry((label.height, label.width), size or (label.height, label.width), draw))


@pytest.mark.parametrize("task", ROWS, ids=lambda task: task.name)
def test_a_row_trains_scores_and_goes_through_yaml(task):
    row = task
    [again] = declare_tasks(yaml.safe_load(yaml.safe_dump([{row.name: row.to_dict()}])))
    assert dill.loads(dill.dumps(row)) == row  # as `datasets` sends it to processes
    assert TASKS[again] == row and describe_tasks([again, "semseg"]) == [{row.name: row.to_dict()}, "semseg"]
    logits = torch.randn(2, row.channels, 3, 4, requires_grad=True)
    target = torch.stack([row.unlabeled(SIZE)] * 2)
    check_labels(row.name, logits.shape, target)
    loss = row.loss(logits, target)
    loss.backward()
    assert loss == 0 and not logits.grad.any()
    metric = row.metric()
    scores = metric.compute(predictions=logits.detach(), references=target)
    assert row.score in scores and all(map(math.isnan, scores.values()))
    assert row.predict(logits).shape == torch.stack([row.unlabeled((3, 4))] * 2).shape
    painted = row.paint(target[0], row.find_ends(target[0]))
    assert painted.shape == (*SIZE, 3) and (painted == (224, 224, 192)).all()


def test_rows_of_pascal_are_not_described_and_a_class_of_ones_own_is_left_out():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Flow(type(TASKS["normals"])):
        kind = "flow"

    register_task(Flow("flow"))
    names = ["semseg", "normals", "flow", "nowhere"]
    assert describe_tasks(names) == names


@pytest.mark.parametrize(("description", "message"), [
    ({"kind": "depth"}, r"Give `kind`, one of \['segmentation', 'regression', 'binary', 'vectors'\]"),
    ("regression", "Give `kind`"),
    ({"kind": "regression", "units": "m"}, r"the settings \['units'\], which a regression does not know: .*'unit'"),
    ({"kind": "segmentation"}, "cannot be created: .*classes"),
    ({"kind": "regression", "valid": [3, 1]}, "a lower and a higher value, got \\(3, 1\\)"),
    ({"kind": "regression", "valid": 3}, "a lower and a higher value, got 3"),
    ({"kind": "regression", "value_range": [1, math.nan]}, "`value_range` must be a finite number, got nan"),
    ({"kind": "regression", "objective": "silog"}, "silog, which needs values above 0, got valid=None"),
    ({"kind": "regression", "objective": "l2"}, r"must be one of \['l1', 'silog'\], got 'l2'"),
    ({"kind": "binary", "score": "IoU"}, r"`score` of task 'x' must be one of \['maxF', 'mIoU', 'odsF'\], got 'IoU'"),
    ({"kind": "binary", "positive_weight": 1}, "must be between 0 and 1, got 1"),
    ({"kind": "vectors", "within": ["a"]}, "`within` must be a finite number"),
    ({"kind": "binary", "ignore": True}, "`ignore` of task .* an integer from 0 to 255, got True"),
    ({"kind": "binary", "ignore": 128.0}, "`ignore` of task .* an integer from 0 to 255, got 128.0"),
    ({"kind": "segmentation", "classes": ["a", "b"], "values": [True, False]}, "all integers from 0 to 255"),
    ({"kind": "segmentation", "classes": ["a", "b"], "ignore": [255.0]}, "all integers from 0 to 255"),
])  # fmt: skip
def test_a_description_that_cannot_be_is_refused(description, message):
    with pytest.raises(ValueError, match=message):
        declare_tasks([{"x": description}])
    assert "x" not in TASKS


@pytest.mark.parametrize("colours", [list, dict])
def test_integers_of_numpy_in_a_task_are_saved(colours):
    palette = [tuple(colour) for colour in np.array([[0, 0, 0], [255, 0, 0]], np.uint8)]
    settings = {"values": [np.int64(3), np.uint8(4)], "ignore": [np.uint8(255)]}
    if colours is dict:
        row = segmentation("x", classes=dict(zip("ab", palette, strict=True)), **settings)
    else:
        row = segmentation("x", classes=["a", "b"], colors=palette, **settings)
    assert json.loads(json.dumps(row.to_dict()))["colors"] == [[0, 0, 0], [255, 0, 0]]
    assert json.loads(json.dumps(binary("y", ignore=np.uint8(7)).to_dict()))["ignore"] == 7


def test_classes_are_taken_from_stored_values():
    row = segmentation("ids", classes=["a", "b"], values=[7, 11], ignore=[0, 255])
    assert target_of(row, np.array([[7, 11, 0, 255]], np.uint8)).tolist() == [[0, 1, 255, 255]]
    with pytest.raises(ValueError, match="found the values 1, 12, allowed are 7, 11 and 0, 255"):
        target_of(row, np.array([[7, 12, 1]], np.uint8))


def test_colours_of_classes_become_class_ids():
    colours = np.array([[[200, 0, 0], [9, 8, 7], [0, 255, 0], [224, 224, 192]]], np.uint8)
    assert target_of(LANES, colours).tolist() == [[2, 0, 1, 255]]
    colours[0, 1] = (10, 8, 7)
    with pytest.raises(ValueError, match=r"no class in 25.0% of the pixels, such as \(10, 8, 7\).*lossless format"):
        target_of(LANES, colours)
    assert "RGB" not in TASKS["semseg"].modes  # whose colours say nothing of its files


def test_the_border_of_a_turn_is_unlabeled_without_a_background():
    draw = Draw(False, 0.0, 0.5)
    ones = np.ones((8, 8), np.uint8)
    assert target_of(LANES, ones, draw=draw).unique().tolist() == [1, 255]
    with_background = dataclasses.replace(LANES, background=True)
    assert target_of(with_background, ones, draw=draw).unique().tolist() == [0, 1]
    depth = target_of(ROWS[2], (2000 * ones.astype(np.uint16)), draw=draw)
    assert depth[0, 4, 4] == 2 and depth[0, 0, 0].isnan() and depth.isnan().sum() == 48


@pytest.mark.parametrize("background", [False, True])
def test_a_label_of_the_first_class_alone_is_unlabeled_whatever_its_border(background):
    row = dataclasses.replace(LANES, ignore_empty=True, background=background)
    label = np.zeros((8, 8), np.uint8)
    for unlabeled in (0, 1):
        label[0, :unlabeled] = 255
        for draw in (None, Draw(False, 0.0, 0.5)):
            assert target_of(row, label, draw=draw).unique().tolist() == [255]
    label[4, 4] = 1
    assert target_of(row, label).unique().tolist() == [0, 1, 255]


@pytest.mark.parametrize(("zoom", "factor"), [("keep", 1), ("divide", 1 / 1.25), ("multiply", 1.25)])
def test_a_number_follows_the_scale_of_the_picture(zoom, factor):
    row = regression("depth", zoom=zoom)
    values = np.full((8, 8), 3.5, np.float32)
    assert target_of(row, values, draw=Draw(False, 0.0, 1.25))[0, 4, 4] == pytest.approx(3.5 * factor)
    assert target_of(row, values)[0, 4, 4] == 3.5


@pytest.mark.parametrize("values", [
    np.array([[0, 50, 2000, 20000]], np.uint16),
    np.array([[0, 50, 2000, 20000]], np.int32),
    np.array([[math.nan, math.inf, 2000, -1]], np.float32),
])  # fmt: skip
def test_only_valid_numbers_are_labels(values):
    target = target_of(ROWS[2], values)
    assert target.isnan().tolist() == [[[True, True, False, True]]] and target[0, 0, 2] == 2


def test_a_binary_label_may_have_unlabeled_pixels():
    row = binary("mask", ignore=255)
    assert target_of(row, np.array([[0, 1, 255]], np.uint8)).tolist() == [[[0, 1, -1]]]
    assert target_of(binary("mask"), Image.new("1", (2, 1), 1)).tolist() == [[[1, 1]]]


def test_a_row_of_another_kind_needs_its_methods_alone():
    class Flow(Task):
        kind = "flow"

    assert Flow("flow").channels == 1 and Flow("flow").class_names == ()


def test_the_ends_of_valid_are_valid():
    row = regression("depth", unit="m", scale=0.001, valid=(0.009, 30))
    target = target_of(row, np.array([[8, 9, 30000, 30001]], np.uint16))
    assert target.isnan().tolist() == [[[True, False, False, True]]] and target[0, 0, 2] == 30
    values = np.array([[0.3, np.nextafter(np.float32(0.3), np.float32(1))]], np.float32)
    assert target_of(regression("depth", valid=(0, 0.3)), values).isnan().tolist() == [[[False, True]]]


def paint(values, palette):
    """A palette image of these indices and colours."""
    image = Image.fromarray(np.array([values], np.uint8)).convert("P")
    image.putpalette([channel for colour in palette for channel in colour])
    return image


BLACK, WHITE, GREEN, RED = (0, 0, 0), (255, 255, 255), (0, 255, 0), (200, 0, 0)


def test_a_palette_of_colours_of_classes_alone_is_read_by_its_colours():
    for values in ([0, 1, 2, 3, 0], [0, 0]):
        label = paint(values, [GREEN, (9, 8, 7), (224, 224, 192), RED])
        assert LANES.read(LANES.to_image(label)).tolist() == [[[1, 0, 255, 2][value] for value in values]]
    own = segmentation("own", classes={"person": WHITE, "background": BLACK})
    assert own.read(own.to_image(paint([0, 1, 1], [BLACK, WHITE]))).tolist() == [[1, 0, 0]]
    assert LANES.read(LANES.to_image(paint([0, 1, 2], [BLACK, GREEN, RED]))).tolist() == [[0, 1, 2]]  # others: indices
    assert segmentation("ids", classes=["a", "b"]).to_image(paint([0, 1], [GREEN, RED])).mode == "L"


@pytest.mark.parametrize(("task", "values", "palette"), [
    (binary("mask"), [0, 1], [WHITE, BLACK]),
    (segmentation("ids", classes=list("abcdefgh")), [0, 1, 2], [BLACK, (3, 3, 3), (7, 7, 7)]),
    (segmentation("ids", classes=["a", "b"]), [0, 0], [BLACK, (1, 1, 1), BLACK, WHITE]),
    (regression("depth", valid=(1, 255)), [1, 2], [BLACK, (90, 90, 90), (30, 30, 30)]),
])  # fmt: skip
def test_a_palette_whose_colours_could_be_the_label_is_refused(task, values, palette):
    with pytest.raises(ValueError, match=r"found a palette of grey levels that are no indices \(\d+ at index \d"):
        task.to_image(paint(values, palette))


@pytest.mark.parametrize(("task", "values", "palette"), [
    (binary("mask"), [0, 1], [BLACK, WHITE]),  # the same foreground
    (segmentation("ids", classes=["a", "b", "c"]), [0, 1, 2], [BLACK, (127, 127, 127), WHITE]),  # 127 is no class
    (segmentation("ids", classes=["a", "b"]), [0, 1], []),
    (segmentation("ids", classes=["a", "b"]), [0, 1], [BLACK, WHITE]),
    (segmentation("own", classes={"cat": GREEN, "background": BLACK, "dog": RED}), [0, 0], [BLACK, WHITE]),
    (segmentation("ids", classes=[f"c{i}" for i in range(150)]), [0, 1], [BLACK, (128, 128, 128), RED]),  # as in VOC
    (LANES, [0, 1], [(i, i, i) for i in range(256)]),
    (segmentation("ids", classes=["a", "b"]), [0, 1, 255], [BLACK, RED]),
])  # fmt: skip
def test_other_palettes_leave_the_indices_as_values(task, values, palette):
    assert np.asarray(task.to_image(paint(values, palette))).tolist() == [values]


def test_class_ids_in_a_jpeg_are_refused():
    buffer = BytesIO()
    Image.new("L", (8, 6)).save(buffer, "JPEG")
    label = Image.open(buffer)
    with pytest.raises(ValueError, match=r"found a JPEG, which changes class ids"):
        segmentation("ids", classes=["a", "b"]).check_stored(label, None)
    binary("mask").check_stored(label, (8, 6))


def test_vectors_that_are_stored_as_colours_in_floating_point_are_refused():
    row = vectors("surface")
    colours = np.full((2, 3, 3), (128, 128, 255), np.float32)
    with pytest.raises(ValueError, match=r"components from 0 to 255, allowed are -1 to 1.* value / 127\.5 - 1"):
        row.to_image(colours)
    image = row.to_image(np.where(colours > 200, np.float32(1.01), np.float32(math.nan)))  # longer by rounding
    assert np.asarray(image)[0, 0].tolist() == [128, 128, 255]


@pytest.mark.parametrize(("task", "label"), [
    (LANES, np.full((4, 5, 3), 0.5, np.float32)),
    (LANES, np.zeros((4, 5, 6), np.uint8)),
    (LANES, np.zeros(4, np.uint8)),
    (LANES, np.array([["a"]])),
    (regression("depth"), np.zeros((4, 5, 3), np.float32)),
    (vectors("surface"), np.zeros((4, 5), np.complex64)),
])  # fmt: skip
def test_arrays_that_are_no_map_are_named_by_their_shape(task, label):
    with pytest.raises(ValueError, match="allowed are numbers with shape") as error:
        task.to_image(label)
    assert f"found an array of {label.dtype} with shape {label.shape}, " in str(error.value)
