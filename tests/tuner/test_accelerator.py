# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Every method on an accelerator, against the CPU: `pytest -m gpu`."""

import pytest
import torch
from methods_table import TASKS, check_equal, gradients, predict, tensors_of, trainable
from peft import PeftModel


pytestmark = pytest.mark.gpu
SINGLE = {"rtol": 1e-3, "atol": 1e-3}  # of float32, whose sums a device orders in its own way


@pytest.fixture
def device():
    """The accelerator, with products in full float32."""
    found = torch.accelerator.current_accelerator(check_available=True)
    if found is None:
        pytest.skip("there is no accelerator")
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield found
    torch.backends.cudnn.allow_tf32 = before


def to_cpu(output):
    return {path: tensor.detach().to("cpu", copy=True) for path, tensor in tensors_of(output).items()}


@torch.no_grad()
def test_outputs_are_those_of_the_cpu(adapt, make_base, perturb, pixels, device):
    model = perturb(adapt(make_base()))
    expected = {task: to_cpu(predict(model, pixels, task)) for task in TASKS}
    model.to(device)
    for task in TASKS:
        check_equal(to_cpu(predict(model, pixels.to(device), task)), expected[task], **SINGLE)


def test_gradients_are_those_of_the_cpu(adapt, make_dense, make_labels, perturb, pixels, device):
    labels = make_labels(TASKS, 2, 96, 128)
    model = perturb(adapt(make_dense()))
    model(pixels, labels).loss.backward()
    expected = to_cpu(gradients(model))
    model.zero_grad()
    model.to(device)(pixels.to(device), {task: label.to(device) for task, label in labels.items()}).loss.backward()
    check_equal(to_cpu(gradients(model)), expected, **SINGLE)


def test_a_step_in_bfloat16_reaches_every_parameter(adapt, make_dense, make_labels, perturb, pixels, device):
    model = perturb(adapt(make_dense())).to(device).train()
    before = to_cpu(trainable(model))
    labels = {task: label.to(device) for task, label in make_labels(TASKS, 2, 96, 128).items()}
    with torch.autocast(device.type, torch.bfloat16):
        loss = model(pixels.to(device), labels).loss
    loss.backward()
    torch.optim.Adam(trainable(model).values(), lr=1e-3).step()
    after = to_cpu(trainable(model))
    assert loss.isfinite() and all(weight.isfinite().all() for weight in after.values())
    assert [name for name, weight in after.items() if torch.equal(weight, before[name])] == []


@torch.no_grad()
def test_an_adapter_saved_there_loads_here(adapt, make_swin, perturb, pixels, device, tmp_path):
    model = perturb(adapt(make_swin())).to(device)
    expected = to_cpu(predict(model, pixels.to(device), "normals"))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_swin(), tmp_path).eval()
    check_equal(to_cpu(predict(loaded.cpu(), pixels, "normals")), expected, **SINGLE)
    loaded = PeftModel.from_pretrained(make_swin().to(device), tmp_path).eval()
    assert {parameter.device.type for parameter in loaded.parameters()} == {device.type}
    check_equal(to_cpu(predict(loaded, pixels.to(device), "normals")), expected, **SINGLE)
