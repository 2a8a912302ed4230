# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Sources of the values of a transformed image, against their definition by loops."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from peft_polyhistor.data.geometry import Draw, Geometry


# float32 arithmetic on values of about 1, at places that float32 gives to some 1e-6 pixels.
TOLERANCE = 1e-4
SIZE, LARGER = (7, 11), (13, 12)
DRAWS = [Draw(False, 17.0, 0.8), Draw(True, -12.0, 1.2)]


def source_of(row, column, image_size, draw):
    """Row and column of the original, in pixels from its corner, under the centre of a pixel of the result."""
    height, width = SIZE
    y = ((row + 0.5) / image_size[0] - 0.5) * height / draw.scale
    x = ((column + 0.5) / image_size[1] - 0.5) * width / draw.scale
    cos, sin = math.cos(math.radians(draw.degrees)), math.sin(math.radians(draw.degrees))
    right = x * cos - y * sin
    return x * sin + y * cos + height / 2, (-right if draw.flip else right) + width / 2


def cubic(distance):
    """Keys' kernel with the slope -3/4, as in OpenCV."""
    a, t = -0.75, abs(distance)
    if t < 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * (t**3 - 5 * t**2 + 8 * t - 4) if t < 2 else 0.0


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("image_size", [SIZE, LARGER])
def test_a_growing_picture_is_interpolated_once(draw, image_size):
    pixels = torch.rand(3, *SIZE)
    found = Geometry(SIZE, image_size, draw).interpolate(pixels)
    assert found.shape == (3, *image_size)
    for row, column in np.ndindex(image_size):
        y, x = source_of(row, column, image_size, draw)
        rows = torch.tensor([cubic(y - 0.5 - other) for other in range(SIZE[0])])
        columns = torch.tensor([cubic(x - 0.5 - other) for other in range(SIZE[1])])
        expected = torch.einsum("chw,h,w->c", pixels, rows, columns)
        torch.testing.assert_close(found[:, row, column], expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("image_size", [SIZE, LARGER, (4, 15)])
def test_labels_take_the_nearest_stored_value(draw, image_size):
    label = np.random.default_rng(0).integers(1, 256, SIZE, np.uint8)
    found = Geometry(SIZE, image_size, draw).take_nearest(Image.fromarray(label))
    for row, column in np.ndindex(image_size):
        y, x = (math.floor(place) for place in source_of(row, column, image_size, draw))
        assert found[row, column] == (label[y, x] if 0 <= y < SIZE[0] and 0 <= x < SIZE[1] else 0)


@pytest.mark.parametrize("draw", [None, Draw(False, 0.0, 1.0), Draw(True, 10.0, 1.2)])
def test_a_side_that_shrinks_leaves_no_pixel_out(draw):
    stripes = torch.zeros(1, 40, 60)
    stripes[..., ::2] = 1
    found = Geometry((40, 60), (50, 15), draw).interpolate(stripes)[0, 10:-10, 4:-4]
    assert found.mean() == pytest.approx(0.5, abs=0.01)
    assert found.std() < 0.02


@pytest.mark.parametrize("image_size", [SIZE, LARGER, (4, 15)])
@pytest.mark.parametrize("flip", [True, False])
def test_without_rotation_and_scale_an_image_is_resized_as_for_evaluation(image_size, flip):
    pixels = torch.randint(0, 256, (3, *SIZE), dtype=torch.uint8)
    found = Geometry(SIZE, image_size, Draw(flip, 0.0, 1.0)).interpolate(pixels)
    expected = Geometry(SIZE, image_size, None).interpolate(pixels.flip(-1) if flip else pixels)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_sides_that_shrink_are_drawn_at_their_own_size():
    pixels, draw = torch.rand(3, 20, 30), Draw(True, 9.0, 0.9)
    found = Geometry((20, 30), (24, 17), draw).interpolate(pixels)
    drawn = Geometry((20, 30), (24, 30), draw).interpolate(pixels)
    expected = F.interpolate(drawn[None], (24, 17), mode="bicubic", antialias=True)[0]
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("draw", DRAWS)
def test_one_interpolation_keeps_detail_that_two_lose(draw):
    """A wave of three pixels, of which the value is known at every place."""

    def wave(y, x):
        return torch.cos(2 * math.pi / 3 * (0.6 * x + 0.8 * y))

    own, larger = (60, 80), (90, 88)
    y, x = torch.meshgrid(*(torch.arange(side) + 0.5 for side in own), indexing="ij")
    pixels = wave(y, x)[None]
    once = Geometry(own, larger, draw).interpolate(pixels)[0]
    drawn = Geometry(own, own, draw).interpolate(pixels)
    twice = F.interpolate(drawn[None], larger, mode="bicubic", antialias=True)[0, 0]
    y, x = torch.meshgrid(*((torch.arange(n) + 0.5) * own[i] / n for i, n in enumerate(larger)), indexing="ij")
    a, b, c, d = draw.to_source()
    right, down = x - own[1] / 2, y - own[0] / 2
    x, y = a * right + b * down + own[1] / 2, c * right + d * down + own[0] / 2
    inside = (x > 3) & (x < own[1] - 3) & (y > 3) & (y < own[0] - 3)
    error, error_of_two = ((values - wave(y, x))[inside].abs().mean() for values in (once, twice))
    assert error < 0.6 * error_of_two
