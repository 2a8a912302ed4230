# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Laws of the joint transforms, on draws and sizes of chance."""

import math

import numpy as np
import pytest
import torch
from joint_transforms import transform_image
from PIL import Image

from peft_polyhistor.data.geometry import Draw, Geometry
from peft_polyhistor.tasks.kinds.vectors import flip_normals, rotate_normals


EXACT = {"rtol": 0, "atol": 1e-12}  # float64 arithmetic on values of about 1
FLOAT32 = {"rtol": 0, "atol": 1e-4}  # of values up to 1, at places that float32 gives to some 1e-6 pixels
BYTES = math.sqrt(3) / 255  # radians; of a vector whose components were rounded to whole steps of 1 / 127.5
SEEDS = range(8)


def draw_of(random, flip=None):
    return Draw(random.random() < 0.5 if flip is None else flip, random.uniform(-20, 20), random.uniform(0.75, 1.25))


def sizes_of(random):
    return [tuple(random.integers(1, 24, 2).tolist()) for _ in range(2)]


def matrix_of(draw):
    return np.array(draw.to_source()).reshape(2, 2)


def transform_normals(normals, image_size, draw):
    label = Image.fromarray(normals)
    return transform_image({"image": Image.new("RGB", label.size), "normals": label}, image_size, draw)["normals"]


# Places


@pytest.mark.parametrize("seed", SEEDS)
def test_a_draw_is_a_turn_that_keeps_angles_and_enlarges_areas(seed):
    draw = draw_of(np.random.default_rng(seed))
    matrix = matrix_of(draw)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(2) / draw.scale**2, **EXACT)
    assert np.linalg.det(matrix) == pytest.approx((-1 if draw.flip else 1) / draw.scale**2)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_draw_has_an_inverse(seed):
    """A turn is undone by the opposite one; a mirror undoes itself, and turns the other way what comes after it."""
    draw = draw_of(np.random.default_rng(seed))
    back = Draw(draw.flip, draw.degrees if draw.flip else -draw.degrees, 1 / draw.scale)
    np.testing.assert_allclose(matrix_of(draw) @ matrix_of(back), np.eye(2), **EXACT)


@pytest.mark.parametrize("seed", SEEDS)
def test_flipped_twice_a_picture_and_its_label_are_what_they_were(seed):
    random = np.random.default_rng(seed)
    (height, width), _ = sizes_of(random)
    label = random.integers(0, 256, (height, width), np.uint8)
    geometry = Geometry((height, width), (height, width), Draw(True, 0.0, 1.0))
    once = geometry.take_nearest(Image.fromarray(label))
    np.testing.assert_array_equal(once, label[:, ::-1])
    np.testing.assert_array_equal(geometry.take_nearest(Image.fromarray(once)), label)
    pixels = torch.from_numpy(random.random((3, height, width), np.float32))
    torch.testing.assert_close(geometry.interpolate(pixels), pixels.flip(-1), **FLOAT32)
    torch.testing.assert_close(geometry.interpolate(geometry.interpolate(pixels)), pixels, **FLOAT32)


@pytest.mark.parametrize("seed", SEEDS)
def test_turned_and_back_a_smooth_picture_is_what_it_was(seed):
    random = np.random.default_rng(seed)
    draw = draw_of(random)
    back = Draw(draw.flip, draw.degrees if draw.flip else -draw.degrees, 1 / draw.scale)
    y, x = (torch.arange(side) / side - 0.5 for side in (60, 80))
    bump = torch.exp(-150 * ((y[:, None] - 0.1) ** 2 + (x[None] + 0.08) ** 2))[None]  # nothing of it leaves the canvas
    there, again = (Geometry((60, 80), (60, 80), each) for each in (draw, back))
    moved = there.interpolate(bump)
    assert (moved - bump).abs().max() > 0.05
    assert (again.interpolate(moved) - bump).abs().max() < 0.02  # of 1; a pixel aside is worth 0.15


@pytest.mark.parametrize("seed", SEEDS)
def test_a_label_holds_no_value_that_was_not_there(seed):
    random = np.random.default_rng(seed)
    size, image_size = sizes_of(random)
    label = random.choice(np.array([3, 7, 255], np.uint8), size)
    for draw, border in [(None, set()), (draw_of(random), {0})]:
        found = Geometry(size, image_size, draw).take_nearest(Image.fromarray(label))
        assert found.shape == image_size
        assert set(found.flat) <= set(label.flat) | border


@pytest.mark.parametrize("seed", SEEDS)
def test_a_constant_picture_stays_constant_where_nothing_is_exposed(seed):
    random = np.random.default_rng(seed)
    size, image_size = sizes_of(random)
    draw = Draw(bool(seed % 2), 0.0, random.uniform(1.6, 2))  # the kernel reaches over two pixels
    size = tuple(side + 12 for side in size)
    found = Geometry(size, image_size, draw).interpolate(torch.full((3, *size), 100.0))
    torch.testing.assert_close(found, torch.full((3, *image_size), 100.0), rtol=1e-5, atol=0)


# Normals


def vectors(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("degrees", [0.0, 13.0, -20.0, 90.0, 180.0, 400.0])
def test_normals_turned_and_back_are_what_they_were(degrees):
    normals = vectors(2, 3, 4, 5)
    torch.testing.assert_close(rotate_normals(rotate_normals(normals, degrees), -degrees), normals, **EXACT)


@pytest.mark.parametrize(("first", "second"), [(7.0, 11.0), (-20.0, 20.0), (170.0, 190.0)])
def test_turns_of_normals_add_up(first, second):
    normals = vectors(3, 4, 5)
    expected = rotate_normals(normals, first + second)
    torch.testing.assert_close(rotate_normals(rotate_normals(normals, first), second), expected, **EXACT)


@pytest.mark.parametrize("degrees", [17.0, -90.0])
def test_turns_and_mirrors_keep_lengths_angles_and_what_faces_the_viewer(degrees):
    first, second = vectors(2, 3, 4, 5)
    for move in (flip_normals, lambda normals: rotate_normals(normals, degrees)):
        torch.testing.assert_close((move(first) * move(second)).sum(0), (first * second).sum(0), **EXACT)
        torch.testing.assert_close(move(first)[2], first[2], **EXACT)


@pytest.mark.parametrize("degrees", [17.0, -90.0])
def test_behind_a_mirror_normals_turn_the_other_way(degrees):
    normals = vectors(3, 4, 5)
    expected = rotate_normals(flip_normals(normals), -degrees)
    torch.testing.assert_close(flip_normals(rotate_normals(normals, degrees)), expected, **EXACT)


@pytest.mark.parametrize("seed", SEEDS)
def test_normals_are_unit_vectors_or_zero_whatever_the_draw(seed):
    random = np.random.default_rng(seed)
    size, image_size = sizes_of(random)
    normals = random.integers(0, 256, (*size, 3), np.uint8)
    normals[random.random(size) < 0.3] = 0
    found = transform_normals(normals, image_size, draw_of(random))
    length = found.double().norm(dim=0)
    assert found.shape == (3, *image_size)
    torch.testing.assert_close(length, (length > 0).double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_normals_of_a_plane_turn_with_the_picture(seed):
    """(nx, ny), right and down on screen, moves like an offset from the centre."""
    random = np.random.default_rng(seed)
    draw = draw_of(random)
    normal = random.normal(size=3) + np.array([0, 0, 3])
    normal /= np.linalg.norm(normal)
    encoded = np.broadcast_to(np.round((normal + 1) * 127.5), (20, 30, 3)).astype(np.uint8)
    found = transform_normals(np.ascontiguousarray(encoded), (20, 30), draw)[:, 10, 15].double()
    # `to_source` takes offsets (right, down) of the result to those of the original, its inverse the other way.
    to_result = np.linalg.inv(matrix_of(draw)) / draw.scale
    right, down = to_result @ normal[:2]
    assert found @ torch.tensor([right, down, normal[2]]) > math.cos(BYTES)
