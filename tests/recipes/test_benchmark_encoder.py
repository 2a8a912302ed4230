# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Accuracies and probes of frozen encoders, on synthetic features and on small images."""

import numpy as np
import pytest
import timm
import torch
from datasets import Dataset
from PIL import Image
from torch.nn import functional as F


@pytest.fixture
def recipe(load_recipe):
    return load_recipe("benchmarks.encoder")


def clouds(count, seed):
    """Points around three corners of a cube, far apart for their spread, and the numbers of their corners."""
    labels = torch.arange(count) % 3
    return torch.eye(3)[labels] + 0.05 * torch.randn(count, 3, generator=torch.Generator().manual_seed(seed)), labels


def test_clouds_are_told_apart(recipe):
    train, val = clouds(90, 0), clouds(30, 1)
    assert recipe.neighbour_accuracy(train, val) == recipe.linear_accuracy(train, val) == 100


def test_wrong_labels_count_against_the_features(recipe):
    train, (features, labels) = clouds(90, 0), clouds(30, 1)
    val = features, torch.where(torch.arange(30) < 6, (labels + 1) % 3, labels)
    assert recipe.neighbour_accuracy(train, val) == recipe.linear_accuracy(train, val) == pytest.approx(80)


def test_near_neighbours_outvote_many(recipe):
    train = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]), torch.tensor([0, 1, 1])
    assert recipe.neighbour_accuracy(train, (torch.tensor([[1.0, 0.5]]), torch.tensor([0]))) == 100


@pytest.fixture
def teacher(tmp_path):
    """The timm name of a small convolutional network with random weights."""
    folder = tmp_path / "teacher"
    timm.models.save_for_hf(timm.create_model("lcnet_035"), folder, safe_serialization=True)
    return f"local-dir:{folder}"


def test_encoders_of_both_kinds(recipe, teacher, tmp_path):
    for split, count in (("train", 4), ("val", 2)):
        images = [Image.fromarray(np.full((40, 36, 3), 200 * (i % 2), dtype=np.uint8)) for i in range(count)]
        rows = Dataset.from_dict({"image": images, "label": [i % 2 for i in range(count)]})
        rows.to_parquet(tmp_path / f"{split}.parquet")
    names = ["swin-mini", teacher]
    words = ["--data", str(tmp_path), "--image_size", "64", "--encoders", *names]
    results = recipe.main(recipe.parse_arguments(words))
    assert results[names[0]] == results[names[1]] == {"neighbours": 100, "linear": 100}


def test_missing_split(recipe, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"train\*\.parquet and val\*\.parquet are needed"):
        recipe.main(recipe.parse_arguments(["--data", str(tmp_path), "--encoders", "swin-mini"]))


def uniform_images(count, classes, seed):
    """Maps `(count, 21, 3, 3)` that hold the class of each image in one channel, and its labels `(count, 12, 12)`."""
    labels = torch.arange(count) % classes
    noise = 0.1 * torch.randn(count, 21, 3, 3, generator=torch.Generator().manual_seed(seed))
    return (noise + F.one_hot(labels, 21)[..., None, None]).half(), labels[:, None, None].repeat(1, 12, 12)


def test_probe_learns_the_classes_and_ignores_unlabelled_pixels(recipe):
    (maps, labels), val = uniform_images(96, 21, 0), uniform_images(42, 21, 1)
    labels[:, :6] = 255
    assert recipe.probe((maps, labels), val, epochs=100) > 99


def test_absent_classes_count_zero_in_the_probe(recipe):
    found = recipe.probe(uniform_images(96, 7, 0), uniform_images(42, 7, 1), epochs=100)
    assert 25 < found <= 100 * 7 / 21


def test_probe_of_encoders_of_both_kinds(recipe, teacher, parquet_scenes, monkeypatch):
    monkeypatch.setattr(recipe, "BATCH", 2)
    maps, labels = recipe.read_probe_split(recipe.FrozenEncoder("swin-mini"), parquet_scenes, "val")
    assert maps.shape[2:] == (12, 12) and labels.shape == (len(maps), 48, 48) and labels.dtype == torch.int64
    words = ["--probe", str(parquet_scenes), "--encoders", "swin-mini", teacher]
    for scores in recipe.main(recipe.parse_arguments(words)).values():
        assert scores.keys() == {"probe"} and 0 <= scores["probe"] <= 100


def test_probe_refuses_missing_strides_and_few_images(recipe, parquet_scenes):
    with pytest.raises(ValueError, match=r"needs maps of the strides \(8, 16, 32\); the encoder has 1 of them"):
        recipe.read_probe_split(lambda images: [images[..., ::16, ::16]], parquet_scenes, "val")
    with pytest.raises(ValueError, match="trains on batches of 32 images, got 31"):
        recipe.probe(uniform_images(31, 21, 0), uniform_images(31, 21, 0))


def test_something_to_measure_is_needed(recipe, capsys):
    with pytest.raises(SystemExit):
        recipe.parse_arguments(["--encoders", "swin-mini"])
    assert "Give --data, --probe, or both" in capsys.readouterr().err
