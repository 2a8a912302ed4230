# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The pretraining recipe, for one epoch on a few pictures of noise."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from peft_polyhistor import load_encoder


SIZES = ["--image-size", "64", "--embed-dim", "8", "--window", "2", "--batch-size", "2", "--workers", "0"]


@pytest.fixture
def recipe(load_recipe):
    return load_recipe("pretrain_encoder")


def write_pictures(folder, classes):
    noise = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for label in classes:
            (folder / split / label).mkdir(parents=True)
            for number in range(count):
                pixels = noise.integers(0, 256, (40, 36, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / label / f"{number}.png")
    return folder


def test_pretrained_encoder_can_be_loaded(recipe, tmp_path):
    data, output = write_pictures(tmp_path / "data", ["cat", "dog"]), tmp_path / "encoder"
    results = recipe.main(
        recipe.parse_arguments(["--data", str(data), "--output-dir", str(output), "--epochs", "1", *SIZES])
    )
    assert {path.name for path in output.iterdir()} == {"config.json", "model.safetensors", "training.json"}
    training = json.loads((output / "training.json").read_text())
    assert training["accuracy_percent"] == round(results["accuracy"], 2) and training["epochs_done"] == 1
    assert training["data"] == "data"
    encoder = load_encoder(str(output))
    assert list(encoder.widths) == [8, 16, 32, 64]
    assert all(torch.isfinite(parameter).all() for parameter in encoder.parameters())


def test_bad_data(recipe, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        recipe.load_photographs(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"has the labels \[0\] in split 'train'; at least two are needed"):
        recipe.load_photographs(str(write_pictures(tmp_path / "one", ["cat"])))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "--epochs must be at least 1, got 0"),
        (["--window", "3", "--image-size", "64"], "--image-size must be at least 32 * --window = 96, got 64"),
    ],
)
def test_bad_arguments(recipe, capsys, arguments, message):
    with pytest.raises(SystemExit):
        recipe.parse_arguments(["--data", "x", "--output-dir", "y", *arguments])
    assert message in capsys.readouterr().err
