# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
import copy
import math
import pickle

import numpy as np
import pytest
import torch
from joint_transforms import transform_image
from PIL import Image
from torch.utils.data import DataLoader
from unit_colors import random_unit_colors

from peft_polyhistor import TASKS, register_task, segmentation
from peft_polyhistor.data import DenseFolder, JointTransform, collate, load_dense_dataset
from peft_polyhistor.data.geometry import Draw
from peft_polyhistor.models.image_processor import IMAGENET_MEAN, IMAGENET_STD, normalize_image_size
from peft_polyhistor.tasks.kinds.vectors import flip_normals, rotate_normals


# float32 arithmetic on values of about 1.
TOLERANCE = 1e-5
WIDTH, HEIGHT = 60, 44


def transform(batch, image_size=(HEIGHT, WIDTH), draw=None):
    return transform_image(batch, image_size, draw)


def to_bytes(pixel_values):
    """Pixel values back to 0..255, `(height, width, 3)`."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return ((pixel_values * std + mean) * 255).permute(1, 2, 0)


def noise(*shape, low=0, high=256):
    return np.random.default_rng(0).integers(low, high, shape, np.uint8)


def scene(height=HEIGHT, width=WIDTH):
    """A bright ellipse on black, off the centre, that all labels mark; normals are random there."""
    y, x = np.mgrid[:height, :width]
    inside = ((x - 0.6 * width) / 14) ** 2 + ((y - 0.4 * height) / 8) ** 2 < 1
    mask = Image.fromarray(inside.astype(np.uint8))
    return {
        "image": Image.fromarray(np.repeat(inside[..., None] * np.uint8(200), 3, axis=2)),
        "semseg": mask,
        "human_parts": mask,
        "saliency": Image.fromarray(inside * np.uint8(255)),
        "normals": Image.fromarray(random_unit_colors(height, width) * inside[..., None]),
    }


def test_evaluation_keeps_stored_values_at_the_pictures_own_size():
    image, semseg = noise(HEIGHT, WIDTH, 3), noise(HEIGHT, WIDTH, high=21)
    gray = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.uint8)
    normals = random_unit_colors(HEIGHT, WIDTH)
    normals[5:9, 3:30] = 0
    batch = {"image": image, "semseg": semseg, "human_parts": semseg % 7, "saliency": gray, "normals": normals}
    result = transform({name: Image.fromarray(values) for name, values in batch.items()})
    np.testing.assert_allclose(to_bytes(result["pixel_values"]), image, atol=1e-3)
    assert result["semseg"].dtype == result["human_parts"].dtype == torch.int64
    np.testing.assert_array_equal(result["semseg"], semseg)
    np.testing.assert_array_equal(result["human_parts"], semseg % 7)
    np.testing.assert_array_equal(result["saliency"], [(gray / 255 > 0.5).astype(np.float32)])
    vectors = normals / 127.5 - 1
    expected = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True) * normals.any(axis=-1, keepdims=True)
    np.testing.assert_allclose(result["normals"].permute(1, 2, 0), expected, atol=TOLERANCE)


def test_palette_indices_are_the_classes():
    semseg = Image.fromarray(noise(HEIGHT, WIDTH, high=21))
    expected = np.array(semseg)
    semseg.putpalette(noise(768).tobytes())
    assert semseg.mode == "P"
    result = transform({"image": Image.new("RGB", semseg.size), "semseg": semseg}, draw=Draw(False, 0.0, 1.0))
    np.testing.assert_array_equal(result["semseg"], expected)


def test_results_have_the_size_asked_for():
    result = transform(scene(), (32, 40))
    shapes = {name: tuple(values.shape) for name, values in result.items() if name != "image_id"}
    maps, image = (32, 40), (3, 32, 40)
    assert shapes == {
        "pixel_values": image,
        "semseg": maps,
        "human_parts": maps,
        "saliency": (1, *maps),
        "normals": image,
    }
    assert transform(scene(), 16)["pixel_values"].shape == (3, 16, 16)


@pytest.mark.parametrize("draw", [Draw(False, 17.0, 0.8), Draw(True, -12.0, 1.2), None])
@pytest.mark.parametrize("image_size", [(HEIGHT, WIDTH), (30, 77)])
def test_labels_stay_on_the_picture(draw, image_size):
    result = transform(scene(), image_size, draw)
    bright = to_bytes(result["pixel_values"])[..., 0] > 100
    for task in ("semseg", "human_parts"):
        # Only pixels of the outline may round to another side.
        assert ((result[task] > 0) != bright).float().mean() < 0.02
        assert torch.equal(result[task] > 0, result["saliency"][0] > 0)
    assert torch.equal(result["normals"].any(dim=0), result["semseg"] > 0)
    assert bright.any()


def test_geometry_follows_its_definition():
    """Every label pixel against the formula: flip, then turn counter-clockwise and enlarge about the centre."""
    semseg = noise(11, 17, high=21)
    draw = Draw(True, 20.0, 0.9)
    batch = {"image": Image.new("RGB", (17, 11)), "semseg": Image.fromarray(semseg)}
    found = transform(batch, (11, 17), draw)["semseg"]
    flipped, cos, sin = semseg[:, ::-1], math.cos(math.radians(20)), math.sin(math.radians(20))
    for row, column in np.ndindex(11, 17):
        right, down = (column + 0.5 - 8.5) / 0.9, (row + 0.5 - 5.5) / 0.9
        x, y = math.floor(right * cos - down * sin + 8.5), math.floor(right * sin + down * cos + 5.5)
        assert found[row, column] == (flipped[y, x] if 0 <= x < 17 and 0 <= y < 11 else 0)


def test_positive_degrees_turn_counter_clockwise_on_screen():
    image = np.zeros((41, 41, 3), np.uint8)
    image[19:22, 34:37] = 255  # right of the centre
    result = to_bytes(transform({"image": Image.fromarray(image)}, 41, Draw(False, 20.0, 1.0))["pixel_values"])
    row, column = divmod(int(result[..., 0].argmax()), 41)
    assert (row, column) == pytest.approx((20 - 15 * math.sin(math.radians(20)), 34), abs=1.5)


def test_exposed_border():
    labels = {task: Image.new("L", (WIDTH, HEIGHT), 3) for task in ("semseg", "human_parts")}
    batch = labels | {
        "image": Image.new("RGB", (WIDTH, HEIGHT), "white"),
        "saliency": Image.new("L", (WIDTH, HEIGHT), 255),
        "normals": Image.new("RGB", (WIDTH, HEIGHT), (128, 128, 255)),
    }
    result = transform(batch, draw=Draw(False, 10.0, 0.75))
    corner, centre = (..., 0, 0), (..., HEIGHT // 2, WIDTH // 2)
    assert to_bytes(result["pixel_values"])[0, 0].abs().max() < 1e-3
    for task in ("semseg", "human_parts", "saliency"):
        assert result[task][corner] == 0 and result[task][centre] == (1 if task == "saliency" else 3)
    assert not result["normals"][corner].any()
    assert result["normals"][centre][2] > 0.99


def test_flip_normals_is_its_own_inverse():
    normals = torch.randn(2, 3, 5, 4)
    assert torch.equal(flip_normals(normals)[:, 0], -normals[:, 0])
    assert torch.equal(flip_normals(flip_normals(normals)), normals)


@pytest.mark.parametrize("degrees", [-20.0, 7.0, 90.0])
def test_rotate_normals_follows_its_formula(degrees):
    normals = torch.randn(3, 4, 5, dtype=torch.float64)
    found = rotate_normals(normals, degrees)
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    for row, column in np.ndindex(4, 5):
        x, y, z = normals[:, row, column].tolist()
        assert found[:, row, column].tolist() == pytest.approx([x * cos + y * sin, -x * sin + y * cos, z])


def test_flip_is_the_mirrored_picture():
    batch = scene()
    mirrored = {name: picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for name, picture in batch.items()}
    found = transform(batch, draw=Draw(True, 13.0, 1.1))
    expected = transform(mirrored, draw=Draw(False, 13.0, 1.1))
    for task in ("semseg", "human_parts", "saliency"):
        assert torch.equal(found[task], expected[task])
    torch.testing.assert_close(found["pixel_values"], expected["pixel_values"], atol=TOLERANCE, rtol=0)
    # The mirror negates x before the turn.
    unturned = flip_normals(rotate_normals(expected["normals"], -13.0))
    torch.testing.assert_close(rotate_normals(unturned, 13.0), found["normals"], atol=1e-4, rtol=0)


def bowl_normals(degrees):
    """Normals of the surface z = -(u^2 + 0.4 v^2 + 0.3 u v) / 90 turned counter-clockwise, by its own gradient."""
    y, x = np.mgrid[:61, :61] - 30.0
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))

    def surface(x, y):
        u, v = x * cos - y * sin, x * sin + y * cos
        return -(u**2 + 0.4 * v**2 + 0.3 * u * v) / 90

    step = 1e-3
    slope_x = (surface(x + step, y) - surface(x - step, y)) / (2 * step)
    slope_y = (surface(x, y + step) - surface(x, y - step)) / (2 * step)
    normals = np.stack([-slope_x, -slope_y, np.ones_like(x)])
    return normals / np.linalg.norm(normals, axis=0)


@pytest.mark.parametrize("degrees", [20.0, -8.0])
def test_normals_turn_with_the_surface_they_belong_to(degrees):
    encoded = np.round((bowl_normals(0) + 1) * 127.5).astype(np.uint8).transpose(1, 2, 0)
    batch = {"image": Image.new("RGB", (61, 61)), "normals": Image.fromarray(encoded)}
    found = transform(batch, 61, Draw(False, degrees, 1.0))["normals"].numpy()
    valid = found.any(axis=0)
    cosine = (found * bowl_normals(degrees)).sum(axis=0)[valid].clip(-1, 1)
    assert 0.8 < valid.mean() < 1
    assert np.linalg.norm(found, axis=0)[valid] == pytest.approx(1, abs=TOLERANCE)
    assert np.degrees(np.arccos(cosine)).mean() < 0.5  # 8 bits cost about 0.2 degrees


def test_pixels_without_a_normal_do_not_bleed():
    """Two flat halves beside a hole: every vector that is left is the flat one."""
    normals = np.full((30, 30, 3), (128, 255, 128), np.uint8)
    normals[:, 12:17] = 0
    batch = {"image": Image.new("RGB", (30, 30)), "normals": Image.fromarray(normals)}
    for size, draw in [(30, Draw(False, 0.0, 1.0)), (47, None), (19, None), (47, Draw(False, 0.0, 0.8))]:
        found = transform(batch, size, draw)["normals"]
        valid = found.any(dim=0)
        assert 0 < valid.float().mean() < 0.9
        torch.testing.assert_close(found[1][valid], torch.ones(int(valid.sum())), atol=1e-4, rtol=0)


def test_a_picture_without_parts_after_the_geometry_is_ignored():
    parts = np.zeros((HEIGHT, WIDTH), np.uint8)
    parts[0, 0] = 1  # leaves the canvas on enlarging
    batch = {"image": Image.new("RGB", (WIDTH, HEIGHT)), "human_parts": Image.fromarray(parts)}
    assert transform(batch)["human_parts"].unique().tolist() == [0, 1]
    assert transform(batch, draw=Draw(False, 0.0, 1.2))["human_parts"].unique().tolist() == [255]
    batch["human_parts"] = Image.new("L", (WIDTH, HEIGHT))
    assert transform(batch)["human_parts"].unique().tolist() == [255]


@pytest.mark.parametrize(
    ("image_size", "draw"), [(61, Draw(False, 9.0, 1.15)), (61, None), (40, Draw(True, 0.0, 1.0))]
)
def test_cubic_overshoot_is_clipped(image_size, draw):
    image = np.zeros((40, 40, 3), np.uint8)
    image[:, 20:] = 255
    values = to_bytes(transform({"image": Image.fromarray(image)}, image_size, draw)["pixel_values"])
    assert values.min() > -1e-3 and values.max() < 255 + 1e-3
    # A wrapped value would be bright amid the black or black amid the white.
    middle = values[image_size // 2, image_size // 4 : -image_size // 4, 0]
    steps = middle.diff() * (-1 if draw is not None and draw.flip else 1)
    assert steps.min() > -1e-3


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGBA"])
def test_any_picture_becomes_rgb(mode):
    image = Image.fromarray(noise(HEIGHT, WIDTH, 3)).convert(mode)
    found = to_bytes(transform({"image": image})["pixel_values"])
    np.testing.assert_allclose(found, np.array(image.convert("RGB")), atol=1e-3)


def test_draws_have_the_protocols_ranges():
    joint = JointTransform(8, train=True)
    draws = [joint._draw(f"2008_{index:06d}") for index in range(2000)]
    degrees, scales = [draw.degrees for draw in draws], [draw.scale for draw in draws]
    assert -20 <= min(degrees) < -19.5 and 19.5 < max(degrees) < 20
    assert 0.75 <= min(scales) < 0.76 and 1.24 < max(scales) < 1.25
    assert 0.45 < np.mean([draw.flip for draw in draws]) < 0.55


def test_strength_scales_rotation_and_zoom():
    draws = {s: JointTransform(8, train=True, seed=4, strength=s) for s in (0, 1, 2)}
    for joint in draws.values():
        joint.set_epoch(0)
    none, one, two = (joint._draw("a") for joint in draws.values())
    assert (none.degrees, none.scale) == (0, 1)
    assert none.flip == one.flip == two.flip
    assert two.degrees == pytest.approx(2 * one.degrees) and two.scale - 1 == pytest.approx(2 * (one.scale - 1))


def test_without_strength_images_are_flipped_or_left(dataset):
    size = dataset[0]["image"].size[::-1]
    resized = dataset.with_transform(JointTransform(size, train=False))[0]
    flipped = {}
    for seed in range(8):
        joint = JointTransform(size, train=True, seed=seed, strength=0)
        joint.set_epoch(0)
        row = dataset.with_transform(joint)[0]
        flip = joint._draw(row["image_id"]).flip
        flipped[flip] = row
        expected = resized["pixel_values"].flip(-1) if flip else resized["pixel_values"]
        torch.testing.assert_close(row["pixel_values"], expected, rtol=0, atol=0.02)  # 8 bits against float32
    assert flipped.keys() == {False, True}
    assert torch.equal(flipped[False]["semseg"], resized["semseg"])


def test_flips_have_a_probability():
    flips = [JointTransform(8, train=True, flip=flip)._draw("a").flip for flip in (0, 0.999) for _ in range(20)]
    assert flips == [False] * 20 + [True] * 20
    with pytest.raises(ValueError, match=r"`flip` must be a probability in \[0, 1\), got 1"):
        JointTransform(8, train=True, flip=1)


def test_draws_depend_on_seed_epoch_and_id():
    def draw(seed=0, epoch=0, image_id="a"):
        joint = JointTransform(8, train=True, seed=seed)
        joint.set_epoch(epoch)
        return joint._draw(image_id)

    assert draw() == draw()
    assert len({draw(), draw(seed=1), draw(epoch=1), draw(image_id="b")}) == 4


@pytest.fixture
def dataset(archive, cache):
    return load_dense_dataset(archive, cache_dir=cache)


def test_workers_see_the_epoch_and_agree_with_the_main_process(dataset):
    joint = JointTransform((16, 24), train=True, seed=3)
    # `select` copies the transform: copies follow the epoch too.
    transformed = dataset.with_transform(joint).select(range(3))
    options = {"batch_size": 2, "collate_fn": collate}
    alone = DataLoader(transformed, **options)
    together = DataLoader(transformed, num_workers=2, persistent_workers=True, **options)
    epochs = []
    for epoch in (0, 1, 0):
        joint.set_epoch(epoch)
        expected, found = list(alone), list(together)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        epochs.append(torch.cat([batch["pixel_values"] for batch in found]))
    assert torch.equal(epochs[0], epochs[2]) and not torch.equal(epochs[0], epochs[1])


def test_transform_can_be_pickled_and_copied():
    joint = JointTransform(8, train=True, seed=5)
    joint.set_epoch(2)
    assert pickle.loads(pickle.dumps(joint))._draw("a") == joint._draw("a")
    twin = copy.deepcopy(joint)
    joint.set_epoch(3)
    assert twin._draw("a") == joint._draw("a")


def test_a_process_that_unpickles_knows_the_tasks_of_its_sender(archive):
    """A process that is spawned starts with the tasks of PASCAL-Context alone."""
    lanes = segmentation("lanes", classes=["road", "lane"])
    register_task(lanes)
    for sent in (JointTransform(8, train=False), DenseFolder(archive, {"image": "JPEGImages"})):
        received = pickle.dumps(sent)
        del TASKS["lanes"]
        assert type(pickle.loads(received)) is type(sent)
        assert TASKS["lanes"] == lanes


def test_collate_stacks_by_task(dataset):
    transformed = dataset.with_transform(JointTransform((16, 24), train=False))
    batch = collate([transformed[0], transformed[2]])
    assert batch.keys() == {"pixel_values", "labels"}
    assert batch["pixel_values"].shape == (2, 3, 16, 24)
    shapes = {task: tuple(label.shape) for task, label in batch["labels"].items()}
    maps = (2, 16, 24)
    assert shapes == {
        "semseg": maps,
        "human_parts": maps,
        "saliency": (2, 1, 16, 24),
        "normals": (2, 3, 16, 24),
    }
    assert batch["labels"]["human_parts"][1].unique().tolist() == [255]  # nobody in this picture


def test_only_the_tasks_present_are_transformed(dataset):
    row = dataset.select_columns(["image_id", "image", "saliency"]).with_transform(JointTransform(8, train=True))[0]
    assert row.keys() == {"image_id", "pixel_values", "saliency"}


def test_faulty_batches_are_named():
    image = Image.new("RGB", (6, 4))
    joint = JointTransform(8, train=True)
    with pytest.raises(ValueError, match=r"needs the columns image_id and image, got \['image'\]. Add \['image_id'\]"):
        joint({"image": [image]})
    batch = {"image_id": ["2008_000001"], "image": [image]}
    with pytest.raises(ValueError, match="semseg of 2008_000001: found 4 x 6 pixels, its image has 6 x 4"):
        joint(batch | {"semseg": [Image.new("L", (4, 6))]})
    with pytest.raises(ValueError, match="semseg of 2008_000001: found pixels of mode RGB, allowed is L or P"):
        joint(batch | {"semseg": [image]})
    with pytest.raises(
        ValueError, match=r"normals of 2008_000001: found the type str instead of an image, allowed is RGB"
    ):
        joint(batch | {"normals": ["a.png"]})
    with pytest.raises(
        ValueError, match=r"image of 2008_000001 must be a PIL image of 8 bits .* got the type NoneType"
    ):
        joint(batch | {"image": [None]})
    for mode in ("I;16", "I", "F"):
        with pytest.raises(ValueError, match=rf"image of 2008_000001 must be .* got mode {mode}\. Convert it"):
            joint(batch | {"image": [Image.new(mode, (6, 4))]})
        with pytest.raises(ValueError, match=f"semseg of 2008_000001: found pixels of mode {mode}, allowed is L or P"):
            joint(batch | {"semseg": [Image.new(mode, (6, 4))]})


@pytest.mark.parametrize("image_size", [0, -4, 2.5, True, (4,), (4, 4, 3), (4, 0), "64", None])
def test_nonsense_sizes_are_refused(image_size):
    with pytest.raises(ValueError, match="`image_size` must be a side or"):
        JointTransform(image_size, train=True)


def test_sizes_seeds_and_epochs():
    assert normalize_image_size(5) == (5, 5) and normalize_image_size([3, 5]) == (3, 5)
    with pytest.raises(ValueError, match="`seed` must be 0 or more, got -1"):
        JointTransform(8, train=True, seed=-1)
    with pytest.raises(ValueError, match="`epoch` must be 0 or more, got -1"):
        JointTransform(8, train=True).set_epoch(-1)
    for strength in (-0.1, 4):
        with pytest.raises(ValueError, match=f"`strength` must be from 0 to below 4, got {strength}"):
            JointTransform(8, train=True, strength=strength)
    with pytest.raises(ValueError, match="`strength` must be a finite number, got 'a'"):
        JointTransform(8, train=True, strength="a")


@pytest.mark.parametrize(("task", "value"), [("semseg", 21), ("human_parts", 7)])
def test_a_class_id_out_of_range_names_the_picture(task, value):
    batch = {"image_id": ["p1"], "image": [Image.new("RGB", (8, 8))], task: [Image.new("L", (8, 8), value)]}
    with pytest.raises(
        ValueError, match=f"{task} of p1: found the values {value}, allowed are 0 to {value - 1} and 255"
    ):
        JointTransform(8, train=False)(batch)
