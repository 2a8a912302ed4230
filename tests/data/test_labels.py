# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Meaning of the values of a label: masks of two kinds, gray levels, and colors with and without a normal."""

import numpy as np
import pytest
import torch
from joint_transforms import transform_image
from PIL import Image
from unit_colors import random_unit_colors

from peft_polyhistor.data.geometry import Draw
from peft_polyhistor.tasks import TASKS
from peft_polyhistor.tasks.kinds.vectors import NORMAL_TOLERANCE, find_normals


SIZE = (12, 16)


def transform(task, label, size=SIZE, draw=None):
    return transform_image({"image": Image.new("RGB", label.size), task: label}, size, draw)[task]


def make_mask(*values):
    """A map of so many columns for each value."""
    return np.repeat(np.array(values, np.uint8), -(-SIZE[1] // len(values)))[None, : SIZE[1]].repeat(SIZE[0], 0)


@pytest.mark.parametrize(
    "values", [(0, 1), (1,), (0,), (0, 255), (255,), (0, 17, 34), (0, 127, 128), (2, 200), (0, 2)]
)
@pytest.mark.parametrize("mode", ["L", "P"])
def test_masks_are_of_0_and_1_where_they_hold_nothing_else(values, mode):
    mask = make_mask(*values)
    label = Image.fromarray(mask)
    if mode == "P":
        label.putpalette(bytes(range(256)) * 3)
    expected = mask == 1 if set(values) <= {0, 1} else mask / 255 > 0.5
    np.testing.assert_array_equal(transform("saliency", label)[0], expected)


def test_a_mask_is_read_by_all_of_its_values_whatever_part_is_left():
    """At the edge that an enlarging draw cuts off, the map has the gray level that tells it from a mask."""
    gray = np.ones((40, 40), np.uint8)
    gray[0, 0] = 9
    assert not transform("saliency", Image.fromarray(gray), (40, 40), Draw(False, 0.0, 1.2)).any()
    gray[0, 0] = 0
    assert transform("saliency", Image.fromarray(gray), (40, 40), Draw(False, 0.0, 1.2)).all()


@pytest.mark.parametrize("values", [(0, 1, 255), (1, 255)])
def test_a_mask_that_can_be_read_in_two_ways_is_refused(values):
    with pytest.raises(ValueError, match=r"saliency of a: found the values .*1, 255, of which 1 or 255 can be"):
        transform("saliency", Image.fromarray(make_mask(*values)))


@pytest.mark.parametrize("color", [(0, 0, 0), (128, 128, 128), (127, 127, 127), (255, 255, 255), (255, 255, 0)])
def test_colors_without_a_direction_are_no_normals(color):
    colors = random_unit_colors(*SIZE)
    colors[:5, :7] = color
    valid = np.ones(SIZE, bool)
    valid[:5, :7] = False
    found = transform("normals", Image.fromarray(colors))
    np.testing.assert_array_equal(found.any(dim=0), valid)
    logits = torch.randn(1, 3, *SIZE)
    labeled = [found[None, ..., 5:, :], logits[..., 5:, :]], [found[None, ..., 7:], logits[..., 7:]]
    row = TASKS["normals"]
    assert int(row.count(found[None])) == valid.sum()
    whole = row.loss(logits, found[None]) * valid.sum()
    parts = sum(row.loss(prediction, target) * row.count(target) for target, prediction in labeled)
    twice = row.loss(logits[..., 5:, 7:], found[None, ..., 5:, 7:]) * ((SIZE[0] - 5) * (SIZE[1] - 7))
    torch.testing.assert_close(whole, parts - twice)
    assert int(row.metric().statistics(logits, found[None])[0, 1]) == valid.sum()


@pytest.mark.parametrize("draw", [Draw(False, 0.0, 1.0), Draw(True, 15.0, 0.8)])
def test_gray_around_a_normal_does_not_bleed_into_it(draw):
    colors = np.full((30, 30, 3), 128, np.uint8)
    colors[5:25, 5:25] = (128, 128, 255)
    found = transform("normals", Image.fromarray(colors), (30, 30), draw)
    valid = found.any(dim=0)
    assert 0.2 < valid.float().mean() < 0.6
    torch.testing.assert_close(found[2][valid], torch.ones(int(valid.sum())), atol=1e-3, rtol=0)


@pytest.mark.parametrize("step", [1, 4, 8, 16])
@pytest.mark.parametrize("cut", [np.round, np.floor, np.ceil])
def test_normals_in_coarse_steps_are_normals(step, cut):
    colors = random_unit_colors(200, 200).astype(float)
    stored = np.clip(cut(colors / step) * step, 0, 255).astype(np.uint8)
    assert find_normals(stored).all()


def test_the_edges_of_the_tolerance():
    blue = np.array([[[128, 128, value] for value in range(256)]], np.uint8)
    lengths = np.linalg.norm(blue / 127.5 - 1, axis=-1)
    np.testing.assert_array_equal(find_normals(blue), abs(lengths - 1) <= NORMAL_TOLERANCE)
    assert find_normals(blue)[0, [31, 32, 223, 224]].tolist() == [True, False, False, True]
    yellow = np.array([[[255, value, 128] for value in range(256)]], np.uint8)  # from length 1 to the root of 2
    lengths = np.linalg.norm(yellow / 127.5 - 1, axis=-1)
    np.testing.assert_array_equal(find_normals(yellow), abs(lengths - 1) <= NORMAL_TOLERANCE)
    assert find_normals(yellow)[0, [31, 32, 223, 224]].tolist() == [False, True, True, False]
