# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys
from hashlib import sha256

import numpy as np
import pytest
from datasets import Features, Image, Value

from peft_polyhistor import PASCAL_TASKS
from peft_polyhistor.data import scenes as renderer
from peft_polyhistor.data.scenes import render_scene
from peft_polyhistor.data.scenes.solids import BALL, BOX, CAPSULE, FRUSTUM, RING, DepthBuffer, Solid, rotation
from peft_polyhistor.data.synthetic import synthetic_scenes
from peft_polyhistor.tasks.classes import VOC_CLASSES


PERSON = VOC_CLASSES.index("person")
QUANTISATION = 0.5 / 127.5 * 3**0.5  # largest error of the length of a normal whose components are rounded


@pytest.fixture(scope="module")
def scenes():
    return [render_scene(3, index, 64) for index in range(120)]


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_scenes_depend_on_seed_and_index_alone(scenes):
    assert_same(render_scene(3, 5, 64), scenes[5])
    assert not np.array_equal(render_scene(4, 5, 64)["image"], scenes[5]["image"])
    assert len({scene["image"].tobytes() for scene in scenes}) == len(scenes)


@pytest.mark.slow  # the start of a process
def test_another_process_renders_the_same(scenes):
    code = (
        "from hashlib import sha256; from peft_polyhistor.data.scenes import render_scene; "
        "print(sha256(b''.join(a.tobytes() for a in render_scene(3, 2, 64).values())).hexdigest())"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout
    assert output.strip() == sha256(b"".join(array.tobytes() for array in scenes[2].values())).hexdigest()


def test_shapes_types_and_values(scenes):
    for scene in scenes:
        for name, shape in {"image": (64, 64, 3), "normals": (64, 64, 3)}.items():
            assert (scene[name].shape, scene[name].dtype) == (shape, np.uint8)
        for name, allowed in {"semseg": [*range(21), 255], "human_parts": range(7), "saliency": (0, 255)}.items():
            assert (scene[name].shape, scene[name].dtype) == ((64, 64), np.uint8)
            assert np.isin(scene[name], list(allowed)).all()


def test_labels_agree_with_one_another(scenes):
    for scene in scenes:
        semseg = scene["semseg"]
        assert np.isin(semseg[scene["human_parts"] > 0], [PERSON, 255]).all()
        assert (scene["human_parts"][semseg == PERSON] > 0).all()
        assert (semseg[scene["saliency"] > 0] > 0).all()
        assert scene["normals"][semseg % 255 > 0].any(axis=-1).all()


def test_normals_are_unit_vectors_towards_the_viewer(scenes):
    for scene in scenes:
        normals = scene["normals"][scene["normals"].any(axis=-1)] / 127.5 - 1
        np.testing.assert_allclose(np.linalg.norm(normals, axis=-1), 1, atol=QUANTISATION)
        on_object = scene["normals"][scene["semseg"] % 255 > 0] / 127.5 - 1
        assert (on_object[:, 2] > -0.02).all()  # rounding of the colour, and float32 at silhouettes


def test_every_class_and_part_occurs(scenes):
    seen = np.unique([scene["semseg"] for scene in scenes])
    assert seen.tolist() == [*range(21), 255]
    assert np.unique([scene["human_parts"] for scene in scenes]).tolist() == list(range(7))
    with_person = np.mean([(scene["semseg"] == PERSON).any() for scene in scenes])
    salient = np.mean([scene["saliency"].any() for scene in scenes])
    assert 0.4 < with_person < 0.7
    assert 0.7 < salient < 1


@pytest.mark.parametrize("size", [(48, 80), (80, 48)])
def test_sides_may_differ(size):
    scene = render_scene(0, 1, size)
    assert all(array.shape[:2] == size for array in scene.values())


def test_size_does_not_change_what_is_seen():
    small, large = render_scene(0, 4, 64)["semseg"], render_scene(0, 4, 128)["semseg"]
    agree = [np.mean(small == large[row::2, column::2]) for row in (0, 1) for column in (0, 1)]
    assert min(agree) > 0.9  # all but contours


def march(solid, x, y):
    """Depth of the first point of a solid on the ray through (x, y), by small steps; NaN if there is none."""
    z = np.linspace(1.2, -0.8, 4001)
    p = np.einsum("ij,nj->ni", solid.matrix, np.stack([0 * z + x, 0 * z + y, z], axis=1) - solid.centre)
    round_, height = np.hypot(p[:, 0], p[:, 2]), np.abs(p[:, 1])
    inside = {
        BALL: np.linalg.norm(p, axis=1) <= 1,
        BOX: np.abs(p).max(axis=1) <= 1,
        FRUSTUM: (height <= 1) & (round_ <= (1 + solid.form) / 2 + (solid.form - 1) / 2 * p[:, 1]),
        CAPSULE: np.hypot(round_, np.maximum(height - solid.form, 0)) <= 1,
        RING: (height <= 1) & (round_ <= 1) & (round_ >= solid.form),
    }[solid.shape]
    return z[inside][0] if inside.any() else np.nan


# A ring is drawn without its inner wall, so it is seen nearly from the front here.
@pytest.mark.parametrize(
    ("shape", "form", "turn"),
    [
        (BALL, 1.0, (20, 30, 40)),
        (BOX, 1.0, (35, 30, 20)),
        (FRUSTUM, 0.3, (20, 0, 30)),
        (FRUSTUM, 0.0, (80, 10, 0)),
        (FRUSTUM, 2.0, (80, 10, 0)),
        (FRUSTUM, 0.2, (-75, 10, 0)),
        (CAPSULE, 1.5, (50, 20, 30)),
        (RING, 0.5, (90, 0, 0)),
    ],
)
def test_depth_is_that_of_the_first_point_inside(shape, form, turn):
    solid = Solid(shape, np.array([0.1, -0.05, 0.2]), rotation(*turn), np.array([0.35, 0.3, 0.4]), form)
    x, y = np.linspace(-0.6, 0.7, 17, dtype=np.float32), np.linspace(-0.6, 0.5, 15, dtype=np.float32)
    buffer = DepthBuffer([solid], x, y)
    found = np.where(buffer.index == 0, buffer.depth, np.nan)
    expected = np.array([[march(solid, column, row) for column in x] for row in y])
    np.testing.assert_allclose(found, expected, atol=1.5e-3)  # steps of the march are 5e-4
    assert np.isfinite(found).sum() > 30


@pytest.mark.parametrize(("shape", "form"), [(BALL, 1.0), (BOX, 1.0), (FRUSTUM, 0.4), (CAPSULE, 1.5), (RING, 0.5)])
def test_normals_are_the_slope_of_the_depth(shape, form):
    axis = np.linspace(-0.5, 0.5, 301, dtype=np.float64)
    buffer = DepthBuffer(
        [Solid(shape, np.zeros(3), rotation(60, 20, 30), np.array([0.2, 0.15, 0.25]), form)], axis, axis
    )
    seen = buffer.index >= 0
    normals = np.zeros((*seen.shape, 3))
    normals[seen] = buffer.surface()[2]
    depth = np.where(seen, buffer.depth, np.nan).astype(float)
    down, right = np.gradient(depth, axis[1] - axis[0])
    slope = -normals[..., :2] / np.maximum(normals[..., 2:], 0.3)
    smooth = seen & (normals[..., 2] > 0.4)
    error = np.abs(slope - np.stack([right, down], axis=-1)).max(axis=-1)[smooth]
    assert np.nanmedian(error) < 2e-3
    assert np.nanmean(error < 0.05) > 0.9  # all but edges, where the depth has a kink


def test_dataset_holds_the_rendered_arrays(tmp_path):
    dataset = synthetic_scenes(split="val", count=3, image_size=(32, 48), seed=7, cache_dir=str(tmp_path))
    pictures = {name: Image() for name in ("image", *PASCAL_TASKS)}
    assert dataset.features == Features({"image_id": Value("string"), **pictures})
    for number, row in enumerate(dataset):
        scene = render_scene(7, 2 * number + 1, (32, 48))
        for name in pictures:
            assert (row[name].format, row[name].mode) == ("PNG", "RGB" if name in ("image", "normals") else "L")
            np.testing.assert_array_equal(np.asarray(row[name]), scene[name])


def test_splits_share_no_scene_and_grow_without_change(tmp_path):
    options = {"tasks": ("saliency",), "image_size": 16, "cache_dir": str(tmp_path)}
    train = synthetic_scenes(split="train", count=6, **options)
    longer = synthetic_scenes(split="train", count=9, num_proc=2, **options)
    val = synthetic_scenes(split="val", count=6, **options)
    assert train.column_names == ["image_id", "image", "saliency"]
    assert longer[:6]["image_id"] == train[:]["image_id"]
    assert [image.tobytes() for image in longer[:6]["image"]] == [image.tobytes() for image in train["image"]]
    ids, pixels = (
        [*longer["image_id"], *val["image_id"]],
        {image.tobytes() for split in (longer, val) for image in split["image"]},
    )
    assert len(set(ids)) == len(pixels) == 15


def test_prepared_scenes_are_opened_from_the_cache(tmp_path, monkeypatch):
    options = {"split": "val", "count": 2, "image_size": 16, "cache_dir": str(tmp_path)}
    first = synthetic_scenes(**options)
    monkeypatch.setattr(renderer, "render_scene", None)
    again = synthetic_scenes(**options)
    assert first.cache_files == again.cache_files
    monkeypatch.setattr(renderer, "RENDERER_VERSION", -1)
    with pytest.raises(Exception, match="generating the dataset"):
        synthetic_scenes(**options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tasks": ("semseg", "depth")}, "depth"),
        ({"tasks": ()}, "No task"),
        ({"split": "test"}, "'test'.*train.*val"),
        ({"count": 0}, "`count` is 0"),
        ({"count": 2.5}, "`count` is 2.5"),
        ({"seed": -1}, "`seed` is -1"),
        ({"num_proc": 0}, "`num_proc` is 0"),
        ({"image_size": 8}, "`image_size` is .8, 8"),
        ({"image_size": (64, 64, 3)}, "`image_size`"),
        ({"image_size": "128"}, "`image_size`"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        synthetic_scenes(**arguments)
