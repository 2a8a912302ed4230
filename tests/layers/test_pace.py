# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Generated weights move as fast as learned ones, and adapters that were saved without a gain stay what they are."""

import pytest
import torch
from methods_table import PLACED_BY_FILE, check_equal
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_models import make_sites

from peft_polyhistor import METHODS, MultiTaskDenseModel, PolyhistorConfig, load, load_encoder
from peft_polyhistor.layers.factors import PacedLinear


HYPERNETWORKS = ["polyhistor", "polyhistor_lite", "hyperformer"]
RATE = 1e-4


def make_generator(method, tasks, widths, **settings):
    config = METHODS[method](tasks=[f"task{i}" for i in range(tasks)], **settings)
    return config.make_generator(make_sites(*widths))


def move(generator, tasks, is_shared):
    """Root mean square by which up moves in the first step of Adam, over the learning rate.

    Every entry of up has a gradient of its own; `is_shared` gives all tasks the same.
    """
    start = [site.up.detach() for site in generator(torch.arange(tasks))]
    gradients = [torch.randn(1 if is_shared else tasks, *up.shape[1:]).expand_as(up) for up in start]
    optimizer = torch.optim.Adam(generator.parameters(), lr=RATE)
    ups = [site.up for site in generator(torch.arange(tasks))]
    torch.autograd.backward(ups, gradients)
    optimizer.step()
    moved = [site.up - up for site, up in zip(generator(torch.arange(tasks)), start, strict=True)]
    return torch.cat([change.flatten() for change in moved]).square().mean().sqrt().item() / RATE


@pytest.mark.parametrize("method", HYPERNETWORKS)
@pytest.mark.parametrize("tasks", [1, pytest.param(4, marks=pytest.mark.slow), 8])
@pytest.mark.parametrize("embedding_dim", [16, pytest.param(64, marks=pytest.mark.slow)])
@pytest.mark.parametrize("widths", [[24, 24, 48, 96, 192], [96, 96, 192, 384, 384, 768]], ids=["narrow", "wide"])
def test_one_step_moves_up_by_the_learning_rate(method, tasks, embedding_dim, widths):
    """A learned weight moves by exactly 1. Here the range is 1.5 to 4.5, whatever the method and the sizes."""
    ranks = [{}] if method == "hyperformer" else [{"rank": 1}, {"rank": 4}]
    torch.manual_seed(0)
    for settings in ranks:
        generator = make_generator(method, tasks, widths, embedding_dim=embedding_dim, reduction_factor=4, **settings)
        for is_shared in (False, True):
            assert 1.5 < move(generator, tasks, is_shared) < 4.5


def test_a_gain_is_a_power_of_two_that_changes_no_output():
    torch.manual_seed(0)
    layer = PacedLinear(64, 5, inputs=4, std=0.1)
    assert layer.gain == 2.0**-5  # 4^(1/4) / (0.8 * 64) = 0.028
    plain = torch.nn.Linear(64, 5)
    plain.load_state_dict({"weight": layer.gain * layer.weight, "bias": layer.bias})
    x = torch.randn(7, 64)
    torch.testing.assert_close(layer(x), plain(x), rtol=0, atol=0)


@pytest.fixture
def old_adapter(tmp_path):
    """The folder of an adapter without gains, and the model that it is."""
    model = get_peft_model(make_dense(), PolyhistorConfig(tasks=["semseg", "normals"], reduction_factor=4)).eval()
    with torch.no_grad():
        for parameter in filter(lambda p: p.requires_grad, model.parameters()):
            parameter.add_(0.05 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith(".gain"):
                buffer.fill_(1)
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    assert any(key.endswith(".gain") for key in weights)
    old = {key: tensor for key, tensor in weights.items() if not key.endswith(".gain")}
    save_file(old, tmp_path / "adapter_model.safetensors", metadata={"format": "pt"})
    return tmp_path, model


def make_dense():
    torch.manual_seed(0)
    return MultiTaskDenseModel.from_encoder(load_encoder("swin-mini"), ["semseg", "normals"], decoder_width=8)


@torch.no_grad()
@pytest.mark.filterwarnings("error")
def test_an_adapter_without_gains_is_what_it_was(old_adapter, pixels):
    folder, model = old_adapter
    for loaded in (
        load(folder),
        PeftModel.from_pretrained(make_dense(), folder).eval(),
        PeftModel.from_pretrained(make_dense(), folder, low_cpu_mem_usage=True).eval(),
    ):
        check_equal(loaded(pixels), model(pixels), **PLACED_BY_FILE)
        loaded.add_task("saliency", from_="normals")
        check_equal(loaded(pixels, tasks=["semseg"]), model(pixels, tasks=["semseg"]), **PLACED_BY_FILE)


@torch.no_grad()
def test_weights_without_gains_leave_those_of_the_model(old_adapter, pixels):
    _, model = old_adapter
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    before, model = model(pixels), model.train(False)
    result = model.load_state_dict(trained, strict=False)
    check_equal(model(pixels), before)
    assert any(name.endswith(".gain") for name in result.missing_keys)
