# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Which modules carry an adapter, and what it computes there."""

import copy
from dataclasses import replace

import pytest
import torch
from methods_table import (
    BLOCKS,
    ROUNDING,
    TASKS,
    check_equal,
    differ,
    for_two_methods,
)
from peft import PeftModel, get_peft_model
from torch import nn
from torch.nn import functional as F
from transformers import SwinBackbone, SwinForImageClassification

from peft_polyhistor import (
    AdapterConfig,
    MultiTaskLoraConfig,
    PolyhistorLiteConfig,
)


@for_two_methods
@pytest.mark.parametrize(("changes", "expected"), [
    ({}, BLOCKS),
    ({"layers_to_transform": [4, 0, 3, 3]}, [BLOCKS[0], BLOCKS[3], BLOCKS[4]]),
    ({"layers_to_transform": 2}, [BLOCKS[2]]),
    ({"exclude_modules": r".*layers\.[12]\..*"}, [BLOCKS[0], BLOCKS[4]]),
    ({"exclude_modules": ["0.mlp"]}, [BLOCKS[3]]),
    ({"layers_to_transform": [2, 3], "exclude_modules": ["blocks.1.mlp"]}, [BLOCKS[2]]),
    ({"target_modules": ["mlp"]}, BLOCKS),
    ({"target_modules": ["layers.2.blocks.1.mlp", "layers.0.blocks.0.mlp"]}, [BLOCKS[0], BLOCKS[3]]),
    ({"target_modules": r".*layers\.2\..*1\.attention\.o_proj"}, ["encoder.layers.2.blocks.1.attention.o_proj"]),
])  # fmt: skip
@torch.no_grad()
def test_sites_are_those_asked_for(adapt, make_swin, pixels, perturb, changes, expected, tmp_path):
    model = adapt(make_swin(), **changes)
    assert model.targeted_module_names == expected
    check_equal(model(pixels, task="semseg"), make_swin()(pixels))
    perturb(model).save_pretrained(tmp_path)
    assert differ(model(pixels, task="semseg"), make_swin()(pixels))
    loaded = PeftModel.from_pretrained(make_swin(), tmp_path).eval()
    assert loaded.targeted_module_names == expected
    check_equal(loaded(pixels, task="semseg"), model(pixels, task="semseg"))


@for_two_methods
@pytest.mark.parametrize(("changes", "message"), [
    ({"target_modules": ["nothing"]}, r"No module matches target_modules=\['nothing'\].*layers.0.blocks.0.mlp"),
    ({"target_modules": []}, r"No module matches target_modules=\[\]"),
    ({"exclude_modules": ["mlp"]}, r"No module matches .* exclude_modules=\['mlp'\]"),
    ({"layers_to_transform": [5]}, r"\[5\] reaches beyond the 5 blocks of SwinModel: indices run from 0 to 4"),
    ({"target_modules": ["fc1"]}, r"fc1' \(Linear, 8 to 32\) cannot carry an adapter"),
    ({"target_modules": ["layernorm_after"]}, r"layernorm_after' \(LayerNorm, no linear layer\) cannot carry"),
    ({"reduction_factor": 9}, "`reduction_factor` 9 leaves no bottleneck in a layer of width 8: choose .* at most 8"),
])  # fmt: skip
def test_sites_that_cannot_be_are_errors(adapt, make_swin, changes, message):
    with pytest.raises(ValueError, match=message):
        adapt(make_swin(), **changes)


def plain_adapter(x, weights):
    """up(gelu(down(norm(x)))) with the weights of one task."""
    x = F.layer_norm(x, x.shape[-1:], weights.norm_weight[0], weights.norm_bias[0])
    return F.linear(F.gelu(F.linear(x, weights.down[0], weights.down_bias[0])), weights.up[0], weights.up_bias[0])


@for_two_methods
@pytest.mark.parametrize("placement", ["parallel", "serial"])
@torch.no_grad()
def test_a_block_is_the_papers(adapt, make_swin, perturb, placement):
    model = perturb(adapt(make_swin(depths=[1, 1, 1, 2]), placement=placement)).double()
    stage, generator = model.base_model.model.encoder.layers[3], model.base_model.model.task_adapters.generators
    seen = []
    for block in stage.blocks:
        block.register_forward_hook(lambda block, args, output: seen.append((args[0], output[0])))
    pixels = torch.randn(2, 3, 96, 96)  # the last map is one window, so attention sees it whole
    model(pixels.double(), task="human_parts")
    weights = generator["default"](torch.tensor([TASKS.index("human_parts")]))
    for block, (x, output), block_weights in zip(stage.blocks, seen, weights[3:], strict=True):
        residual = x + block.attention(block.layernorm_before(x), None)[0]
        expected = block.mlp.base_layer(block.layernorm_after(residual))
        expected = expected + plain_adapter(residual if placement == "parallel" else expected, block_weights)
        torch.testing.assert_close(output, residual + expected, **ROUNDING)


def test_adapters_of_attention_read_in_front_of_its_norm(make_swin, perturb):
    config = AdapterConfig(tasks=TASKS, sublayers=["attention"])
    model = perturb(get_peft_model(make_swin(), config).eval()).double()
    block, generator = (
        model.base_model.model.encoder.layers[3].blocks[0],
        model.base_model.model.task_adapters.generators,
    )
    seen = []
    block.register_forward_hook(lambda block, args, output: seen.append((args[0], output[0])))
    with torch.no_grad():
        model(torch.randn(2, 3, 96, 96).double(), task="semseg")
        [(x, output)] = seen
        attended = x + block.attention(block.layernorm_before(x), None)[0]
        attended = attended + plain_adapter(x, generator["default"](torch.tensor([0]))[-1])
        expected = attended + block.mlp(block.layernorm_after(attended))
    torch.testing.assert_close(output, expected, **ROUNDING)


@pytest.mark.parametrize("base", [SwinBackbone, SwinForImageClassification])
@torch.no_grad()
def test_every_class_of_swin_is_adapted(make_swin, pixels, perturb, tmp_path, base):
    frozen = make_swin(base)(pixels)
    model = get_peft_model(make_swin(base), PolyhistorLiteConfig(tasks=TASKS)).eval()
    check_equal(model(pixels, task="semseg"), frozen)
    perturb(model).save_pretrained(tmp_path)
    outputs = model(pixels, tasks=["normals", "semseg"])
    check_equal(outputs["semseg"], model(pixels, task="semseg"), rtol=1e-4, atol=1e-5)
    assert differ(outputs["semseg"], outputs["normals"])
    loaded = PeftModel.from_pretrained(make_swin(base), tmp_path).eval()
    check_equal(loaded(pixels, task="semseg"), model(pixels, task="semseg"))
    check_equal(model.unload()(pixels), frozen)


@for_two_methods
def test_dropout_acts_in_training_alone(adapt, make_swin, pixels, perturb):
    model = perturb(adapt(make_swin(), dropout=0.5))
    check_equal(model(pixels, task="semseg"), model(pixels, task="semseg"))
    model.train()
    assert differ(model(pixels, task="semseg"), model(pixels, task="semseg"))


@for_two_methods
@torch.no_grad()
@pytest.mark.parametrize("placement", ["parallel", "serial"])
def test_an_unknown_encoder_is_adapted_where_named(adapt, perturb, placement):
    plain = nn.Sequential(nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 12))
    x = torch.randn(5, 12)
    model = adapt(copy.deepcopy(plain), target_modules=["0", "2"], placement=placement)
    assert torch.equal(model(x, task="normals"), plain(x))
    perturb(model)
    model, plain, x = model.double(), plain.double(), x.double()
    first, second = model.base_model.model.task_adapters.generators["default"](torch.tensor([2]))
    hidden = plain[0](x)
    hidden = torch.tanh(hidden + plain_adapter(x if placement == "parallel" else hidden, first))
    output = plain[2](hidden)
    expected = output + plain_adapter(hidden if placement == "parallel" else output, second)
    torch.testing.assert_close(model(x, task="normals"), expected, **ROUNDING)
    torch.testing.assert_close(model(x, tasks=TASKS)["normals"], expected, **ROUNDING)


class ChannelsFirst(nn.Linear):
    """A square linear layer on maps `(batch, channels, height, width)`."""

    def forward(self, x):
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


@pytest.mark.parametrize("config", [
    AdapterConfig(reduction_factor=3), AdapterConfig(reduction_factor=3, placement="serial"), MultiTaskLoraConfig(),
], ids=["parallel", "serial", "lora"])  # fmt: skip
def test_channels_that_are_not_last_are_an_error(config):
    model = get_peft_model(nn.Sequential(ChannelsFirst(12, 12)), replace(config, target_modules=["0"]))
    message = r"The adapters of '0' read a tensor of shape \(2, 12, 3, 4\), and they need its 12 channels on the last"
    with pytest.raises(ValueError, match=message):
        model(torch.randn(2, 12, 3, 4), task="normals")


@for_two_methods
def test_an_unknown_encoder_without_names_is_an_error(adapt):
    with pytest.raises(ValueError, match=r"Sequential has no blocks of a known encoder family.*`target_modules`"):
        adapt(nn.Sequential(nn.Linear(12, 12)))
