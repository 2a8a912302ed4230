# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Adapters are disabled, unloaded, merged and copied, for every method."""

import copy
import pickle

import pytest
import torch
from methods_table import (
    ROUNDING,
    TASKS,
    check_equal,
    differ,
    every_method,
    for_two_methods,
    gradients,
    loss_of,
    predict,
    predict_frozen,
    rows,
    trainable,
)
from peft import get_peft_model, inject_adapter_in_model
from tiny_models import perturb, recompute_layers

from peft_polyhistor import DecodersConfig, PolyhistorConfig, PolyhistorLiteConfig


@torch.no_grad()
def test_disabled_it_is_the_frozen_model_bit_for_bit(adapt, make_base, pixels, perturb):
    model = adapt(make_base())
    decoders = copy.deepcopy(model.decoders.state_dict()) if hasattr(model, "decoders") else None
    perturb(model)
    if decoders:
        model.decoders.load_state_dict(decoders)
    adapted = predict(model, pixels, "semseg")
    with model.disable_adapter():
        check_equal(predict(model, pixels, "semseg"), predict_frozen(make_base(), pixels, "semseg"))
        if not decoders:
            by_task = model(pixels, tasks=TASKS[:2])
            assert list(by_task) == TASKS[:2]
            check_equal(by_task["semseg"], predict_frozen(make_base(), pixels, "semseg"))
            with pytest.raises(ValueError, match=r"Tasks must be among \['semseg', .*got \['depth'\]"):
                model(pixels, task="depth")
    check_equal(predict(model, pixels, "semseg"), adapted)


@every_method
@torch.no_grad()
def test_unloads_to_the_frozen_model_bit_for_bit(adapt, make_base, pixels, perturb):
    """A dense model keeps its trained decoders."""
    base = perturb(adapt(make_base())).unload()
    expected = make_base()
    if hasattr(base, "decoders"):
        expected.decoders.load_state_dict(base.decoders.state_dict())
    assert type(base) is type(expected)
    assert [(name, type(module)) for name, module in base.named_modules()] == [
        (name, type(module)) for name, module in expected.named_modules()
    ]
    check_equal(predict_frozen(base, pixels, "semseg"), predict_frozen(expected, pixels, "semseg"))


@for_two_methods
def test_a_refused_adapter_leaves_nothing_behind(adapt, make_config, make_swin, pixels):
    model = adapt(make_swin())
    with pytest.raises(ValueError, match="Adapters of one model share a placement"):
        model.add_adapter("second", make_config(tasks=["x"], placement="serial"))
    model.add_adapter("second", make_config(tasks=["y"]))
    model.set_adapter("second")
    model(pixels, task="y")
    with pytest.raises(ValueError, match=r"Tasks must be among \['y'\]"):
        model(pixels, task="x")
    frozen = make_swin()
    with pytest.raises(ValueError, match="leaves no bottleneck"):
        adapt(frozen, reduction_factor=999)
    assert [name for name, _ in frozen.named_modules()] == [name for name, _ in make_swin().named_modules()]
    check_equal(frozen(pixels), make_swin()(pixels))


def test_methods_do_not_mix_in_one_model(make_swin):
    model = make_swin()
    inject_adapter_in_model(PolyhistorLiteConfig(tasks=TASKS), model, "a")
    with pytest.raises(ValueError, match="carries adapters of another method, and one model carries adapters of"):
        inject_adapter_in_model(PolyhistorConfig(tasks=TASKS), model, "b")


@for_two_methods
def test_checkpointing_survives_unloading(adapt, make_dense, pixels):
    """The base recomputes its layers, before and after, with the gradients of a base that keeps them."""

    def adapt_alike(base):
        torch.manual_seed(4)
        return perturb(adapt(base)).double().train()

    bases = [make_dense(decoder_dropout=0.0) for _ in range(2)]
    recompute_layers(bases[1])
    calls = [count_calls(base.encoder.encoder.layers[2].blocks[0].mlp) for base in bases]
    for _ in range(2):
        models = [adapt_alike(base) for base in bases]
        for model in models:
            model.zero_grad()
            loss_of(predict(model, pixels.double(), "semseg")).backward()
        check_equal(*({n: g for n, g in gradients(m).items() if g is not None} for m in models), **ROUNDING)
        bases = [model.unload() for model in models]
    assert [len(found) for found in calls] == [2, 6]  # recomputed with its stage, and by itself
    for base in bases:
        base.requires_grad_(True).zero_grad()
        loss_of(base(pixels.double(), tasks=["semseg"])).backward()
    check_equal(*(gradients_of_encoder(base) for base in bases), **ROUNDING)
    assert len(calls[0]) == 3 and len(calls[1]) > 6


def count_calls(module):
    calls = []
    module.register_forward_hook(lambda *_: calls.append(1))
    return calls


def gradients_of_encoder(model):
    return {name: p.grad for name, p in model.encoder.named_parameters() if p.grad is not None}


@rows(lambda row: not row.merges)
def test_refuses_to_merge_and_stays_as_it_is(adapt, make_swin, pixels, perturb):
    model = perturb(adapt(make_swin()))
    expected = predict(model, pixels, "semseg")
    with pytest.raises(ValueError, match=r"cannot be merged.*`unload\(\)`"):
        model.merge_and_unload(task="semseg")
    with pytest.raises(ValueError, match=r"of several tasks.*`merge_and_unload\(task=...\)`"):
        model.merge_adapter()
    check_equal(predict(model, pixels, "semseg"), expected)


@rows(lambda row: row.merges)
@torch.no_grad()
def test_merges_for_one_task(adapt, make_config, make_base, pixels, perturb):
    model = perturb(adapt(make_base()))
    if not hasattr(model, "decoders"):  # of which one set is active at a time
        model.add_adapter("second", make_config())
        model.base_model.set_adapter(["default", "second"])
    perturb(model).double()
    for bad in ("depth",) if model.router.shares_pass else (None, "depth"):
        with pytest.raises(ValueError, match=r"semseg', 'human_parts', 'normals'"):
            model.merge_and_unload(task=bad)
    expected = predict(model, pixels.double(), "human_parts")
    merged = model.merge_and_unload(task="human_parts", safe_merge=True)
    check_equal(predict_frozen(merged, pixels.double(), "human_parts"), expected, **ROUNDING)


@rows(lambda row: row.merges)
def test_an_adapter_is_merged_once(adapt, make_base):
    model = adapt(make_base())
    model.merge_and_unload(task="semseg")
    for again in ({"task": "normals"}, {"tasks": ["normals"]}):
        with pytest.raises(ValueError, match=r"\['default'\] are no longer in the model.*pass `tasks=\[...\]`"):
            model.merge_and_unload(**again)


def test_decoders_without_adapters_are_merged_again(make_dense):
    model = get_peft_model(make_dense(), DecodersConfig(tasks=TASKS))
    assert model.merge_and_unload() is model.merge_and_unload()


@rows(lambda row: row.merges)
@torch.no_grad()
def test_a_merge_that_is_not_finite_is_refused(adapt, make_swin, pixels):
    model = adapt(make_swin())
    next(iter(trainable(model).values())).fill_(torch.nan)
    with pytest.raises(ValueError, match="'semseg' would merge into parameters that are not finite"):
        model.merge_and_unload(task="semseg", safe_merge=True)


def test_copies_are_equal_and_independent(row, adapt, make_base, pixels, perturb):
    model = perturb(adapt(make_base()))
    loss_of(predict(model, pixels, "semseg")).backward()
    expected = predict(model, pixels, "semseg")
    other = copy.deepcopy(model)
    perturb(model)
    assert differ(predict(model, pixels, "semseg"), expected)
    model.unload()
    check_equal(predict(other, pixels, "semseg"), expected)
    assert [type(module) for module in other.unload().modules()] == [type(module) for module in make_base().modules()]


@torch.no_grad()
def test_pickles(adapt, make_base, pixels, perturb):
    model = perturb(adapt(make_base()))
    other = pickle.loads(pickle.dumps(model))  # not of SwinBackbone: transformers' hooks do not pickle
    check_equal(predict(other, pixels, "semseg"), predict(model, pixels, "semseg"))
    unloaded = other.unload()
    check_equal(predict_frozen(unloaded, pixels, "semseg"), predict_frozen(model.unload(), pixels, "semseg"))
