# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The accuracies of frozen features, on clouds of points and on pictures of two colours."""

import numpy as np
import pytest
import timm
import torch
from datasets import Dataset
from PIL import Image


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


def test_encoders_of_both_kinds(recipe, tmp_path):
    for split, count in (("train", 4), ("val", 2)):
        pictures = [Image.fromarray(np.full((40, 36, 3), 200 * (i % 2), dtype=np.uint8)) for i in range(count)]
        rows = Dataset.from_dict({"image": pictures, "label": [i % 2 for i in range(count)]})
        rows.to_parquet(tmp_path / f"{split}.parquet")
    teacher = tmp_path / "teacher"
    timm.models.save_for_hf(timm.create_model("lcnet_035"), teacher, safe_serialization=True)
    names = ["swin-micro", f"local-dir:{teacher}"]
    words = ["--data", str(tmp_path), "--image-size", "64", "--encoders", *names]
    results = recipe.main(recipe.parse_arguments(words))
    assert results[names[0]] == results[names[1]] == {"neighbours": 100, "linear": 100}


def test_missing_split(recipe, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"train\*\.parquet and val\*\.parquet are needed"):
        recipe.main(recipe.parse_arguments(["--data", str(tmp_path), "--encoders", "swin-micro"]))
