# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Batches that say little or nothing of a task train and score without a NaN."""

import math

import pytest
import torch
from peft import get_peft_model
from tiny_models import make_dense, make_labels, perturb

from peft_polyhistor import TASKS, PolyhistorLiteConfig


SIZE = (32, 64)
NORMALS = torch.tensor([0.0, 0.6, 0.8]).view(1, 3, 1, 1)
DEGENERATE = {
    "no people": {"human_parts": torch.full((2, *SIZE), 255)},
    "no valid normals": {"normals": torch.zeros(2, 3, *SIZE)},
    "one normal": {"normals": torch.zeros(2, 3, *SIZE).index_fill(3, torch.tensor([7]), 1) * NORMALS},
    "one class": {"semseg": torch.full((2, *SIZE), 15), "human_parts": torch.zeros(2, *SIZE, dtype=torch.long)},
    "no foreground": {"saliency": torch.zeros(2, 1, *SIZE)},
    "only foreground": {"saliency": torch.ones(2, 1, *SIZE)},
    "all ignored": {
        "semseg": torch.full((2, *SIZE), 255),
        "human_parts": torch.full((2, *SIZE), 255),
        "saliency": torch.zeros(2, 1, *SIZE),
        "normals": torch.zeros(2, 3, *SIZE),
    },
}
"""Labels in place of random ones, by task."""


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = PolyhistorLiteConfig(tasks=list(TASKS), reduction_factor=4)
    return perturb(get_peft_model(make_dense(list(TASKS)), config))


@pytest.mark.parametrize("pictures", [1, 2])
@pytest.mark.parametrize("labels", DEGENERATE.values(), ids=DEGENERATE.keys())
def test_a_step_and_its_scores_are_finite(model, labels, pictures):
    tasks = list(TASKS)
    optimizer = torch.optim.Adam((p for p in model.train().parameters() if p.requires_grad), lr=1e-3)
    labels = {task: label[:pictures] for task, label in (make_labels(tasks, 2, *SIZE) | labels).items()}
    pixels = torch.randn(pictures, 3, *SIZE)
    output = model(pixels, labels)
    output.loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    optimizer.step()
    optimizer.zero_grad()
    with torch.no_grad():
        logits = model.eval()(pixels).logits
    for task in tasks:
        assert output.losses[task].isfinite() and logits[task].isfinite().all(), task
        scores = TASKS[task].metric().compute(predictions=logits[task], references=labels[task])
        if TASKS[task].count is not None and task != "saliency" and not TASKS[task].count(labels[task]):
            assert all(map(math.isnan, scores.values())), task  # nothing is measured without a labeled pixel
        else:
            assert all(map(math.isfinite, scores.values())), task
    assert gradients and all(gradient.isfinite().all() for gradient in gradients)
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())


def test_a_batch_without_labels_changes_no_score():
    for task in TASKS.values():
        labels, logits = make_labels([task.name], 2, *SIZE)[task.name], torch.randn(2, task.channels, *SIZE)
        metric = task.metric()
        metric.add_batch(predictions=logits, references=labels)
        expected = metric.compute()
        metric.add_batch(predictions=logits, references=labels)
        if task.name != "saliency":  # which has no label to ignore
            metric.add_batch(predictions=logits, references=DEGENERATE["all ignored"][task.name])
        assert metric.compute() == expected, task.name
