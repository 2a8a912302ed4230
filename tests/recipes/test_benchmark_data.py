# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The benchmark of the data, and that both of its paths do the same."""

import json

import pytest

from peft_polyhistor.data import DENSE_TASKS, JointTransform, synthetic_scenes
from peft_polyhistor.data.geometry import Draw


@pytest.fixture
def recipe(load_recipe):
    return load_recipe("data")


def test_measures_both_paths_and_writes_what_it_prints(recipe, parquet_scenes, tmp_path, capsys):
    arguments = f"--data {parquet_scenes} --image_size 64 --images 6 --batch_size 2 --rounds 2 --output_dir {tmp_path}"
    results = recipe.main(arguments.split())
    assert json.loads((tmp_path / "results.json").read_text()) == results
    for name in ("library", "float PIL"):
        speed = results["images_per_second_and_core"][name]
        assert 0 < speed["lowest"] <= speed["median"] <= speed["highest"]
        assert results["milliseconds_per_image"][name].keys() == set(recipe.PARTS)
        # float32 images, normals and saliency, and two maps of int64, by pixel
        assert results["bytes_per_image"][name] == 64 * 64 * (4 * 7 + 8 * 2)
    assert f"library / float PIL: {results['library_over_float_pil']['median']}" in capsys.readouterr().out
    with pytest.raises(ValueError, match="has 10 images to train on; give --images of at most that"):
        recipe.load(str(parquet_scenes), 11)


# Scales above 1: below, float PIL lacks the corners that its turn cut off.
@pytest.mark.parametrize("draw", [Draw(False, 17.0, 1.1), Draw(True, -12.0, 1.2)])
def test_both_paths_do_the_same(recipe, draw, tmp_path):
    row = synthetic_scenes(count=1, image_size=(72, 96), cache_dir=str(tmp_path))[0]
    transform = JointTransform(128, train=True)
    transform._draw = lambda image_id: draw
    ours, theirs = recipe.run_library(row, transform), recipe.float_pil(row, 128, draw)
    assert ours.keys() - {"image_id"} == theirs.keys()
    for task in DENSE_TASKS:
        assert ours[task].dtype == theirs[task].dtype and ours[task].shape == theirs[task].shape
    # Theirs takes a neighbour, or blurs, with every operation.
    assert (ours["pixel_values"] - theirs["pixel_values"]).abs().mean() < 0.1
    for task in ("semseg", "human_parts", "saliency"):
        assert (ours[task] == theirs[task]).float().mean() > 0.93
    both = ours["normals"].any(dim=0) & theirs["normals"].any(dim=0)
    assert (ours["normals"] * theirs["normals"]).sum(dim=0)[both].mean() > 0.98


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rounds", "0"], "--rounds: invalid positive value: '0'"),
        (["--images", "5", "--batch_size", "3"], "must fill two batches of 3"),
    ],
)
def test_bad_options(recipe, arguments, message, capsys):
    with pytest.raises(SystemExit):
        recipe.main(arguments)
    assert message in capsys.readouterr().err
