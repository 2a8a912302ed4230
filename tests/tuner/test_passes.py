# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""One result, whatever the number of tasks that go through the encoder together and however often is generated."""

import copy

import pytest
import torch
from methods_table import (
    TASKS,
    check_equal,
    differ,
    for_two_methods,
    gradients,
    loss_of,
    rows,
    trainable,
    without_gradient,
)
from peft import get_peft_model
from tiny_models import recompute_layers
from transformers import Swinv2Config, Swinv2Model

from peft_polyhistor import BitFitConfig, MultiTaskLoraConfig, PolyhistorLiteConfig
from peft_polyhistor.tuner.passes import ENOUGH_PIXELS, choose_tasks_per_pass


EXACT = {"rtol": 1e-9, "atol": 1e-9}  # in float64; what is left is the order of sums


@pytest.fixture
def model(adapt, make_base, perturb):
    return perturb(adapt(make_base())).double()


@pytest.fixture
def step(pixels):
    """`step(model, ...)`: output and gradients of a step on all tasks, with as many to a pass as asked for."""

    def run(model, tasks_per_pass=None, tasks=TASKS):
        model.peft_config["default"].tasks_per_pass = tasks_per_pass
        model.zero_grad()
        output = model(pixels.double(), tasks=tasks)
        loss_of(output).backward()
        return output, gradients(model)

    return run


def test_tasks_per_pass_changes_no_result(model, step):
    expected, expected_gradients = step(model, len(TASKS))
    output, found = step(model, 2)
    check_equal(output, expected, **EXACT)
    torch.testing.assert_close(found, expected_gradients, **EXACT)
    assert not without_gradient(model)


@for_two_methods
def test_a_call_of_several_passes_generates_once_and_is_one_call_to_hooks(model, step):
    calls = count_calls(model)
    base = model.base_model.model
    encoder = base.encoder if hasattr(model, "decoders") else base
    encoder.register_forward_hook(lambda module, args, output: calls.append(set(output)))
    step(model, 1)
    assert calls == ["generate", set(TASKS)]


@for_two_methods
def test_tasks_keep_the_order_of_the_call(model, step):
    expected, _ = step(model)
    output, _ = step(model, 2, tasks=TASKS[::-1])
    assert list(output.logits if hasattr(output, "logits") else output) == TASKS[::-1]
    check_equal(dict(reversed(output.items())) if type(output) is dict else output, expected, **EXACT)


@rows(lambda row: not row.config_class.shares_pass)
def test_layers_are_recomputed_with_the_weights_of_their_own_pass(adapt, make_dense, perturb, step):
    model = perturb(adapt(make_dense(decoder_dropout=0.0))).double().train()
    _, expected = step(model, 2)
    recompute_layers(model)
    _, found = step(model, 2)
    torch.testing.assert_close(found, expected, **EXACT)


@for_two_methods
def test_a_pass_that_fails_ends_the_call(model, step, pixels):
    expected, _ = step(model)
    fails = iter([False, True])
    site = next(module for module in model.modules() if hasattr(module, "base_layer"))
    hook = site.register_forward_pre_hook(
        lambda module, args: pytest.fail("of the second pass") if next(fails) else None
    )
    with pytest.raises(pytest.fail.Exception, match="of the second pass"):
        step(model, 1)
    hook.remove()
    check_equal(step(model)[0], expected)


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "all"])
def test_tasks_per_pass_is_a_number_of_tasks(wrong):
    with pytest.raises(ValueError, match="`tasks_per_pass` must be an integer of at least 1"):
        PolyhistorLiteConfig(tasks_per_pass=wrong)


def test_passes_are_as_large_as_pays_and_even():
    def choose(tasks, pixels, device="meta"):
        return choose_tasks_per_pass(torch.empty(1, 3, 1, pixels, device=device), tasks)

    assert choose(8, ENOUGH_PIXELS) == 8  # an accelerator takes all
    assert [choose(tasks, ENOUGH_PIXELS // 4, "cpu") for tasks in (1, 4, 5, 8, 9)] == [1, 4, 3, 4, 3]
    assert choose(4, ENOUGH_PIXELS + 1, "cpu") == 1
    assert choose_tasks_per_pass(None, 4) == choose_tasks_per_pass(torch.empty(2, 5), 4) == 4


def test_a_backward_pass_per_task_gives_the_same_gradients(model, pixels):
    tasks = model.peft_config["default"].tasks
    outputs = {task: model(pixels.double(), tasks=[task]) for task in tasks}
    sum(loss_of(output) for output in outputs.values()).backward()
    expected = {name: gradient.clone() for name, gradient in gradients(model).items()}
    model.zero_grad()
    with model.generate_once():
        for task in tasks:
            loss_of(model(pixels.double(), tasks=[task])).backward()
    torch.testing.assert_close(gradients(model), expected, **EXACT)


@for_two_methods
def test_within_the_block_nothing_is_generated(model, pixels):
    expected = model(pixels.double(), tasks=TASKS[1:])
    calls = count_calls(model)
    with model.generate_once():
        output = model(pixels.double(), tasks=TASKS[1:])
        loss_of(output).backward()
        assert calls == ["generate"]
        assert not any(p.grad is not None for name, p in trainable(model).items() if "task_adapters" in name)
    check_equal(output, expected, **EXACT)
    assert not [name for name in without_gradient(model) if "task_adapters" in name]
    model(pixels.double(), tasks=TASKS)
    assert calls == ["generate", "generate"]


@for_two_methods
def test_a_block_that_fails_hands_no_gradient_on(model, pixels):
    def fail():
        with model.generate_once():
            loss_of(model(pixels.double(), tasks=TASKS)).backward()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not any(p.grad is not None for name, p in trainable(model).items() if "task_adapters" in name)
    loss_of(model(pixels.double(), tasks=TASKS)).backward()
    assert not without_gradient(model)


@for_two_methods
def test_another_adapter_generates_its_own_within_the_block(model, make_config, perturb, pixels):
    model.add_adapter("second", make_config())
    model.set_adapter("second")
    perturb(model.double())
    expected = model(pixels.double(), tasks=TASKS)
    model.set_adapter("default")
    with model.generate_once(), torch.no_grad():
        first = model(pixels.double(), tasks=TASKS)
        model.set_adapter("second")
        check_equal(model(pixels.double(), tasks=TASKS), expected)
        with model.disable_adapter():
            assert differ(model(pixels.double(), tasks=TASKS), first)


def count_calls(model):
    """A list that notes when weights are generated."""
    calls = []
    adapters = next(module for name, module in model.named_modules() if name.endswith("task_adapters"))
    adapters.generators["default"].register_forward_hook(lambda *_: calls.append("generate"))
    return calls


@for_two_methods
def test_a_backward_pass_after_the_block_is_an_error(model, pixels):
    with model.generate_once():
        loss = loss_of(model(pixels.double(), tasks=TASKS))
    with pytest.raises(RuntimeError, match="Call `backward` within the block"):
        loss.backward()


@for_two_methods
def test_weights_kept_without_gradient_do_not_serve_where_it_is_needed(model, pixels):
    with torch.no_grad(), model.generate_once(), torch.enable_grad():
        loss_of(model(pixels.double(), tasks=TASKS)).backward()
    assert not without_gradient(model)


@for_two_methods
def test_without_adapters_the_block_does_nothing(adapt, make_swin, pixels):
    model = adapt(make_swin())
    model.delete_adapter("default")
    with model.base_model.generate_once(), torch.no_grad():
        check_equal(model.base_model.model(pixels), make_swin()(pixels))


@for_two_methods
def test_a_copy_made_in_the_block_is_on_its_own(model, pixels, perturb):
    with torch.no_grad(), model.generate_once():
        expected = model(pixels.double(), tasks=TASKS)
        other = copy.deepcopy(model)
    check_equal(other(pixels.double(), tasks=TASKS), expected, **EXACT)
    assert differ(perturb(other)(pixels.double(), tasks=TASKS), expected)


@for_two_methods
def test_a_task_added_in_the_block_is_generated(adapt, make_swin, perturb, pixels):
    model = perturb(adapt(make_swin())).double()
    with torch.no_grad(), model.generate_once():
        expected = model(pixels.double(), task=TASKS[0])
        model.add_task("depth", from_=TASKS[0])
        check_equal(model(pixels.double(), task="depth"), expected, **EXACT)


@for_two_methods
def test_hooks_of_others_see_every_image(adapt, make_base, perturb, pixels):
    results = []
    for size in (1, len(TASKS)):
        base = make_base().double()
        encoder = getattr(base, "encoder", base) if hasattr(base, "decoders") else base
        encoder.register_forward_pre_hook(lambda module, args: (args[0] * 1.1, *args[1:]))
        torch.manual_seed(0)
        model = perturb(adapt(base, tasks_per_pass=size)).double()
        results.append(model(pixels.double(), tasks=TASKS))
    check_equal(*results, **EXACT)


@torch.no_grad()
@pytest.mark.parametrize(("config_class", "name"), [
    (MultiTaskLoraConfig, "continuous_position_bias_mlp.0"), (BitFitConfig, "continuous_position_bias_mlp"),
])  # fmt: skip
def test_a_module_that_is_called_without_the_images_mixes_no_tasks(config_class, name, perturb):
    sizes = {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 5, "image_size": 40}
    swin = Swinv2Model(Swinv2Config(**sizes, drop_path_rate=0.0)).eval()
    model = perturb(get_peft_model(swin, config_class(tasks=TASKS, target_modules=[name])))
    pixels = torch.randn(1, 3, 40, 40)
    with pytest.raises(ValueError, match=r"shape \(1, 9, 9, 2\), whose rows do not belong to the 1 images of 3 tasks"):
        model(pixels, tasks=TASKS)
    model.peft_config["default"].tasks_per_pass = 1
    together = model(pixels, tasks=TASKS)
    for task in TASKS:
        check_equal(together[task].to_tuple(), model(pixels, task=task).to_tuple())
