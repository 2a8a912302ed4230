# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The constant logits of each kind of task fit labels best."""

import math

import pytest
import torch
from torch.nn import functional as F

from peft_polyhistor import binary, regression, segmentation, vectors
from peft_polyhistor.tasks.table import TASKS


NAMES = ["road", "car", "sky"]
TASKS_AND_TARGETS = {
    "segmentation": (segmentation("a", classes=NAMES), torch.tensor([0, 0, 0, 1, 2, 2, 255, 255]).view(2, 2, 2)),
    "binary": (binary("a"), torch.tensor([0.0, 0, 0, 1, -1, 0, 0, 0]).view(2, 1, 2, 2)),
    "binary, weighted": (binary("a", positive_weight=0.9), torch.tensor([0.0, 0, 0, 1, -1, 0, 0, 0]).view(2, 1, 2, 2)),
    "l1": (regression("a"), torch.tensor([1.0, 2, 7, math.nan]).view(1, 1, 2, 2)),
    "silog": (
        regression("a", valid=(0.1, 9), objective="silog"),
        torch.tensor([1.0, 2, 4, math.nan]).view(1, 1, 2, 2),
    ),
}


def loss_of(task, logits, target):
    return task.loss(logits.view(1, -1, 1, 1).expand(len(target), -1, *target.shape[-2:]), target)


@pytest.mark.parametrize("kind", TASKS_AND_TARGETS)
def test_no_other_constant_has_a_lower_loss(kind):
    task, target = TASKS_AND_TARGETS[kind]
    constant = task.fit_constant(target)
    assert constant.shape == (task.channels,)
    least = loss_of(task, constant, target)
    for _ in range(50):
        assert loss_of(task, constant + 0.3 * torch.randn(task.channels), target) >= least - 1e-6


def test_constants_are_those_of_the_formulas():
    constants = {kind: task.fit_constant(target) for kind, (task, target) in TASKS_AND_TARGETS.items()}
    torch.testing.assert_close(constants["segmentation"], torch.tensor([3 / 6, 1 / 6, 2 / 6]).log())
    assert constants["binary"] == 0  # 6 of 7 pixels are background, and their weight is 1 of 7
    torch.testing.assert_close(constants["binary, weighted"], torch.tensor([math.log(0.9 * 1 / (0.1 * 6))]))
    assert constants["l1"] == 2
    torch.testing.assert_close(constants["silog"], torch.tensor([math.log(2)]))


def test_constant_of_vectors_is_their_mean():
    target = torch.stack([F.normalize(torch.randn(3, 4, 4), dim=0), torch.zeros(3, 4, 4)])  # the second has no label
    expected = sum(target[0, :, row, column] for row in range(4) for column in range(4)) / 16
    torch.testing.assert_close(vectors("a").fit_constant(target), expected)


def test_class_without_a_pixel_has_a_small_share():
    constant = segmentation("a", classes=NAMES).fit_constant(torch.zeros(1, 4, 4).long())
    torch.testing.assert_close(constant, torch.tensor([0.0, math.log(1e-4), math.log(1e-4)]))


@pytest.mark.parametrize("name", TASKS)
def test_targets_without_a_label_give_zeros(name):
    task = TASKS[name]
    assert torch.equal(task.fit_constant(torch.stack(2 * [task.unlabeled((4, 4))])), torch.zeros(task.channels))


@pytest.mark.parametrize("kind", ["l1", "silog"])
def test_values_without_a_label_give_zeros(kind):
    task, target = TASKS_AND_TARGETS[kind]
    assert torch.equal(task.fit_constant(torch.full_like(target, math.nan)), torch.zeros(1))
