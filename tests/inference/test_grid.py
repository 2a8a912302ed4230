# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The grid of images, labels and predictions."""

import warnings

import numpy as np
import pytest
import torch

from peft_polyhistor import TASKS, regression, segmentation
from peft_polyhistor.inference.grid import GAP, draw_grid
from peft_polyhistor.tasks.task import UNLABELED


def make_batch(count, height, width):
    images = np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)
    labels = {"semseg": torch.full((count, height, width), 15), "saliency": torch.ones(count, 1, height, width)}
    logits = {"semseg": torch.zeros(count, 21, 4, 4), "saliency": torch.full((count, 1, 4, 4), -99.0)}
    return images, labels, logits


def draw(*batch):
    """Draws a grid without its last column, the frame of the last maps."""
    grid = np.asarray(draw_grid(*batch))
    assert ((grid[:, -1] == 192) | (grid[:, -1] == 255)).all()
    return grid[:, :-1]


def bottom_of_maps(grid, width):
    """Returns the row below the last prediction of saliency, which is black."""
    return 1 + np.flatnonzero((grid[:, -width:] == 0).all((1, 2)))[-1]


@pytest.mark.parametrize(("height", "width"), [(64, 64), (32, 96), (16, 16)])
def test_a_column_of_a_task_has_the_label_above_the_prediction(height, width):
    images, labels, logits = make_batch(2, height, width)
    grid = draw(images, labels, logits)
    for i in range(2):
        below = bottom_of_maps(grid, width) - (1 - i) * (2 * (height + GAP) + GAP)
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
    grid = draw(images, {long: labels["semseg"]}, {long: logits["semseg"]})
    top = np.flatnonzero((grid[:, -1] == (192, 128, 128)).all(-1))[0]  # of the label
    assert (grid[: top - 1, -32 - GAP : -32] == 255).all() and (grid[:top, -32:] < 200).any()


def test_a_long_name_does_not_shrink_the_other_titles(monkeypatch):
    def title_of_the_image(name):
        monkeypatch.setitem(TASKS, name, TASKS["semseg"])
        images, labels, logits = make_batch(1, 64, 64)
        grid = draw(images, {name: labels["semseg"]}, {name: logits["semseg"]})
        top = np.flatnonzero((grid[:, -1] == (192, 128, 128)).all(-1))[0]
        return grid[: top - 1, : -64 - GAP]

    assert np.array_equal(title_of_the_image("short"), title_of_the_image("a_task_with_a_name_that_is_wider"))


def test_characters_that_the_font_lacks_are_told(monkeypatch):
    monkeypatch.setitem(TASKS, "道", segmentation("道", classes=["é", "路"]))
    images, labels, _ = make_batch(1, 32, 32)
    with pytest.warns(UserWarning, match="shows boxes in place of 道, é, 路, which its font lacks"):
        draw(images, {"道": labels["semseg"] // 15}, {"道": torch.zeros(1, 2, 4, 4)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw(*make_batch(1, 32, 32))


def test_large_maps_are_shrunk():
    assert draw(*make_batch(1, 8, 600)).shape[1] < 5 * 220


def colours_of_legend(grid):
    """Returns the colours below the maps of 64 pixels, each of at least 100 pixels."""
    legend = grid[bottom_of_maps(grid, 64) :]
    found, counts = np.unique(legend.reshape(-1, 3), axis=0, return_counts=True)
    return {tuple(colour.tolist()) for colour, count in zip(found, counts, strict=True) if count >= 100}


def test_a_legend_names_the_classes_of_labels_and_predictions():
    images, labels, logits = make_batch(2, 64, 64)
    labels["semseg"][0, 0] = 255  # unlabelled
    logits["semseg"][1, 7] = 1
    palette = TASKS["semseg"].palette
    shown = colours_of_legend(draw(images, labels, logits))
    assert shown & set(palette) == {palette[0], palette[7], palette[15]} and UNLABELED in shown
    labels["semseg"][0, 0] = 15
    assert UNLABELED not in colours_of_legend(draw(images, labels, logits))


def test_a_legend_of_many_classes_breaks_lines():
    images, labels, logits = make_batch(1, 64, 64)
    one_line = draw(images, labels, logits)
    labels["semseg"][0, 0, :21] = torch.arange(21)
    grid = draw(images, labels, logits)
    assert len(grid) > len(one_line) and colours_of_legend(grid) >= set(TASKS["semseg"].palette)


def test_a_legend_names_the_values_that_are_black_and_white_in_all_rows(monkeypatch):
    depth = regression("depth", unit="m")
    monkeypatch.setitem(TASKS, "depth", depth)
    label = torch.linspace(1, 9, 64).expand(2, 1, 64, 64).clone()
    label[1] = 3 + label[1] / 9
    label[:, :, :8] = torch.nan
    assert list(depth.key(label, label)) == [("1 m", (0, 0, 0)), ("9 m", (255, 255, 255))]
    images, _, _ = make_batch(2, 64, 64)
    grid = draw(images, {"depth": label}, {"depth": label})
    top = np.flatnonzero((grid[:, -1] == 224).any(-1))[0]  # of the unlabelled rows of the first label
    pitch = 2 * (64 + GAP) + GAP
    first, second = grid[top + 32, -64:, 0], grid[top + pitch + 32, -64:, 0]
    assert (first == np.round(255 * np.arange(64) / 63)).all()
    assert second.min() == round(255 * (28 / 9 - 1) / 8) and second.max() == round(255 * 3 / 8)
    assert len(grid) > top + 2 * pitch  # the legend


def test_a_white_map_has_a_frame():
    images, labels, logits = make_batch(1, 16, 16)
    grid = draw(images, labels, logits)
    top = bottom_of_maps(grid, 16) - 2 * 16 - GAP  # of the label of saliency, which is white
    assert (grid[top - 1, -17:] == 192).all() and (grid[top - 1 : top + 17, -17] == 192).all()


def test_a_grid_without_classes_has_no_legend():
    images, labels, logits = make_batch(1, 64, 64)
    del labels["semseg"], logits["semseg"]
    grid = draw(images, labels, logits)
    assert len(grid) == bottom_of_maps(grid, 64) + 1
