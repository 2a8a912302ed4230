# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The biases that each kind of task fits to labels."""

import math

import pytest
import torch
from torch.nn import functional as F

from peft_polyhistor import binary, regression, segmentation, vectors


NAMES = ["road", "car", "sky"]
TASKS_AND_TARGETS = {
    "segmentation": (segmentation("a", classes=NAMES), torch.tensor([0, 0, 0, 1, 2, 2, 255, 255]).view(2, 2, 2)),
    "binary": (binary("a"), torch.tensor([0.0, 0, 0, 1, -1, 0, 0, 0]).view(2, 1, 2, 2)),
    "binary, weighted": (binary("a", positive_weight=0.9), torch.tensor([0.0, 0, 0, 1, -1, 0, 0, 0]).view(2, 1, 2, 2)),
    "l1": (regression("a"), torch.tensor([1.0, 2, 7, math.nan]).view(1, 1, 2, 2)),
    "silog": (
        regression("a", valid=(0.1, 9), objective="silog"),
        torch.tensor([1.0, 2, 4, math.nan, 8, *7 * [math.nan]]).view(3, 1, 2, 2),
    ),
}


def loss_of(task, logits, target):
    return task.loss(logits.view(1, -1, 1, 1).expand(len(target), -1, *target.shape[-2:]), target)


@pytest.mark.parametrize("kind", TASKS_AND_TARGETS)
def test_no_other_constant_has_a_lower_loss(kind):
    task, target = TASKS_AND_TARGETS[kind]
    bias = task.fit_bias(target)
    assert bias.shape == (task.channels,)
    least = loss_of(task, bias, target)
    for _ in range(50):
        assert loss_of(task, bias + 0.3 * torch.randn(task.channels), target) >= least - 1e-6


def test_biases_are_those_of_the_formulas():
    biases = {kind: task.fit_bias(target) for kind, (task, target) in TASKS_AND_TARGETS.items()}
    torch.testing.assert_close(biases["segmentation"], torch.tensor([3 / 6, 1 / 6, 2 / 6]).log())
    assert biases["binary"] == 0  # 6 of 7 pixels are background, and their weight is 1 of 7
    torch.testing.assert_close(biases["binary, weighted"], torch.tensor([math.log(0.9 * 1 / (0.1 * 6))]))
    assert biases["l1"] == 2
    torch.testing.assert_close(biases["silog"], torch.tensor([(math.log(2) + math.log(8)) / 2]))


def test_bias_of_vectors_is_their_mean():
    target = torch.stack([F.normalize(torch.randn(3, 4, 4), dim=0), torch.zeros(3, 4, 4)])  # the second has no label
    expected = sum(target[0, :, row, column] for row in range(4) for column in range(4)) / 16
    torch.testing.assert_close(vectors("a").fit_bias(target), expected)


def test_class_without_a_pixel_has_a_small_share():
    bias = segmentation("a", classes=NAMES).fit_bias(torch.zeros(1, 4, 4).byte())
    torch.testing.assert_close(bias, torch.tensor([0.0, math.log(1e-4), math.log(1e-4)]))
    edges = binary("a", positive_weight=0.5)
    for value, sign in ((0, -1), (1, 1)):
        bias = edges.fit_bias(torch.full((1, 1, 4, 4), float(value)))
        torch.testing.assert_close(bias, sign * torch.tensor([math.log(9999)]), rtol=1e-3, atol=0)
