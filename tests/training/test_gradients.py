# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The gradients of a step do not depend on how its pictures and tasks are cut up."""

import pytest
import torch
from accelerate import Accelerator
from peft import get_peft_model
from tiny_models import make_dense, make_labels, perturb

from peft_polyhistor import TASKS, PolyhistorLiteConfig
from peft_polyhistor.training import add_gradients


@pytest.fixture
def model():
    config = PolyhistorLiteConfig(tasks=list(TASKS), reduction_factor=4)
    return perturb(get_peft_model(make_dense(list(TASKS)), config)).eval()


@pytest.fixture
def batch():
    """Four images with uneven labels: the last two have no people, the first next to no foreground."""
    labels = make_labels(list(TASKS), 4, 32, 64)
    labels["human_parts"][2:] = 255
    labels["saliency"][0, :, 1:] = 0
    labels["normals"][1, :, 8:] = 0
    return {"pixel_values": torch.randn(4, 3, 32, 64), "labels": labels}


def part_of(batch, start, end):
    labels = {task: label[start:end] for task, label in batch["labels"].items()}
    return {"pixel_values": batch["pixel_values"][start:end], "labels": labels}


@pytest.mark.parametrize("per_task", [False, True], ids=["together", "per task"])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_step_has_the_same_gradients_however_it_is_cut_up(model, batch, size, per_task):
    output = model(**batch)
    output.loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    batches = [part_of(batch, start, start + size) for start in range(0, 4, size)]
    losses = add_gradients(model, batches, list(TASKS), Accelerator(cpu=True), per_task)
    torch.testing.assert_close(dict(zip(TASKS, losses, strict=True)), {t: output.losses[t].detach() for t in TASKS})
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
