# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""A call of an adapted model: its tasks, its state, and what others put around the encoder."""

import inspect
import threading
from functools import partial
from types import MethodType

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from methods_table import (
    TASKS,
    check_equal,
    differ,
    for_two_methods,
    gradients,
    loss_of,
    predict,
    predict_frozen,
    rows,
    trainable,
)
from peft import get_peft_model
from tiny_models import perturb, recompute_layers
from torch import nn

from peft_polyhistor import AdapterConfig, DecodersConfig, MultiTaskDenseModel, PolyhistorLiteConfig


def in_threads(*functions):
    """Runs the functions at the same time, several times each, and returns the results of each."""
    results = [[] for _ in functions]
    start = threading.Barrier(len(functions))

    def run(function, found):
        start.wait()
        for _ in range(5):
            found.append(function())

    threads = [threading.Thread(target=run, args=pair) for pair in zip(functions, results, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(len(found) == 5 for found in results)
    return results


# Threads


def test_threads_get_the_outputs_of_their_own_call(adapt, make_base, perturb):
    """And of their own image size, where the encoder takes any (SwinModel does not)."""
    model = perturb(adapt(make_base())).double()
    sizes = [(96, 96), (64, 64), (96, 160)] if hasattr(model, "decoders") else [(96, 96)] * 3
    calls = [(task, torch.randn(1, 3, *size).double()) for task, size in zip(TASKS, sizes, strict=True)]
    run = torch.no_grad()(lambda task, pixels: predict(model, pixels, task))  # by thread, as all modes are
    expected = [run(*call) for call in calls]
    found = in_threads(*(partial(run, *call) for call in calls))
    for outputs, output in zip(found, expected, strict=True):
        for other in outputs:
            check_equal(other, output)


@for_two_methods
def test_threads_recompute_layers_of_their_own_pass(adapt, make_swin, perturb):
    model = perturb(adapt(make_swin())).double().train()
    recompute_layers(model.base_model.model)
    parameters = list(trainable(model).values())

    def gradients_of(task, pixels):
        torch.manual_seed(0)
        output = model(pixels, task=task)
        return torch.autograd.grad(sum(tensor.square().sum() for tensor in output.values()), parameters)

    calls = [(task, torch.randn(1, 3, 96, 96).double()) for task in TASKS]
    expected = [gradients_of(*call) for call in calls]
    for results, gradient in zip(in_threads(*(partial(gradients_of, *c) for c in calls)), expected, strict=True):
        for found in results:
            torch.testing.assert_close(found, gradient)


@for_two_methods
def test_a_block_of_one_thread_is_not_that_of_another(adapt, make_swin, perturb, pixels):
    model = perturb(adapt(make_swin()))
    with model.generate_once():
        thread = threading.Thread(target=lambda: loss_of(model(pixels, task="semseg")).backward())
        thread.start()
        thread.join()
        found = {name: gradient.clone() for name, gradient in gradients(model).items() if gradient is not None}
    model.zero_grad()
    loss_of(model(pixels, task="semseg")).backward()
    assert found
    torch.testing.assert_close(found, {name: gradients(model)[name] for name in found})


# One encoder in several models, and its replicas


@pytest.mark.parametrize("second", [AdapterConfig, DecodersConfig])
def test_an_encoder_with_adapters_of_another_model_is_refused(make_swin, second):
    first = MultiTaskDenseModel.from_encoder(make_swin(), TASKS, decoder_width=12)
    adapted = get_peft_model(first, PolyhistorLiteConfig(tasks=TASKS))
    other = MultiTaskDenseModel.from_encoder(first.encoder, TASKS, decoder_width=12)
    with pytest.raises(ValueError, match=r"mlp' carries adapters of another model.*Call `unload\(\)` on that model"):
        get_peft_model(other, second(tasks=TASKS))
    adapted.unload()
    get_peft_model(other, second(tasks=TASKS))


def test_a_model_that_is_adapted_again_has_the_new_adapter(make_swin, pixels, perturb):
    """The notebook cell that adapts a model runs twice. LoRA starts anew as well."""
    swin = make_swin()
    perturb(get_peft_model(swin, AdapterConfig(tasks=TASKS)))
    model = get_peft_model(swin, AdapterConfig(tasks=["depth"], reduction_factor=4)).eval()
    check_equal(predict_frozen(model, pixels, "depth"), predict_frozen(make_swin(), pixels, "depth"))
    loss_of(model(pixels, task="depth")).backward()
    assert any(gradient is not None and gradient.any() for gradient in gradients(model).values())


def replicate(model):
    """The replica of a model that `nn.DataParallel` makes, with parameters of its own."""
    copies = {module: module._replicate_for_data_parallel() for module in model.modules()}
    for module, copied in copies.items():
        for name, child in module._modules.items():
            copied._modules[name] = copies.get(child)
        for name, parameter in module._parameters.items():
            copied.__dict__[name] = None if parameter is None else parameter * 1  # as a broadcast, with a graph
    return copies[model]


@rows(lambda row: row.config_class is not DecodersConfig)
def test_replicas_of_data_parallel_predict_and_train(adapt, make_base, pixels, perturb):
    model = perturb(adapt(make_base())).double()
    replicas, parts = [replicate(model) for _ in range(2)], list(pixels.double().split(1))
    for output, part in zip(
        [predict(r, p, "normals") for r, p in zip(replicas, parts, strict=True)], parts, strict=True
    ):
        check_equal(output, predict(model, part, "normals"))
        loss_of(output).backward()
    found = gradients(model)
    found = {name: gradient.clone() for name, gradient in found.items() if gradient is not None}
    model.zero_grad()
    for part in parts:
        loss_of(predict(model, part, "normals")).backward()
    torch.testing.assert_close(found, {name: g for name, g in gradients(model).items() if g is not None})


def test_a_replica_runs_its_own_encoder(make_swin, pixels):
    replica = replicate(get_peft_model(make_swin(), AdapterConfig(tasks=["depth"])).eval())
    before = replica(pixels)
    replica.base_model.model.embeddings.patch_embeddings.projection.__dict__["bias"] += 1
    assert differ(replica(pixels), before)


@torch.no_grad()
def test_a_replica_of_a_baked_model_keeps_its_adapters(make_swin, pixels):
    baked = perturb(get_peft_model(make_swin(), PolyhistorLiteConfig(tasks=TASKS)).eval()).bake()
    replica, expected = replicate(baked), baked(pixels, tasks=TASKS)
    check_equal(replica(pixels, tasks=TASKS), expected, rtol=1e-5, atol=1e-5)


# Outputs and arguments of models that nobody knows


class Prototypes(nn.Module):
    """Compares images with prototypes: an output and an argument that are not per image, and one that is a loss."""

    def __init__(self, swin):
        super().__init__()
        self.swin = swin
        self.prototypes = nn.Parameter(torch.randn(4, 64))

    def forward(self, pixel_values, scales=None):
        prototypes = nn.functional.normalize(self.prototypes) * (1 if scales is None else scales.mean())
        scores = self.swin(pixel_values).pooler_output @ prototypes.T
        return {"scores": scores, "by prototype": scores.T, "prototypes": prototypes, "loss": scores.mean()}


@torch.no_grad()
@pytest.mark.parametrize("tasks_per_pass", [None, 2])
@pytest.mark.parametrize("images", [1, 2, 3, 4])
def test_outputs_that_are_not_per_image_are_those_of_one_task(make_swin, images, tasks_per_pass):
    config = AdapterConfig(tasks=["a", "b"], tasks_per_pass=tasks_per_pass)
    model = perturb(get_peft_model(Prototypes(make_swin()), config).eval())
    pixels, scales = torch.randn(images, 3, 96, 96), torch.rand(images)
    outputs = model(pixels, scales, tasks=["a", "b"])
    for task in "ab":
        check_equal(outputs[task], model(pixels, scales, task=task))


# Models whose own `forward` takes a task


class Heads(nn.Module):
    """A model of several tasks of its own."""

    def __init__(self, swin):
        super().__init__()
        self.swin = swin
        self.heads = nn.ModuleDict({task: nn.Linear(64, 2) for task in "ab"})

    def forward(self, pixel_values, task):
        return self.heads[task](self.swin(pixel_values).pooler_output)


class ManyHeads(Heads):
    def forward(self, pixel_values, tasks):
        pooled = self.swin(pixel_values).pooler_output
        return {task: self.heads[task](pooled) for task in tasks}


@torch.no_grad()
def test_a_model_of_tasks_is_told_the_task(make_swin, pixels):
    frozen = Heads(make_swin()).eval()
    model = get_peft_model(frozen, AdapterConfig(tasks=["a", "b"])).eval()
    expected = {task: frozen.heads[task](make_swin()(pixels).pooler_output) for task in "ab"}
    for task in "ab":
        check_equal(model(pixels, task=task), expected[task])
    check_equal(model(pixels, tasks=["b", "a"]), {"b": expected["b"], "a": expected["a"]})
    perturb(model)
    assert differ(model(pixels, task="a"), expected["a"])
    with model.disable_adapter():
        check_equal(model(pixels, tasks=["a", "b"]), expected)
    check_equal(model.unload()(pixels, task="a"), expected["a"])


@torch.no_grad()
def test_a_model_of_tasks_is_told_the_tasks(make_swin, pixels):
    frozen = ManyHeads(make_swin()).eval()
    model = get_peft_model(frozen, AdapterConfig(tasks=["a", "b"])).eval()
    expected = {task: {task: frozen.heads[task](make_swin()(pixels).pooler_output)} for task in "ab"}
    check_equal(model(pixels, tasks=["a", "b"]), expected)
    check_equal(model.unload()(pixels, tasks=["a"]), expected["a"])


# Modules and hooks of others around the encoder


@for_two_methods
@torch.no_grad()
def test_observation_changes_no_number_of_passes(adapt, make_base, pixels):
    counts = []
    for is_observed in (False, True):
        model = adapt(make_base(), tasks_per_pass=1)
        passes = []
        base = model.base_model.model
        encoder = base.encoder if isinstance(base, MultiTaskDenseModel) else base
        encoder.embeddings.register_forward_hook(lambda *_, passes=passes: passes.append(1))
        if is_observed:
            encoder.register_forward_pre_hook(lambda *_: None)
            encoder.register_forward_hook(lambda *_: None)
        model(pixels, tasks=TASKS)
        counts.append(len(passes))
    assert counts == [3, 3]


@torch.no_grad()
def test_a_model_that_was_unloaded_is_adapted_like_a_new_one(make_swin, pixels):
    swin, passes = make_swin(), []
    swin.encoder.register_forward_hook(lambda *_: passes.append(1))
    for _ in range(2):
        passes.clear()
        model = get_peft_model(swin, AdapterConfig(tasks=TASKS, tasks_per_pass=1))
        model(pixels, tasks=TASKS)
        assert len(passes) == 3
        swin = model.unload()


def parts_of(model):
    """Class, attributes and numbers of hooks of every module; `peft_config` is what PEFT leaves."""
    return {
        name: (type(m), vars(m).keys() - {"peft_config"}, len(m._forward_pre_hooks), len(m._forward_hooks))
        for name, m in model.named_modules()
    }


def test_unload_leaves_nothing_behind(adapt, make_base, pixels):
    base = make_base()
    if isinstance(base, MultiTaskDenseModel):
        recompute_layers(base)
    before = parts_of(base)
    model = adapt(base).train()
    loss_of(predict(model, pixels, "semseg")).backward()
    found = parts_of(model.unload().eval())
    for name, attributes in before.items():
        assert found[name] == attributes, name
    assert found.keys() == before.keys()


@for_two_methods
@torch.no_grad()
def test_without_adapters_a_task_is_what_it_is_to_the_base(adapt, make_base, pixels):
    """transformers' Swin swallows keywords; an encoder of stages gives each task the same maps."""
    model = adapt(make_base())
    model.delete_adapter("default")
    for base in (model.base_model.model, model.base_model.unload()):
        check_equal(predict(base, pixels, "semseg"), predict_frozen(base, pixels, "semseg"))


@rows(lambda row: row.config_class is not DecodersConfig)
@torch.no_grad()
def test_a_call_without_adapters_needs_no_task(adapt, make_swin, pixels, perturb):
    base = make_swin()
    expected = base(pixels)
    model = adapt(base)
    perturb(model)
    with model.disable_adapter():
        check_equal(model(pixels), expected)


@torch.no_grad()
def test_the_frozen_pass_keeps_no_stream(make_swin, pixels):
    model, kept = get_peft_model(make_swin(), PolyhistorLiteConfig(tasks=TASKS)).eval(), []
    router = model.base_model.router
    model.base_model.model.layernorm.register_forward_pre_hook(lambda *_: kept.append(dict(router.route.streams)))
    model(pixels, task=TASKS[0])
    with model.disable_adapter():
        model(pixels, task=TASKS[0])
    assert kept == [{}, {}]


class Doubling(ModelHook):
    """A hook of accelerate, which takes the place of `forward`."""

    def pre_forward(self, module, *args, **kwargs):
        return tuple(2 * arg for arg in args), kwargs


@for_two_methods
@torch.no_grad()
@pytest.mark.parametrize("is_first", [True, False])
def test_a_forward_of_accelerate_is_kept(adapt, make_swin, perturb, pixels, is_first):
    """Whoever comes first, and when accelerate adds and removes hooks later."""
    swin = make_swin()
    if is_first:
        add_hook_to_module(swin, Doubling())
    model = perturb(adapt(swin))
    if not is_first:
        add_hook_to_module(swin, Doubling())
    doubled = model(pixels, tasks=TASKS)
    remove_hook_from_module(swin)
    check_equal(model(2 * pixels, tasks=TASKS), doubled)
    add_hook_to_module(swin, Doubling())
    check_equal(model(pixels, tasks=TASKS), doubled)
    unloaded = model.unload()
    check_equal(unloaded(pixels), make_swin()(2 * pixels))
    remove_hook_from_module(unloaded)
    check_equal(unloaded(pixels), make_swin()(pixels))
    assert unloaded.forward == MethodType(type(unloaded).forward, unloaded)


@for_two_methods
@torch.no_grad()
def test_any_other_forward_of_the_model_is_kept(adapt, make_swin, pixels):
    swin = make_swin()
    own, calls = swin.forward, []
    swin.forward = lambda *args, **kwargs: calls.append(kwargs) or own(*args, **kwargs)
    mine = swin.forward
    model = adapt(swin)
    model(pixels, task="semseg")
    assert calls == [{}]
    assert model.unload().forward is mine


def test_the_signature_is_that_of_the_model(adapt, make_base):
    """`Trainer` drops the columns of a data set that it does not name."""
    model = adapt(make_base())
    assert inspect.signature(model.base_model.model.forward) == inspect.signature(make_base().forward)
