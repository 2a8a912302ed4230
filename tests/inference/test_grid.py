# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The grid of images, labels and predictions."""

import numpy as np
import pytest
import torch

from peft_polyhistor import TASKS
from peft_polyhistor.inference.grid import GAP, draw_grid


def make_batch(count, height, width):
    images = np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)
    labels = {"semseg": torch.full((count, height, width), 15), "saliency": torch.ones(count, 1, height, width)}
    logits = {"semseg": torch.zeros(count, 21, 4, 4), "saliency": torch.full((count, 1, 4, 4), -99.0)}
    return images, labels, logits


@pytest.mark.parametrize(("height", "width"), [(64, 64), (32, 96), (16, 16)])
def test_a_column_of_a_task_has_the_label_above_the_prediction(height, width):
    images, labels, logits = make_batch(2, height, width)
    grid = np.asarray(draw_grid(images, labels, logits))
    for i in range(2):
        below = len(grid) - (1 - i) * (2 * (height + GAP) + GAP)
        prediction, label = grid[below - height : below], grid[below - 2 * height - GAP : below - height - GAP]
        assert (label[:, -width:] == 255).all() and (prediction[:, -width:] == 0).all()  # saliency
        semseg = slice(-2 * width - GAP, -width - GAP)
        assert (label[:, semseg] == (192, 128, 128)).all() and (prediction[:, semseg] == 0).all()
        image = grid[below - 2 * height - GAP : below, : 2 * width + GAP]
        assert abs(image.mean() - images[i].mean()) < 3
        assert (grid[below - 2 * height - GAP : below, 2 * width + GAP : -2 * width - GAP] < 200).any()  # its captions


def test_captions_stand_inside_their_column_however_long_the_name(monkeypatch):
    images, labels, logits = make_batch(1, 32, 32)
    long = "a_task_with_a_name_that_is_wider_than_its_column"
    monkeypatch.setitem(TASKS, long, TASKS["semseg"])
    grid = np.asarray(draw_grid(images, {long: labels["semseg"]}, {long: logits["semseg"]}))
    top = len(grid) - 2 * 32 - GAP
    assert (grid[:top, -32 - GAP : -32] == 255).all() and (grid[:top, -32:] < 200).any()


def test_large_maps_are_shrunk():
    grid = draw_grid(*make_batch(1, 8, 600))
    assert grid.width < 5 * 220
