# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Calls of one task and of several."""

import pytest
import torch
from methods_table import (
    ROUNDING,
    TASKS,
    check_equal,
    every_method,
    for_two_methods,
    predict,
    rows,
)
from transformers import SwinForImageClassification


@every_method
@torch.no_grad()
def test_all_tasks_in_one_pass_equal_one_task_at_a_time(adapt, make_base, pixels, perturb):
    model, pixels = perturb(adapt(make_base())).double(), pixels.double()
    alone = {task: predict(model, pixels, task) for task in TASKS}
    for tasks in (TASKS, TASKS[::-1], TASKS[1:], TASKS[:1]):
        together = model(pixels, tasks=tasks)
        if hasattr(model, "decoders"):
            assert list(together.logits) == tasks
            together = {task: type(together)(logits={task: together.logits[task]}) for task in tasks}
        assert list(together) == tasks
        for task in tasks:
            check_equal(together[task], alone[task], **ROUNDING)


@torch.no_grad()
def test_one_task_needs_no_name(adapt, make_swin, pixels, perturb):
    model = perturb(adapt(make_swin(), tasks=["depth"]))
    check_equal(model(pixels), model(pixels, task="depth"))
    check_equal(model(pixels, tasks=["depth"]), {"depth": model(pixels)})


BAD_CALLS = [
    ({}, ValueError, "serves several tasks, and the call names none"),
    ({"task": None, "tasks": None}, ValueError, "serves several tasks, and the call names none"),
    ({"task": "depth"}, ValueError, r"each named once; got \['depth'\]: unknown are \['depth'\]\."),
    ({"tasks": ["semseg", "depth"]}, ValueError, r"each named once; got \['semseg', 'depth'\]"),
    ({"tasks": []}, ValueError, r"each named once; got \[\]: no task\."),
    (
        {"tasks": ["semseg", "semseg"]},
        ValueError,
        r"each named once; got \['semseg', 'semseg'\]: \['semseg'\] more than once",
    ),
    ({"tasks": "semseg"}, TypeError, r"`tasks` must be a list of names, got 'semseg'.*task="),
    ({"tasks": {"semseg"}}, TypeError, r"`tasks` must be a list of names, got \{'semseg'\}"),
    ({"task": ["semseg"]}, ValueError, r"each named once; got \[\['semseg'\]\]"),
    ({"task": "semseg", "tasks": ["semseg"]}, ValueError, "`task` or `tasks`, not both"),
]


@for_two_methods
@pytest.mark.parametrize(("call", "error", "message"), BAD_CALLS)
def test_a_bad_call_is_an_error_that_lists_the_tasks(adapt, make_swin, pixels, call, error, message):
    model = adapt(make_swin())
    with pytest.raises(error, match=message) as caught:
        model(pixels, **call)
    assert all(task in str(caught.value) for task in TASKS)
    model(pixels, task="semseg")  # and nothing of the bad call is left


def test_a_layer_called_outside_of_a_pass_is_an_error(adapt, make_swin, pixels):
    model = adapt(make_swin())
    layer = model.base_model.model.encoder.layers[0].blocks[0]
    with pytest.raises(RuntimeError, match=r"outside of a forward pass.*`task=`"):
        layer(torch.randn(1, 9, 8), (3, 3))
    with pytest.raises(RuntimeError, match=r"expected input.*to have 3 channels"):
        model(pixels[:, :1], task="semseg")  # an error within a pass ends it too
    with pytest.raises(RuntimeError, match="outside of a forward pass"):
        layer(torch.randn(1, 9, 8), (3, 3))


@rows(lambda row: not row.tasks_agree)
def test_a_scalar_cannot_be_split_by_task(adapt, make_swin, pixels):
    model = adapt(make_swin(SwinForImageClassification))
    labels = torch.tensor([0, 1])
    assert model(pixels, task="semseg", labels=labels).loss.ndim == 0
    with pytest.raises(ValueError, match=r"tensor of shape \(\), which cannot be split into 2 tasks.*task="):
        model(pixels, tasks=TASKS[:2], labels=labels)
