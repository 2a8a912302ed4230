# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The training recipe, for a few steps on a few scenes."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from peft_polyhistor.data.synthetic import synthetic_scenes


RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture
def recipe(monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPES))
    import train_pascal

    yield train_pascal
    for name in ("train_pascal", "settings"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="session")
def parquet_scenes(tmp_path_factory):
    """A folder of parquet files: 10 scenes to train on, 3 to validate."""
    folder = tmp_path_factory.mktemp("scenes")
    for split, count in (("train", 10), ("val", 3)):
        data = synthetic_scenes(split=split, count=count, image_size=64, cache_dir=str(folder / "cache"))
        data.to_parquet(folder / f"{split}.parquet")
    return folder


def settings_of(recipe, folder, output_dir, *more):
    arguments = (
        f"--data {folder} --image_size 64 --decoder_width 8 --batch_size 2 --workers 0 --steps 6 --eval_every 3"
    )
    return recipe.parse_settings([*arguments.split(), "--output_dir", str(output_dir), *more], "")


def test_trains_scores_saves_and_draws(recipe, parquet_scenes, tmp_path, capsys):
    results = recipe.main(settings_of(recipe, parquet_scenes, tmp_path, "--methods", "decoders", "polyhistor_lite"))
    assert [result["method"] for result in results] == ["decoders", "polyhistor_lite"]
    assert results[0]["parameters"]["encoder"] == 0
    assert all(set(result["scores"]) == {"semseg", "human_parts", "saliency", "normals"} for result in results)
    folder = tmp_path / "polyhistor_lite"
    assert json.loads((folder / "results.json").read_text()) == results[1]
    assert (folder / "predictions.png").stat().st_size > 10_000
    assert {path.name for path in (folder / "best").iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".new", ".old")]
    assert "change against" not in capsys.readouterr().err


def test_resumed_run_ends_like_one_that_was_not_stopped(recipe, parquet_scenes, tmp_path):
    whole = settings_of(recipe, parquet_scenes, tmp_path / "whole")
    recipe.train("polyhistor_lite", whole)
    cut = settings_of(recipe, parquet_scenes, tmp_path / "cut", "--resume", "True")
    save, calls = recipe.save, []

    class StopError(Exception):
        pass

    def save_and_stop(*arguments):
        save(*arguments)
        calls.append(1)
        if len(calls) == 1:
            raise StopError

    recipe.save = save_and_stop
    with pytest.raises(StopError):
        recipe.train("polyhistor_lite", cut)
    recipe.train("polyhistor_lite", cut)
    last = "polyhistor_lite/last/adapter_model.safetensors"
    weights = [load_file(tmp_path / run / last) for run in ("whole", "cut")]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=0, atol=0)


def test_settings_come_from_yaml_and_arguments_win(recipe, tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("steps: 7\nimage_size: 96\n")
    settings = recipe.parse_settings([str(file), "--steps", "9"], "")
    assert (settings.steps, settings.image_size, settings.learning_rate) == (9, 96, 1e-4)
    for config in (RECIPES / "configs").glob("*.yaml"):
        recipe.parse_settings([str(config)], "")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("colour: red", r"unknown settings \['colour'\]; known are"),
        ("methods: [lora2]", r"`methods` must be among \['decoders', 'full'"),
        ("tasks: [depth]", r"Unknown tasks \['depth'\]"),
        ("batch_size: 0", "`batch_size` must be at least 1, got 0"),
        ("epochs: 0", "Nothing to train"),
        ("optimizer: lion", "`optimizer` must be among"),
    ],
)
def test_bad_settings_say_what_is_allowed(recipe, tmp_path, text, message):
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        recipe.parse_settings([str(file)], "")
