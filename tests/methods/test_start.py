# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Every method starts as promised, and trains its own parameters alone."""

import itertools
import re

import torch
from methods_table import (
    TASKS,
    check_equal,
    differ,
    every_method,
    gradients,
    loss_of,
    predict,
    predict_frozen,
    rows,
    trainable,
    without_gradient,
)


@every_method
@rows(lambda row: row.starts_frozen)
@torch.no_grad()
def test_starts_as_the_frozen_model_bit_for_bit(adapt, make_base, pixels):
    model = adapt(make_base())
    for task in TASKS:
        check_equal(predict(model, pixels, task), predict_frozen(make_base(), pixels, task))


@torch.no_grad()
def test_without_init_weights_it_starts_elsewhere(adapt, make_swin, pixels):
    model = adapt(make_swin(), init_weights=False)
    for task in TASKS:
        assert differ(predict(model, pixels, task), make_swin()(pixels))


def test_all_parameters_are_contiguous(adapt, make_base):
    """FSDP and safetensors take no others."""
    assert all(parameter.is_contiguous() for parameter in adapt(make_base()).parameters())


def test_only_the_method_and_the_decoders_train(adapt, make_base, pixels):
    frozen = dict(make_base().named_parameters())
    model = adapt(make_base())
    own = rf"base_model\.model\.task_adapters\.{model.base_model.prefix}generators\.default\."
    decoders = r"base_model\.model\.decoders\.modules_to_save\.default\."
    assert trainable(model)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == bool(re.match(f"{own}|{decoders}", name)), name
    assert any(re.match(decoders, name) for name in trainable(model)) == hasattr(model, "decoders")

    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    loss_of(predict(model, pixels, "semseg")).backward()
    optimizer.step()
    after = dict(model.unload().named_parameters())
    for name, parameter in frozen.items():
        assert "decoders" in name or torch.equal(after[name], parameter), name


@torch.no_grad()
def test_tasks_differ_once_trained(row, adapt, make_base, pixels, perturb):
    model = perturb(adapt(make_base()))
    encoder = model.base_model.model.encoder if hasattr(model, "decoders") else model
    outputs = encoder(pixels, tasks=TASKS)
    for first, second in itertools.combinations(TASKS, 2):
        assert differ(outputs[first], outputs[second]) != row.tasks_agree


@every_method
def test_gradient_reaches_every_parameter(adapt, make_base, pixels, perturb):
    model = perturb(adapt(make_base()))
    sum(loss_of(predict(model, pixels, task)) for task in TASKS).backward()
    assert without_gradient(model) == []
    assert all(gradient.isfinite().all() for gradient in gradients(model).values())


def test_two_steps_from_the_start_reach_every_parameter(adapt, make_base, pixels):
    model = adapt(make_base()).train()
    optimizer = torch.optim.SGD(trainable(model).values(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        sum(loss_of(predict(model, pixels, task)) for task in TASKS).backward()
        optimizer.step()
    assert without_gradient(model) == []
