# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Methods that are more or less than an adapter per task and block, against their definitions by plain loops."""

import math
from functools import partial

import pytest
import tiny_models
import torch
from peft import get_peft_model
from timm.models.swin_transformer import WindowAttention
from torch import nn
from torch.nn import functional as F
from transformers import SwinConfig, SwinModel

from peft_polyhistor import (
    TASKS,
    AdapterConfig,
    BitFitConfig,
    DecodersConfig,
    MultiTaskDenseModel,
    MultiTaskLoraConfig,
    RelativeBiasConfig,
    SharedAdapterConfig,
    VmtAdapterConfig,
    VmtAdapterLiteConfig,
    VptDeepConfig,
    VptShallowConfig,
    view_encoder,
)
from peft_polyhistor.methods.vpt import PromptLayer
from peft_polyhistor.tuner.site import Site


NAMES = ["a", "b", "c"]
TASK = 1  # index of the task under test
ROUNDING = {"rtol": 1e-6, "atol": 1e-6}  # computed in float64


@pytest.fixture
def make_swin():
    """Two blocks a stage: the windows of every second one are shifted."""
    return partial(tiny_models.make_swin, depths=[2, 2, 2, 2])


@pytest.fixture
def adapt(make_swin, perturb):
    """`adapt(config, base)`: a trained adapter on the tiny Swin or on another base, and its generator."""

    def make(config, base=None):
        model = perturb(get_peft_model(base or make_swin(), config), std=0.3).double().eval()
        return model, model.base_model.model.task_adapters.generators["default"]

    return make


def watch(module):
    """Inputs and outputs of a module, call by call."""
    calls = []
    module.register_forward_hook(lambda module, args, output: calls.append((args, output)))
    return calls


def sites_of(model):
    return {name: module for name, module in model.base_model.model.named_modules() if hasattr(module, "site")}


@pytest.fixture
def pixels():
    return torch.randn(2, 3, 96, 128).double()


@pytest.mark.parametrize("config_class", [BitFitConfig, RelativeBiasConfig])
@torch.no_grad()
def test_parameters_of_a_task_are_those_of_the_encoder_plus_its_own(adapt, make_swin, pixels, config_class):
    model, generator = adapt(config_class(tasks=NAMES))
    plain, expected = make_swin().double(), []
    for site, additions in zip(sites_of(model), generator, strict=True):
        trains = [
            parameter
            for name, parameter in plain.get_submodule(site).named_parameters()
            if name.split(".")[-1] in config_class.trains
        ]
        for parameter, addition in zip(trains, additions, strict=True):
            parameter += addition[TASK]
            expected.append(parameter)
    torch.testing.assert_close(
        model(pixels, task=NAMES[TASK]).last_hidden_state, plain(pixels).last_hidden_state, **ROUNDING
    )
    final = [parameter for name, parameter in plain.named_parameters() if name.startswith("layernorm.")]
    biases = [p for name, p in plain.named_parameters() if name.split(".")[-1] in config_class.trains]
    assert {id(p) for p in expected} == {id(p) for p in biases} - {id(p) for p in final}


@torch.no_grad()
def test_shared_adapter_trains_the_norms_and_adds_one_adapter(adapt, make_swin, pixels):
    model, generator = adapt(SharedAdapterConfig(tasks=NAMES))
    plain, swin = make_swin().double(), model.base_model.model
    norms = iter(generator.norms)
    for name, site in sites_of(model).items():
        if type(site).__name__ == "ParameterLayer":
            for parameter, addition in zip(plain.get_submodule(name).parameters(), next(norms), strict=True):
                parameter += addition[0]
    calls = watch(swin.encoder.layers[3].blocks[1])
    output = model(pixels[..., :96], tasks=NAMES)
    assert all(output[name] is output["a"] for name in NAMES)
    [(args, (got, _))] = calls
    block, weights = plain.encoder.layers[3].blocks[1], generator.adapters[-1]
    residual = args[0] + block.attention(block.layernorm_before(args[0]), None)[0]
    x = F.layer_norm(residual, (64,), weights.norm_weight[0], weights.norm_bias[0])
    x = F.gelu(F.linear(x, weights.down.weight[0], weights.down_bias[0]))
    adapter = F.linear(x, weights.up.weight[0], weights.up_bias[0])
    torch.testing.assert_close(got, residual + block.mlp(block.layernorm_after(residual)) + adapter, **ROUNDING)


@torch.no_grad()
def test_prompts_are_tokens_of_every_window_dropped_after_attention(adapt, pixels):
    model, generator = adapt(VptDeepConfig(tasks=NAMES, prompts=2))
    swin = model.base_model.model
    index, heads, site = 3, 2, swin.encoder.layers[1].blocks[1].attention  # whose windows are shifted
    calls = watch(site)
    model(pixels, tasks=NAMES[: TASK + 1])
    [((windows, mask), (got, _))] = calls
    windows, got = windows.chunk(2)[TASK], got.chunk(2)[TASK]
    attention, prompts = site.base_layer, generator.layers[index][TASK]
    bias = attention.relative_position_bias()[0]
    assert mask is not None
    for i in (0, 5, len(windows) - 1):
        tokens = torch.cat([windows[i], prompts])
        query, key, value = (
            project(tokens).unflatten(-1, (heads, -1)).transpose(0, 1)
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        rows = []
        for q in range(9):
            of_heads = []
            for head in range(heads):
                scores = torch.stack([query[head, q] @ key[head, k] for k in range(11)]) / math.sqrt(key.shape[-1])
                scores[:9] += bias[head, q] + mask[i % len(mask), q]
                of_heads.append(scores.softmax(0) @ value[head])
            rows.append(torch.cat(of_heads))
        torch.testing.assert_close(got[i], attention.o_proj(torch.stack(rows)), **ROUNDING)


@torch.no_grad()
def test_prompts_are_tokens_of_timms_windows_too():
    attention = WindowAttention(dim=8, num_heads=2, window_size=3).double().eval()
    attention.relative_position_bias_table.normal_()
    x, prompts, mask = (torch.randn(*size).double() for size in ((6, 9, 8), (2, 5, 8), (3, 9, 9)))
    site = PromptLayer(attention, Site("attention", PromptLayer, 8, 0), router=None)
    site.active_weights = lambda x: [(prompts, 0.0)]
    bias = F.pad(attention._get_rel_pos_bias() + mask[:, None], (0, 5))  # (windows of a picture, heads, tokens, keys)
    got = site(x, mask=mask)
    for i in range(6):
        query, key, value = attention.qkv(torch.cat([x[i], prompts[i // 3]])).view(14, 3, 2, 4).permute(1, 2, 0, 3)
        weights = (query[:, :9] @ key.mT / math.sqrt(4) + bias[i % 3]).softmax(dim=-1)
        expected = attention.proj((weights @ value).transpose(0, 1).flatten(1))
        torch.testing.assert_close(got[i], expected, **ROUNDING)


@torch.no_grad()
def test_shallow_prompts_are_in_the_first_layer(adapt):
    model, generator = adapt(VptShallowConfig(tasks=NAMES))
    assert list(sites_of(model)) == ["encoder.layers.0.blocks.0.attention"]
    assert [tuple(prompts.shape) for prompts in generator.layers] == [(3, 50, 8)]


@torch.no_grad()
def test_lora_updates_queries_keys_and_values_together(adapt, pixels):
    model, generator = adapt(MultiTaskLoraConfig(tasks=NAMES, rank=3, scale=0.7))
    attention = model.base_model.model.encoder.layers[1].blocks[0].attention
    projections = [attention.q_proj, attention.k_proj, attention.v_proj]
    calls = [watch(projection) for projection in projections]
    model(pixels, task=NAMES[TASK])
    update = generator[2]
    for i, (projection, [((x,), got)]) in enumerate(zip(projections, calls, strict=True)):
        up = update.up[TASK, 16 * i : 16 * (i + 1)]
        for window, token in ((0, 0), (3, 7), (len(x) - 1, 8)):
            normed = F.layer_norm(x[window, token], (16,), update.norm_weight[TASK], update.norm_bias[TASK])
            expected = projection.base_layer(x[window, token]) + 0.7 * (up @ (update.down[TASK] @ normed))
            torch.testing.assert_close(got[window, token], expected, **ROUNDING)


@pytest.mark.parametrize("config_class", [VmtAdapterConfig, VmtAdapterLiteConfig])
@torch.no_grad()
def test_vmt_adds_features_of_a_task_to_the_maps_of_a_shared_pass(adapt, make_swin, pixels, config_class):
    model, generator = adapt(config_class(tasks=NAMES, reduction_factor=2), view_encoder(make_swin()))
    blocks = model.base_model.model.encoder.layers[3].blocks
    calls = [watch(block) for block in blocks]
    maps = model(pixels[..., :96], tasks=NAMES[::-1])
    features = 0
    for block, [(args, (got, _))], site in zip(blocks, calls, generator[6:], strict=True):
        w = site.adapter
        down = w.down.weight[0]
        up = (down * w.gate[0][:, None]).T if config_class is VmtAdapterLiteConfig else w.up.weight[0]
        residual = args[0] + block.attention(block.layernorm_before(args[0]), None)[0]
        hidden = F.layer_norm(residual, (64,), w.norm_weight[0], w.norm_bias[0])
        hidden = F.gelu(F.linear(hidden, down, w.down_bias[0]))
        adapted = block.mlp.base_layer(block.layernorm_after(residual)) + F.linear(hidden, up, w.up_bias[0])
        torch.testing.assert_close(got, residual + adapted, **ROUNDING)
        features = features + F.linear(hidden * site.scale[TASK] + site.shift[TASK], up, w.up_bias[0])
    expected = (got + features).transpose(1, 2).unflatten(-1, (3, 3))
    torch.testing.assert_close(maps[NAMES[TASK]][3], expected, **ROUNDING)


# Polyhistor, arXiv:2210.03265, Table 1, and VMT-Adapter, arXiv:2312.08733: trainable parameters of Swin-T, 4 tasks.
COUNTS = [
    (SharedAdapterConfig, {}, 2_195_232),
    (SharedAdapterConfig, {"reduction_factor": 1}, 4_353_984),
    (SharedAdapterConfig, {"reduction_factor": 4}, 1_115_856),
    (BitFitConfig, {}, 299_112),
    (RelativeBiasConfig, {}, 93_288),
    (VptShallowConfig, {}, 19_200),
    (VptDeepConfig, {}, 883_200),
    (MultiTaskLoraConfig, {}, 317_952),
    (VmtAdapterConfig, {}, 1_101_456),
    (VmtAdapterLiteConfig, {}, 380_032),
]


@pytest.mark.parametrize(("config_class", "kwargs", "count"), COUNTS)
def test_trainable_parameters_are_the_papers(config_class, kwargs, count):
    with torch.device("meta"):
        base = view_encoder(SwinModel(SwinConfig()))
        trainable, _ = get_peft_model(base, config_class(**kwargs)).get_nb_trainable_parameters()
    assert trainable == count


@pytest.mark.parametrize(("shared_norms", "count"), [(False, 2_549_024), (True, 2_540_384)])
def test_decoders_weigh_what_the_papers_do(shared_norms, count):
    with torch.device("meta"):
        base = MultiTaskDenseModel.from_encoder(SwinModel(SwinConfig()), list(TASKS), shared_norms=shared_norms)
        trainable, _ = get_peft_model(base, DecodersConfig()).get_nb_trainable_parameters()
    assert trainable == count


BAD_SETTINGS = [
    (MultiTaskLoraConfig, {"rank": 0}, "`rank` must be an integer of at least 1, got 0"),
    (MultiTaskLoraConfig, {"scale": float("nan")}, "`scale` must be a finite number, got nan"),
    (
        MultiTaskLoraConfig,
        {"target_modules": ["layernorm_after"]},
        "is not a linear layer, and LoRA updates linear layers only",
    ),
    (VptDeepConfig, {"prompts": 0}, "`prompts` must be an integer of at least 1, got 0"),
    (VptShallowConfig, {"target_modules": ["mlp"]}, r"cannot put prompts into '.*mlp' \(SwinMLP\)"),
    (
        BitFitConfig,
        {"target_modules": ["drop_path"]},
        "trains parameters called bias or relative_position_bias_table, and .* has none",
    ),
    (
        VptShallowConfig,
        {"target_modules": ["layers.1.blocks.0.attention"]},
        "cannot put prompts into '.*1.blocks.0.att",
    ),
    (VptShallowConfig, {"layers_to_transform": [1]}, r"target_modules=None .* layers_to_transform=\[1\]"),
    (BitFitConfig, {"target_modules": ["mlp", "fc1"]}, "matches '.*mlp' and '.*fc1' inside it"),
    (VmtAdapterConfig, {}, "adds features to stage maps, and SwinModel has no stage maps"),
    (VmtAdapterConfig, {"sharing": "all"}, r"`sharing` must be one of \['none', 'transpose'\], got 'all'"),
    (VmtAdapterConfig, {"placement": "serial"}, "`placement` of VMT_ADAPTER must be 'parallel', got 'serial'"),
    (VmtAdapterConfig, {"target_modules": ["mlp"]}, r"takes no `target_modules`, got \['mlp'\]"),
    (DecodersConfig, {}, "trains the decoders of a MultiTaskDenseModel, got SwinModel without decoders"),
    (DecodersConfig, {"layers_to_transform": [0]}, r"adapts no module, got `layers_to_transform` \[0\]"),
]


@pytest.mark.parametrize(("config_class", "kwargs", "message"), BAD_SETTINGS)
def test_bad_settings_say_what_is_allowed(make_swin, config_class, kwargs, message):
    with pytest.raises(ValueError, match=message):
        get_peft_model(make_swin(), config_class(**kwargs))


@torch.no_grad()
def test_bitfit_takes_modules_that_are_named(make_swin, perturb, pixels):
    model = perturb(get_peft_model(make_swin(), BitFitConfig(tasks=NAMES, target_modules=["mlp"]))).double()
    assert all(name.endswith(".mlp") for name in model.targeted_module_names)
    assert not torch.equal(model(pixels, task="a").last_hidden_state, model(pixels, task="b").last_hidden_state)


class Segmenter(nn.Module):
    """A head and an encoder in an order of registration."""

    def __init__(self, encoder, order):
        super().__init__()
        parts = {"head": nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 2)), "encoder": encoder}
        for name in order:
            self.add_module(name, parts[name])

    def forward(self, pixels):
        return self.head(self.encoder(pixels).last_hidden_state)


@pytest.mark.parametrize("config_class", [BitFitConfig, SharedAdapterConfig])
@pytest.mark.parametrize("order", [["head", "encoder"], ["encoder", "head"]])
def test_a_head_keeps_its_parameters_wherever_it_is_registered(make_swin, config_class, order):
    alone = get_peft_model(make_swin(), config_class(tasks=NAMES)).targeted_module_names
    model = get_peft_model(Segmenter(make_swin(), order), config_class(tasks=NAMES))
    assert model.targeted_module_names == [f"encoder.{name}" for name in alone]


def test_a_table_called_without_a_batch_is_refused(make_swin, pixels):
    model = get_peft_model(make_swin(), RelativeBiasConfig(tasks=NAMES, target_modules=["relative_position_bias"]))
    model.float()(pixels.float(), task="a")
    with pytest.raises(ValueError, match=r"called without a tensor.*Name a module around it"):
        model(pixels.float(), tasks=["a", "b"])


class Offset(nn.Module):
    """Adds a learned vector, which a part that reads nothing makes."""

    class Vector(nn.Linear):
        def forward(self):
            return self.bias

    def __init__(self):
        super().__init__()
        self.vector = self.Vector(8, 8)

    def forward(self, x):
        return x + self.vector()


def test_an_adapter_of_a_module_that_reads_nothing_is_refused():
    model = get_peft_model(Offset(), AdapterConfig(tasks=NAMES, target_modules=["vector"]))
    with pytest.raises(ValueError, match=r"'vector' is called without a tensor.*Name a module around it"):
        model(torch.randn(2, 8), task="a")


@pytest.mark.parametrize(("first", "second"), [(["mlp"], None), (None, ["mlp"])])
def test_adapters_of_a_model_do_not_nest(make_swin, first, second):
    model = get_peft_model(make_swin(), BitFitConfig(tasks=NAMES, target_modules=first))
    with pytest.raises(ValueError, match=r"already, one within the other\..*name the same modules"):
        model.add_adapter("second", BitFitConfig(tasks=NAMES, target_modules=second))


@torch.no_grad()
def test_merging_into_a_dense_model_keeps_the_decoder_of_the_task(make_dense, perturb, pixels):
    model = perturb(get_peft_model(make_dense(), BitFitConfig(tasks=["semseg", "human_parts", "normals"]))).eval()
    expected = model(pixels.float(), tasks=["normals"]).logits["normals"]
    merged = model.merge_and_unload(task="normals")
    assert merged.config.tasks == ["normals"]
    torch.testing.assert_close(merged(pixels.float()).logits["normals"], expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_shared_norms_norm_shared_maps_once(make_dense, perturb, pixels):
    model = perturb(make_dense(shared_norms=True)).double()
    calls = [watch(norm) for norm in model.decoders.norms]
    logits = model(pixels).logits
    assert [len(of_norm) for of_norm in calls] == [1, 1, 1, 1]
    plain = make_dense().double()
    plain.encoder.load_state_dict(model.encoder.state_dict())
    for head in plain.decoders.heads.values():
        head.norms.load_state_dict(model.decoders.norms.state_dict())
    plain.decoders.heads.load_state_dict(model.decoders.heads.state_dict(), strict=False)
    torch.testing.assert_close(plain(pixels).logits, logits, **ROUNDING)
