# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Images that a finished run leaves."""

from types import SimpleNamespace

import torch
from PIL import Image
from torch import nn

from peft_polyhistor import MultiTaskDenseConfig
from peft_polyhistor.studies.gallery import draw_examples


class Flat(nn.Module):
    """Predicts the same everywhere."""

    def __init__(self):
        super().__init__()
        self.config = MultiTaskDenseConfig(tasks=["normals"])
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, pixel_values, full_resolution):
        return SimpleNamespace(logits={"normals": torch.ones(len(pixel_values), 3, 4, 4)})


def test_large_pictures_are_shrunk_in_the_gallery(tmp_path):
    size = (3, 30, 520)
    data = [{"pixel_values": torch.zeros(size), "normals": torch.zeros(size)}] * 9
    ends = {"best": [{"index": 8}], "worst": [{"index": 0}]}
    draw_examples(Flat(), data, {"examples": {"normals": ends}}, tmp_path)
    assert {file.name for file in (tmp_path / "gallery").iterdir()} == {"normals_0.webp", "normals_8.webp"}
    assert Image.open(tmp_path / "gallery" / "normals_8.webp").size == (520, 10)
    width, height = Image.open(tmp_path / "predictions.png").size
    assert width < 4 * 174 and height < 4 * (2 * 10 + 16)  # maps of 174 x 10 pixels, and captions
    draw_examples(Flat(), data, {}, tmp_path)
    assert list((tmp_path / "gallery").iterdir()) == []
