# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The image processor: what it refuses, and what it keeps when it is saved again."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import make_dense

from peft_polyhistor import DenseImageProcessor


@pytest.mark.parametrize(("image", "message"), [
    (Image.new("I;16", (6, 4), 4000), "The image must be a PIL image of 8 bits per channel.* got mode I;16. Convert"),
    (Image.new("F", (6, 4), 0.5), "got mode F"),
    (np.full((4, 6), 0.5, np.float32), r"must be uint8 \(height, width\).*got float32 of shape \(4, 6\). Scale"),
    (np.zeros((4, 6, 3)), r"got float64 of shape \(4, 6, 3\)"),
    (torch.zeros(3, 4, 6), r"got float32 of shape \(3, 4, 6\).*channels last"),
])  # fmt: skip
def test_images_that_would_be_clipped_are_refused(image, message):
    with pytest.raises(ValueError, match=message):
        DenseImageProcessor(8)(image)


def test_arrays_and_images_are_prepared_alike():
    values = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    prepared = DenseImageProcessor(8)([values, torch.from_numpy(values), Image.fromarray(values)])["pixel_values"]
    assert prepared.shape == (3, 3, 8, 8)
    assert torch.equal(prepared[0], prepared[1]) and torch.equal(prepared[0], prepared[2])


def test_a_processor_in_the_folder_keeps_its_mean_and_standard_deviation(tmp_path):
    DenseImageProcessor(32, [0.5, 0.4, 0.3], [0.2, 0.2, 0.1]).save_pretrained(tmp_path)
    DenseImageProcessor.save_for(make_dense(["semseg"], image_size=64), tmp_path)
    saved = DenseImageProcessor.from_pretrained(tmp_path)
    assert (saved.image_mean, saved.image_std) == ([0.5, 0.4, 0.3], [0.2, 0.2, 0.1])
    assert saved.image_size == [64, 64]
