# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The benchmark of the data, and that both of its paths do the same."""

import json
from dataclasses import replace

import pytest

from peft_polyhistor.data import DENSE_TASKS, JointTransform, synthetic_scenes
from peft_polyhistor.data.geometry import Draw


@pytest.fixture
def recipe(load_recipe):
    return load_recipe("benchmark_data")


def test_measures_both_paths_and_writes_what_it_prints(recipe, parquet_scenes, tmp_path, capsys):
    options = recipe.Options(str(parquet_scenes), 64, pictures=6, batch_size=2, rounds=2, output_dir=str(tmp_path))
    results = recipe.main(options)
    assert json.loads((tmp_path / "results.json").read_text()) == results
    for name in ("library", "float PIL"):
        speed = results["pictures_per_second_and_core"][name]
        assert 0 < speed["lowest"] <= speed["median"] <= speed["highest"]
        assert results["milliseconds_per_picture"][name].keys() == set(recipe.PARTS)
        # float32 pictures, normals and saliency, and two maps of int64, by pixel
        assert results["bytes_per_picture"][name] == 64 * 64 * (4 * 7 + 8 * 2)
    assert f"library / float PIL: {results['library_over_float_pil']['median']}" in capsys.readouterr().out
    with pytest.raises(ValueError, match="has 10 pictures to train on; give --pictures of at most that"):
        recipe.load(replace(options, pictures=11))


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
    ("values", "message"),
    [
        ({"rounds": 0}, "`rounds` must be at least 1, got 0"),
        ({"pictures": 5, "batch_size": 3}, "must fill two batches of 3"),
    ],
)
def test_bad_options(recipe, values, message):
    with pytest.raises(ValueError, match=message):
        recipe.Options(**values)
