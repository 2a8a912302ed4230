# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Bottleneck adapters become channels of the feed-forward blocks beside them, in a model of the base's own class."""

import copy

import pytest
import torch
from methods_table import PLACED_BY_FILE, ROUNDING, TASKS, check_equal, predict, predict_frozen, rows, tensors_of
from peft import get_peft_model
from torch import nn
from transformers import SwinBackbone, SwinConfig, SwinForImageClassification, SwinModel

from peft_polyhistor import (
    AdapterConfig,
    DecodersConfig,
    MultiTaskDenseModel,
    PolyhistorLiteConfig,
    SharedAdapterConfig,
)
from peft_polyhistor.config import BottleneckConfig
from peft_polyhistor.layers.baked import BakedLayer
from peft_polyhistor.tuner.merging import find_ratio


SINGLE = {"rtol": 1e-5, "atol": 1e-5}  # float32
widens = rows(lambda row: issubclass(row.config_class, BottleneckConfig) and SwinModel in row.bases)


@pytest.fixture
def beside_feed_forward(adapt, row):
    """`adapt`, with adapters beside feed-forward blocks alone."""
    return lambda model, **changes: adapt(model, sublayers=["feed_forward"], **changes)


@widens
@torch.no_grad()
def test_merges_into_the_class_of_the_base(beside_feed_forward, make_base, pixels, perturb, tmp_path):
    base = make_base()
    kind, keys = type(base), list(base.state_dict())
    model = perturb(beside_feed_forward(base))
    expected = predict(model, pixels, "human_parts")
    merged = model.merge_and_unload(task="human_parts", safe_merge=True)
    assert type(merged) is kind and [key for key in keys if "decoders" not in key] == [
        key for key in merged.state_dict() if "decoders" not in key
    ]
    check_equal(predict_frozen(merged, pixels, "human_parts"), expected, **SINGLE)
    merged.save_pretrained(tmp_path)
    loaded = kind.from_pretrained(tmp_path).eval()
    merged_maps, loaded_maps = (predict_frozen(model, pixels, "human_parts") for model in (merged, loaded))
    check_equal(loaded_maps, merged_maps, **PLACED_BY_FILE)


@widens
@torch.no_grad()
def test_merges_without_error_in_double_precision(beside_feed_forward, make_base, pixels, perturb):
    model, pixels = perturb(beside_feed_forward(make_base())).double(), pixels.double()
    expected = predict(model, pixels, "semseg")
    check_equal(predict_frozen(model.merge_and_unload(task="semseg"), pixels, "semseg"), expected, **ROUNDING)


@widens
@torch.no_grad()
def test_merges_in_bf16(beside_feed_forward, make_swin, pixels, perturb):
    """With no more than 1.2 times the error, by its norm, that bf16 leaves without merging: here 1 to 5 %."""
    model = perturb(beside_feed_forward(make_swin()))
    exact = predict(model, pixels, "semseg").last_hidden_state
    model, pixels = model.bfloat16(), pixels.bfloat16()
    apart = predict(model, pixels, "semseg").last_hidden_state
    merged = model.merge_and_unload(task="semseg")
    assert merged.dtype == torch.bfloat16
    errors = [(output - exact).norm() / exact.norm() for output in (apart, merged(pixels).last_hidden_state)]
    assert errors[1] < 1.2 * errors[0] < 0.07


@widens
@torch.no_grad()
def test_several_tasks_merge_into_copies(beside_feed_forward, make_base, pixels, perturb):
    model = perturb(beside_feed_forward(make_base()))
    before = copy.deepcopy(model.state_dict())
    merged = model.merge_and_unload(tasks=["normals", "semseg"])
    assert list(merged) == ["normals", "semseg"]
    for task, plain in merged.items():
        check_equal(predict_frozen(plain, pixels, task), predict(model, pixels, task), **SINGLE)
        if isinstance(plain, MultiTaskDenseModel):
            assert plain.config.tasks == [task]
    check_equal(model.state_dict(), before)
    pointers = [{p.data_ptr() for p in plain.parameters()} for plain in (*merged.values(), model)]
    assert sum(map(len, pointers)) == len(set.union(*pointers))
    with pytest.raises(ValueError, match=r"Tasks must be among \['semseg', 'human_parts', 'normals'\]"):
        model.merge_and_unload(tasks=["depth"])


@pytest.mark.parametrize("base", [SwinModel, SwinBackbone, SwinForImageClassification])
@torch.no_grad()
def test_the_config_says_how_wide_it_is_and_from_what(make_swin, base, perturb):
    swin = make_swin(base)
    config = swin.config
    swin.name_or_path = config.name_or_path = "someone/swin"
    merged = perturb(get_peft_model(swin, PolyhistorLiteConfig(tasks=TASKS))).merge_and_unload(task="normals")
    assert merged.config.mlp_ratio == 4.5 and type(merged.config) is SwinConfig
    assert merged.config.merged_from == {
        "peft_type": "POLYHISTOR_LITE",
        "task": "normals",
        "base_model": "someone/swin",
        "embedded_encoder": None,
    }
    assert merged.name_or_path == merged.config.name_or_path == "", (
        "an adapter for the result would name the encoder of this one"
    )
    assert config.mlp_ratio == 4.0, "another model may be built from the config of the base"
    assert all(module.config is merged.config for module in merged.modules() if hasattr(module, "config"))
    layers = [layer for layer in merged.modules() if isinstance(layer, nn.Linear)]
    assert all(layer.weight.shape == (layer.out_features, layer.in_features) for layer in layers)


@torch.no_grad()
def test_adapters_that_are_active_together_merge_together(make_swin, pixels, perturb):
    model = get_peft_model(make_swin(), AdapterConfig(tasks=["a", "b"])).eval()
    model.add_adapter("second", AdapterConfig(tasks=["b"], reduction_factor=4))
    model.base_model.set_adapter(["default", "second"])
    perturb(model)
    expected = model(pixels, task="b")
    merged = model.merge_and_unload(task="b")
    assert merged.config.mlp_ratio == 4.75
    check_equal(merged(pixels), expected, **SINGLE)


@torch.no_grad()
def test_an_adapter_merges_with_its_own_decoders(make_dense, pixels, perturb):
    model = get_peft_model(make_dense(), AdapterConfig(tasks=TASKS)).eval()
    model.add_adapter("second", AdapterConfig(tasks=TASKS))
    model.set_adapter("second")
    expected = perturb(model)(pixels, tasks=["normals"])
    model.set_adapter("default")
    before = model(pixels)
    with pytest.raises(ValueError, match=r"\['default', 'second'\] each have their own \['decoders'\].*Merge one"):
        model.merge_and_unload(adapter_names=["default", "second"], task="normals")
    merged = model.merge_and_unload(adapter_names=["second"], tasks=["normals"])["normals"]
    check_equal(merged(pixels), expected, **SINGLE)
    check_equal(model(pixels), before)
    check_equal(model.merge_and_unload(adapter_names=["second"], task="normals")(pixels), expected, **SINGLE)


@pytest.mark.parametrize("config_class", [AdapterConfig, SharedAdapterConfig])
@torch.no_grad()
def test_a_task_without_a_decoder_is_not_merged(config_class, make_dense, pixels):
    model = get_peft_model(make_dense(), config_class(tasks=[*TASKS, "edges"])).eval()
    before = model(pixels)
    for call in ({"task": "edges"}, {"tasks": ["edges"]}):
        with pytest.raises(ValueError, match=r"No decoder for \['edges'\]"):
            model.merge_and_unload(**call)
    if config_class is AdapterConfig:
        with pytest.raises(ValueError, match=r"No decoder for \['edges'\]"):
            model.bake(["edges"])
    check_equal(model(pixels), before)


def test_an_unknown_adapter_is_not_merged(make_swin):
    model = get_peft_model(make_swin(), AdapterConfig(tasks=["a"]))
    for call in ({"task": "a"}, {"tasks": ["a"]}):
        with pytest.raises(ValueError, match=r"must be among \['default'\], got \['zz'\]. Name some of them"):
            model.merge_and_unload(adapter_names=["zz"], **call)


@torch.no_grad()
def test_shared_adapters_of_other_tasks_merge_together(make_swin, pixels, perturb):
    model = get_peft_model(make_swin(), SharedAdapterConfig(tasks=["a", "b"])).eval()
    model.add_adapter("second", SharedAdapterConfig(tasks=["b", "c"]))
    model.base_model.set_adapter(["default", "second"])
    expected = perturb(model)(pixels, task="b")
    check_equal(model.merge_and_unload()(pixels), expected, **SINGLE)


@torch.no_grad()
def test_one_pass_for_all_tasks_merges_with_all_decoders(make_dense, pixels, perturb):
    model = perturb(get_peft_model(make_dense(), SharedAdapterConfig(tasks=TASKS)).eval())
    expected = model(pixels)
    merged = model.merge_and_unload()
    assert merged.config.tasks == TASKS and merged.config.merged_from["task"] is None
    check_equal(merged(pixels), expected, **SINGLE)


@torch.no_grad()
def test_a_merged_encoder_can_be_adapted_and_merged_again(make_swin, pixels, perturb):
    model = make_swin()
    for ratio in (4.5, 5.0):
        adapted = perturb(get_peft_model(model, PolyhistorLiteConfig(tasks=["a"])).eval())
        expected = adapted(pixels)
        model = adapted.merge_and_unload()
        assert model.config.mlp_ratio == ratio
        check_equal(model(pixels), expected, **SINGLE)


def set_norm(weight, bias):
    def change(model):
        norm = model.encoder.layers[1].blocks[0].layernorm_after
        norm.weight[3], norm.bias[3] = weight, bias

    return change


def nothing(model):
    pass


REFUSALS = {
    "a weight of zero": (set_norm(0.0, 0.1), {}, {}, r"blocks.0.mlp' has weight 0 and bias 0.1 in channel 3.*`bake`"),
    "a weight near zero": (set_norm(1e-3, 0.5), {}, {}, "has weight 0.001 and bias 0.5 in channel 3.*100 times"),
    "another GELU": (
        nothing,
        {"hidden_act": "gelu_new"},
        {},
        "computes with .*and adapters with the exact GELU",
    ),
    "some blocks": (
        nothing,
        {},
        {"layers_to_transform": [0, 1]},
        "one `mlp_ratio` per encoder cannot express.*`bake`",
    ),
    "in series": (nothing, {}, {"placement": "serial"}, "cannot be merged.*after all of its weights"),
    "beside attention": (
        nothing,
        {},
        {"sublayers": ["attention", "feed_forward"]},
        "cannot be merged.*parallel to attention",
    ),
    "named modules": (
        nothing,
        {},
        {"target_modules": ["o_proj"]},
        "cannot be merged.*no feed-forward block of a known",
    ),
}


@pytest.mark.parametrize(("change", "config", "settings", "message"), REFUSALS.values(), ids=REFUSALS)
@torch.no_grad()
def test_what_cannot_be_merged_is_refused_and_stays_as_it_is(
    make_swin, pixels, perturb, change, config, settings, message
):
    swin = make_swin(**config)
    change(swin)
    model = perturb(get_peft_model(swin, AdapterConfig(tasks=["a"], **settings)).eval())
    expected = model(pixels)
    with pytest.raises(ValueError, match=message):
        model.merge_and_unload()
    check_equal(model(pixels), expected)
    assert swin.config.mlp_ratio == 4.0 and not hasattr(swin.config, "merged_from")


@torch.no_grad()
def test_a_weight_near_zero_is_no_matter_where_the_bias_is_too_or_the_adapter_does_not_look(
    make_swin, pixels, perturb
):
    swin = make_swin()
    set_norm(1e-6, 1e-6)(swin)
    swin.encoder.layers[2].blocks[0].layernorm_after.weight[3] = 0
    model = perturb(get_peft_model(swin, AdapterConfig(tasks=["a"])).eval())
    model.base_model.router.generators["default"][2].norm_weight[:, 3] = 0
    expected = model(pixels)
    check_equal(model.merge_and_unload()(pixels), expected, **SINGLE)


@torch.no_grad()
def test_a_baked_adapter_predicts_in_one_with_its_block_and_follows_every_change(make_swin, pixels, perturb):
    baked = perturb(get_peft_model(make_swin(), PolyhistorLiteConfig(tasks=TASKS)).eval()).bake(TASKS[:2])
    layers = [module for module in baked.modules() if isinstance(module, BakedLayer)]
    keys = list(baked.state_dict())

    def check(tasks=(TASKS[1], TASKS[0])):
        together = baked(pixels, tasks=tasks)
        assert all(set(layer._copies.kept[1]) >= set(tasks) for layer in layers)
        with torch.enable_grad():  # where the adapter runs beside its block
            apart = baked(pixels, tasks=tasks)
        check_equal(
            {task: tuple(output.values()) for task, output in together.items()},
            {task: tuple(t.detach() for t in output.values()) for task, output in apart.items()},
            **SINGLE,
        )

    check(tasks=[TASKS[0]])
    check()
    for parameter in (layers[0].base_layer.fc1.bias, layers[0]._norm[0].weight, *baked.router.generators.parameters()):
        parameter.add_(0.1)
        check()
    baked.double()
    pixels = pixels.double()
    check()
    baked = copy.deepcopy(baked)
    layers = [module for module in baked.modules() if isinstance(module, BakedLayer)]
    layers[1].base_layer.fc2.bias.add_(1)
    check()
    layers[1]._norm[0].weight[0] = 0
    baked.router.generators["default"][1].norm_weight[1, 0] = 0  # so that one of the two tasks can be merged
    check()
    baked(pixels, tasks=TASKS[:2])
    assert [copied is None for copied in layers[1]._copies.kept[1].values()].count(True) == 1
    assert list(baked.state_dict()) == keys


def test_a_step_of_a_fused_optimiser_is_seen_by_the_next_prediction(make_swin, pixels, perturb):
    """PyTorch does not count the changes that such a step makes."""
    baked = perturb(get_peft_model(make_swin(), PolyhistorLiteConfig(tasks=TASKS)).eval()).bake()
    predict = torch.no_grad()(baked)
    before = predict(pixels, task="semseg")[0]
    trained = list(baked.router.generators.parameters())
    for parameter in trained:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(trained, lr=0.1, fused=True)
    baked(pixels, task="semseg")[0].square().sum().backward()
    predict(pixels, task="semseg")
    optimizer.step()
    for parameter in trained:
        parameter.requires_grad_(False)
    after = predict(pixels, task="semseg")[0]
    assert not torch.allclose(after, before)
    check_equal((after,), (baked(pixels, task="semseg")[0].detach(),), **SINGLE)


@torch.no_grad()
def test_baked_adapters_of_different_layers_predict_together(make_swin, pixels, perturb):
    model = get_peft_model(make_swin(), AdapterConfig(tasks=["a"], bottlenecks=[4], layers_to_transform=[0]))
    model.add_adapter("second", AdapterConfig(tasks=["a"], bottlenecks=[8, 8], layers_to_transform=[1, 2]))
    model.base_model.set_adapter(["default", "second"])
    with torch.enable_grad():  # where adapters run beside their blocks
        expected = perturb(model).eval()(pixels)
    model.requires_grad_(False)
    layers = [module for module in model.modules() if isinstance(module, BakedLayer)]
    check_equal(tuple(model(pixels).values()), tuple(t.detach() for t in expected.values()), **SINGLE)
    assert [list(layer._copies.kept[1]) for layer in layers] == [["a"]] * 3


@pytest.mark.parametrize("factor", [2, 3, 5, 7, 16])
def test_a_ratio_gives_every_width_its_channels(factor):
    sizes = [(width, 4 * width + width // factor) for width in (96, 192, 384, 768)]
    ratio = find_ratio(sizes)
    assert [int(ratio * width) for width, _ in sizes] == [inner for _, inner in sizes]
    assert find_ratio([(96, 384), (192, 816)]) is None


def test_outputs_are_of_the_size_that_tolerances_speak_of(make_swin, pixels):
    assert 1 < max(tensor.abs().max() for tensor in tensors_of(make_swin()(pixels)).values()) < 10


def test_the_only_task_of_an_adapter_is_recorded_though_it_is_not_named(make_swin):
    for config in (PolyhistorLiteConfig(tasks=["semseg"]), SharedAdapterConfig(tasks=["semseg"])):
        merged = get_peft_model(make_swin(), config).merge_and_unload()
        assert merged.config.merged_from["task"] == (None if config.shares_pass else "semseg")


def test_a_baked_adapter_is_frozen(make_swin):
    baked = get_peft_model(make_swin(), PolyhistorLiteConfig(tasks=TASKS)).bake()
    assert baked.peft_config["default"].inference_mode
    assert not any(parameter.requires_grad for parameter in baked.parameters())
    assert not any(module.training for module in baked.modules())


def test_merged_decoders_record_where_they_came_from(make_dense):
    merged = get_peft_model(make_dense(), DecodersConfig(tasks=TASKS)).merge_and_unload()
    assert merged.config.merged_from["peft_type"] == "MTL_DECODERS"
