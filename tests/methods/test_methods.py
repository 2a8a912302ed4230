# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""What every method promises as a PEFT method, one function per promise. A new method is one row of the table."""

import copy
import gc
import itertools
import pickle
import re
import warnings

import pytest
import torch
from methods_table import (
    BLOCKS,
    PLACED_BY_FILE,
    ROUNDING,
    TASKS,
    check_equal,
    differ,
    few_by_default,
    for_two_methods,
    gradients,
    loss_of,
    predict,
    predict_frozen,
    rows,
    trainable,
    without_gradient,
)
from peft import PeftModel, get_peft_model, get_peft_model_state_dict, inject_adapter_in_model
from safetensors.torch import load_file
from tiny_models import recompute_layers
from torch import nn
from torch.nn import functional as F
from transformers import SwinBackbone, SwinForImageClassification

from peft_polyhistor import (
    AdapterConfig,
    DecodersConfig,
    MultiTaskDenseModel,
    PolyhistorConfig,
    PolyhistorLiteConfig,
)
from peft_polyhistor.config import BottleneckConfig


# The start, and what trains


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


# Saving and loading


@torch.no_grad()
def test_loads_under_another_name_bit_for_bit(adapt, make_base, pixels, perturb, tmp_path):
    model = perturb(adapt(make_base()))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_base(), tmp_path, adapter_name="other").eval()
    assert list(loaded.peft_config) == ["other"]
    for task in TASKS:
        expected = predict(model, pixels, task)
        assert differ(expected, predict_frozen(make_base(), pixels, task))
        check_equal(predict(loaded, pixels, task), expected)
    loaded.save_pretrained(tmp_path / "again", selected_adapters=["other"])
    first = load_file(tmp_path / "adapter_model.safetensors")
    second = load_file(tmp_path / "again" / "other" / "adapter_model.safetensors")
    check_equal(second, first)


def test_saves_what_trains_and_nothing_else(adapt, make_base, perturb, tmp_path):
    model = perturb(adapt(make_base()))
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    buffers = {name: buffer for name, buffer in model.named_buffers() if "decoders.modules_to_save.default" in name}
    expected = {
        re.sub(r"(\.modules_to_save)?\.default\.", ".", name): tensor.data
        for name, tensor in {**trainable(model), **buffers}.items()
    }
    check_equal(load_file(tmp_path / "adapter_model.safetensors"), expected)


@few_by_default
@torch.no_grad()
def test_loads_without_the_usual_memory(adapt, make_base, pixels, perturb, tmp_path):
    model = perturb(adapt(make_base()))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_base(), tmp_path, low_cpu_mem_usage=True).eval()
    assert not any(parameter.is_meta for parameter in loaded.parameters())
    check_equal(get_peft_model_state_dict(loaded), get_peft_model_state_dict(model))
    check_equal(predict(loaded, pixels, "normals"), predict(model, pixels, "normals"), **PLACED_BY_FILE)


@few_by_default
@torch.no_grad()
def test_an_adapter_of_a_dense_model_loads_onto_its_bare_encoder(adapt, make_dense, make_swin, perturb, tmp_path):
    pixels = torch.randn(2, 3, 96, 96)
    dense = perturb(adapt(make_dense()))
    dense.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", FutureWarning)  # of transformers, about a call of PEFT
        bare = PeftModel.from_pretrained(make_swin(), tmp_path).eval()
    for task in TASKS:
        output = bare(pixels, task=task, output_hidden_states=True, output_hidden_states_before_downsampling=True)
        expected = dense.base_model.model.encoder(pixels, tasks=[task])[task]
        check_equal(list(output.reshaped_hidden_states[1:]), list(expected))


def test_one_config_adapts_several_encoders(make_config, make_swin):
    config = make_config()
    models = [get_peft_model(make_swin(embed_dim=width), config) for width in (8, 16, 8)]
    sizes = [sum(p.numel() for p in trainable(model).values()) for model in models]
    assert sizes[0] == sizes[2]
    assert models[0].peft_config["default"] is config  # as PEFT has it
    models[0].remove_task(TASKS[0])
    assert models[1].peft_config["default"].tasks == TASKS  # what one does to its adapter is not done to another's


def test_an_adapter_of_other_settings_does_not_load(adapt, make_swin, tmp_path):
    adapt(make_swin()).save_pretrained(tmp_path)
    with pytest.raises((ValueError, RuntimeError), match=r"was made for an encoder with|size mismatch"):
        PeftModel.from_pretrained(make_swin(embed_dim=16, window_size=2), tmp_path)


@for_two_methods
@pytest.mark.parametrize("tasks", [TASKS[:2], [*TASKS[:2], "saliency"]], ids=str)
def test_a_dense_model_needs_an_adapter_for_each_decoder(adapt, make_dense, tasks, tmp_path):
    message = rf"for the tasks \[.*{tasks[-1]}'\].*no adapter for \['normals'\]"
    with pytest.raises(ValueError, match=message):
        adapt(make_dense(), tasks=tasks)
    adapt(make_dense(tasks), tasks=tasks).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        PeftModel.from_pretrained(make_dense(), tmp_path)


@few_by_default
@torch.no_grad()
def test_an_adapter_with_decoders_loads_onto_a_dense_model_of_fewer(adapt, make_dense, pixels, perturb, tmp_path):
    model = perturb(adapt(make_dense()))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_dense(["normals", "semseg"]), tmp_path).eval()
    for task in ("normals", "semseg"):
        check_equal(predict(loaded, pixels, task), predict(model, pixels, task))


@few_by_default
@torch.no_grad()
def test_an_adapter_without_decoders_leaves_those_of_a_dense_model(
    adapt, make_dense, make_swin, pixels, perturb, tmp_path
):
    perturb(adapt(make_swin())).save_pretrained(tmp_path)
    plain = make_dense()
    loaded = PeftModel.from_pretrained(make_dense(), tmp_path).eval()
    maps = loaded.base_model.model.encoder(pixels, tasks=["normals"])["normals"]
    assert differ(maps, plain.encoder(pixels))
    logits = loaded(pixels, tasks=["normals"], full_resolution=False).logits["normals"]
    check_equal(logits, plain.decoders.heads["normals"](maps))


@rows(lambda row: row.starts_frozen)
@torch.no_grad()
def test_a_dense_model_may_have_fewer_decoders_than_the_adapter_has_tasks(adapt, make_dense, pixels):
    model, pixels = adapt(make_dense(TASKS[:2])).double(), pixels.double()
    check_equal(model(pixels).logits, make_dense(TASKS[:2]).double()(pixels).logits, **ROUNDING)
    with pytest.raises(ValueError, match=r"No decoder for \['normals'\]"):
        model(pixels, tasks=["normals"])


# Taking adapters off and on


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


def hooks_of_ours(model):
    hooks = (hook for m in model.modules() for d in (m._forward_pre_hooks, m._forward_hooks) for hook in d.values())
    return [hook for hook in hooks if hook.__module__.startswith("peft_polyhistor")]


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
    assert [hook.__name__ for hook in hooks_of_ours(base)] in ([], ["refuse_tasks"])
    check_equal(predict_frozen(base, pixels, "semseg"), predict_frozen(expected, pixels, "semseg"))


@for_two_methods
def test_a_task_is_refused_where_adapters_are_gone(adapt, make_swin, pixels):
    model = adapt(make_swin())
    base = model.unload()
    for call in ({"task": "semseg"}, {"tasks": ["semseg"]}):
        with pytest.raises(ValueError, match=r"SwinModel carries no adapters any more, got \{'task"):
            base(pixels, **call)
    adapt(base)(pixels, task="semseg")  # and is taken again by the next adapter
    assert sum(hook.__name__ == "refuse_tasks" for hook in hooks_of_ours(base)) == 1


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
    assert hooks_of_ours(frozen) == []
    assert "task_adapters" not in dict(frozen.named_modules())


def test_methods_do_not_mix_in_one_model(make_swin):
    model = make_swin()
    inject_adapter_in_model(PolyhistorLiteConfig(tasks=TASKS), model, "a")
    with pytest.raises(ValueError, match="carries adapters of another method, and POLYHISTOR adapters cannot join"):
        inject_adapter_in_model(PolyhistorConfig(tasks=TASKS), model, "b")


@for_two_methods
def test_checkpointing_survives_unloading(adapt, make_dense, pixels):
    dense = make_dense()
    recompute_layers(dense)
    for _ in range(2):
        model = adapt(dense).train()
        predict(model, pixels, "semseg").logits["semseg"].sum().backward()
        dense = model.unload()


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
    for bad in (None, "depth"):
        with pytest.raises(ValueError, match=r"semseg', 'human_parts', 'normals'"):
            model.merge_and_unload(task=bad)
    expected = predict(model, pixels.double(), "human_parts")
    merged = model.merge_and_unload(task="human_parts", safe_merge=True)
    assert hooks_of_ours(merged) == [] or not isinstance(merged, MultiTaskDenseModel)
    check_equal(predict_frozen(merged, pixels.double(), "human_parts"), expected, **ROUNDING)


@rows(lambda row: row.merges)
@torch.no_grad()
def test_a_merge_that_is_not_finite_is_refused(adapt, make_swin, pixels):
    model = adapt(make_swin())
    next(iter(trainable(model).values())).fill_(torch.nan)
    with pytest.raises(ValueError, match="'semseg' would merge into parameters that are not finite"):
        model.merge_and_unload(task="semseg", safe_merge=True)


# The tasks of a trained adapter


@torch.no_grad()
def test_a_task_is_added_and_taken_away(row, adapt, make_base, pixels, perturb, tmp_path):
    model = perturb(adapt(make_base()))
    expected = {task: predict(model, pixels, task) for task in TASKS}
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    model.add_task("saliency", from_="human_parts")
    assert model.peft_config["default"].tasks == [*TASKS, "saliency"]
    assert {**flags, **{n: p.requires_grad for n, p in model.named_parameters() if n in flags}} == flags
    for task in TASKS:
        check_equal(predict(model, pixels, task), expected[task])
    encoder = model.base_model.model.encoder if hasattr(model, "decoders") else model
    maps = encoder(pixels, tasks=["saliency", "human_parts"])
    check_equal(maps["saliency"], maps["human_parts"])
    perturb(model)
    expected = {task: predict(model, pixels, task) for task in [*TASKS, "saliency"]}
    model.save_pretrained(tmp_path)
    fresh = make_base()
    if isinstance(fresh, MultiTaskDenseModel):
        fresh.add_task("saliency")
    loaded = PeftModel.from_pretrained(fresh, tmp_path).eval()
    for task, output in expected.items():
        check_equal(predict(loaded, pixels, task), output)
    model.remove_task("human_parts")
    assert model.peft_config["default"].tasks == ["semseg", "normals", "saliency"]
    for task in ("saliency", "semseg", "normals"):
        check_equal(predict(model, pixels, task), expected[task])
    with pytest.raises(ValueError, match="human_parts"):
        predict(model, pixels, "human_parts")


@rows(lambda row: not row.tasks_agree)
@torch.no_grad()
def test_a_new_task_may_start_as_the_mean(adapt, make_dense, pixels, perturb):
    model = perturb(adapt(make_dense()))
    model.add_task("saliency")
    maps = model.base_model.model.encoder(pixels, tasks=["saliency", *TASKS])
    assert all(differ(maps["saliency"], maps[task]) for task in TASKS)
    assert model(pixels, tasks=["saliency"]).logits["saliency"].shape[1] == 1


@for_two_methods
def test_a_new_task_trains_alone(adapt, make_swin, pixels, perturb):
    model = perturb(adapt(make_swin()))
    model.add_task("saliency", from_="semseg")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("task_embedding" in name)
    loss_of(predict(model, pixels, "saliency")).backward()
    [gradient] = gradients(model).values()
    assert gradient[-1].any() and not gradient[:-1].any()


@rows(lambda row: issubclass(row.config_class, BottleneckConfig) and not row.config_class.shares_pass)
@torch.no_grad()
def test_bakes_into_plain_adapters(adapt, make_base, pixels, perturb, tmp_path):
    model = perturb(adapt(make_base(), sublayers=["attention", "feed_forward"], dropout=0.5)).double()
    baked, pixels = model.bake(["normals", "semseg"]), pixels.double()
    assert baked.peft_config["default"].peft_type == "MTL_ADAPTER"
    for task in ("semseg", "normals"):
        check_equal(predict(baked, pixels, task), predict(model, pixels, task), **ROUNDING)
    with pytest.raises(ValueError, match=r"\['normals', 'semseg'\]|No decoder for \['human_parts'\]"):
        predict(baked, pixels, "human_parts")
    baked.save_pretrained(tmp_path)
    base = make_base()
    if isinstance(base, MultiTaskDenseModel):
        base.remove_task("human_parts")
    loaded = PeftModel.from_pretrained(base.double(), tmp_path).eval()
    check_equal(predict(loaded, pixels, "normals"), predict(baked, pixels, "normals"))
    check_equal(model.bake(["human_parts"])(pixels), predict(model, pixels, "human_parts"), **ROUNDING)


@rows(lambda row: row.config_class.shares_pass)
def test_what_tasks_share_is_not_baked(adapt, make_dense):
    with pytest.raises(ValueError, match="has no adapters of its own per task that could be baked"):
        adapt(make_dense()).bake()


BAD_TASKS = [
    ("add_task", {"name": "semseg"}, r"'default' has a task 'semseg' already; its tasks are \['semseg'"),
    ("add_task", {"name": "a b"}, "at least one name of letters, digits and underscores"),
    ("add_task", {"name": "x", "from_": "depth"}, r"no task 'depth'; the adapter has \['semseg'"),
    ("add_task", {"name": "x", "adapter_name": "other"}, r"`adapter_name` must be one of \['default'\], got 'other'"),
    ("bake", {"tasks": ["depth"]}, r"must be among \['semseg', .*'normals'\], each named once"),
    ("remove_task", {"name": "depth"}, r"no task 'depth'; the adapter has \['semseg'"),
]


@for_two_methods
@pytest.mark.parametrize(("verb", "call", "message"), BAD_TASKS)
def test_a_bad_change_of_tasks_changes_nothing(adapt, make_swin, pixels, verb, call, message):
    model = adapt(make_swin())
    before = list(model.state_dict())
    with pytest.raises(ValueError, match=message):
        getattr(model, verb)(**call)
    assert model.peft_config["default"].tasks == TASKS and list(model.state_dict()) == before
    model(pixels, tasks=TASKS)


@for_two_methods
def test_tasks_of_one_adapter_among_several_stay(adapt, make_config, make_dense):
    model = adapt(make_dense())
    model.add_adapter("second", make_config())
    for verb, name in (("add_task", "saliency"), ("remove_task", "semseg")):
        with pytest.raises(ValueError, match=r"all its adapters, \['default', 'second'\].*Delete the others first"):
            getattr(model, verb)(name, adapter_name="default")
    assert list(model.base_model.model.config.tasks) == TASKS == model.peft_config["default"].tasks


@for_two_methods
def test_an_unknown_task_changes_nothing(adapt, make_dense, pixels):
    model = adapt(make_dense(["semseg", "normals"]), tasks=TASKS)
    for call in ({"name": "depthh"}, {"name": "saliency", "from_": "human_parts"}):
        with pytest.raises(ValueError, match=r"depthh|got a new task 'saliency' from 'human_parts'"):
            model.add_task(**call)
    assert model.peft_config["default"].tasks == TASKS
    model(pixels)


@for_two_methods
def test_decoders_with_other_norms_are_refused(adapt, make_dense, tmp_path):
    adapt(make_dense(shared_norms=True)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"have shared_norms=True, and the model's have shared_norms=False"):
        PeftModel.from_pretrained(make_dense(), tmp_path)
    PeftModel.from_pretrained(make_dense(shared_norms=True), tmp_path)


@for_two_methods
def test_an_adapter_per_picture_is_refused(adapt, make_swin, pixels):
    with pytest.raises(ValueError, match="`adapter_names` chooses an adapter per picture"):
        adapt(make_swin())(pixels, task="semseg", adapter_names=["__base__", "default"])


@rows(lambda row: row.name in ("polyhistor", "vmt_adapter"))
def test_memory_does_not_grow(adapt, make_dense, pixels):
    """Steps with checkpointing, and passes whose loss is never used."""
    model = adapt(make_dense()).train()
    recompute_layers(model.base_model.model)
    tensors = []
    for _ in range(4):
        loss_of(predict(model, pixels, "semseg")).backward()
        predict(model, pixels, "semseg")
        gc.collect()
        tensors.append(sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects()))
    assert tensors[1] == tensors[-1]


@for_two_methods
def test_the_last_task_stays(adapt, make_swin, make_dense):
    with pytest.raises(ValueError, match="'semseg' is the only task of the adapter 'default'"):
        adapt(make_swin(), tasks=["semseg"]).remove_task("semseg")
    with pytest.raises(ValueError, match=r"decoders for \['semseg'\], of which 'semseg' cannot be taken away"):
        make_dense(["semseg"]).remove_task("semseg")
    with pytest.raises(ValueError, match=r"decoders for \['semseg'\]; got a new task 'normals' from 'saliency'"):
        make_dense(["semseg"]).add_task("normals", from_="saliency")


@few_by_default
@torch.no_grad()
def test_two_adapters_take_turns(adapt, make_config, make_base, pixels, perturb, tmp_path):
    first = perturb(adapt(make_base()))
    second = perturb(adapt(make_base()))
    second.save_pretrained(tmp_path)
    both = copy.deepcopy(first)
    both.load_adapter(tmp_path, "second")
    both.eval()
    check_equal(predict(both, pixels, "normals"), predict(first, pixels, "normals"))
    for name, single in (("second", second), ("default", first)):
        both.set_adapter(name)
        assert both.active_adapters == [name]
        check_equal(predict(both, pixels, "normals"), predict(single, pixels, "normals"))
        assert trainable(both) and all(f".{name}." in parameter for parameter in trainable(both))
    both.delete_adapter("second")
    check_equal(predict(both, pixels, "normals"), predict(first, pixels, "normals"))
    assert trainable(both).keys() == trainable(first).keys()


@few_by_default
@torch.no_grad()
def test_a_dense_model_changes_its_decoders_with_the_adapter(adapt, make_config, make_dense, pixels, perturb):
    model = adapt(make_dense())
    model.add_adapter("second", make_config())
    model.set_adapter("second")
    expected = perturb(model.eval())(pixels)
    model.set_adapter("default")
    assert differ(model(pixels), expected)
    model.delete_adapter("default")
    assert model.active_adapters == ["second"]
    check_equal(model(pixels), expected)


@rows(lambda row: row.starts_frozen)
@torch.no_grad()
def test_adapters_active_together_add_up(adapt, make_config, make_swin, pixels, perturb):
    model = perturb(adapt(make_swin()))
    expected = model(pixels, task="normals")
    model.add_adapter("second", make_config(tasks=["normals", "depth"]))
    model.base_model.set_adapter(["default", "second"])
    check_equal(model(pixels, task="normals"), expected)  # the second one is at its start
    perturb(model)
    assert differ(model(pixels, task="normals"), expected)
    with pytest.raises(ValueError, match=r"Tasks must be among \['normals'\]"):
        model(pixels, task="semseg")


@rows(lambda row: row.starts_frozen and not row.tasks_agree)
@torch.no_grad()
def test_adapters_of_one_model_may_differ_in_tasks_and_sites(adapt, make_config, make_swin, pixels, perturb):
    model = adapt(make_swin())
    model.add_adapter("second", make_config(tasks=["depth", "edges"], layers_to_transform=[3]))
    model.set_adapter("second")
    perturb(model)
    assert differ(model(pixels, task="depth"), model(pixels, task="edges"))
    with pytest.raises(ValueError, match=r"Tasks must be among \['depth', 'edges'\]"):
        model(pixels, task="semseg")
    model.set_adapter("default")
    check_equal(model(pixels, task="semseg"), make_swin()(pixels))
    model.delete_adapter("default")
    assert model.active_adapters == ["second"]
    assert differ(model(pixels, task="depth"), make_swin()(pixels))


@for_two_methods
def test_adapters_of_one_model_share_a_placement(adapt, make_config, make_swin):
    model = adapt(make_swin())
    with pytest.raises(ValueError, match=r"placed as ResidualSite.*ask for SerialSite.*share a placement"):
        model.add_adapter("second", make_config(placement="serial"))


# Batches of tasks


@torch.no_grad()
def test_all_tasks_in_one_pass_equal_one_task_at_a_time(adapt, make_base, pixels, perturb):
    model, pixels = perturb(adapt(make_base())).double(), pixels.double()
    for tasks in (TASKS, TASKS[::-1], TASKS[1:], TASKS[:1]):
        together = model(pixels, tasks=tasks)
        if hasattr(model, "decoders"):
            assert list(together.logits) == tasks
            together = {task: type(together)(logits={task: together.logits[task]}) for task in tasks}
        assert list(together) == tasks
        for task in tasks:
            check_equal(together[task], predict(model, pixels, task), **ROUNDING)


@torch.no_grad()
def test_one_task_needs_no_name(adapt, make_swin, pixels, perturb):
    model = perturb(adapt(make_swin(), tasks=["depth"]))
    check_equal(model(pixels), model(pixels, task="depth"))
    check_equal(model(pixels, tasks=["depth"]), {"depth": model(pixels)})


BAD_CALLS = [
    ({}, ValueError, "serves several tasks, and none was named"),
    ({"task": None, "tasks": None}, ValueError, "serves several tasks, and none was named"),
    ({"task": "depth"}, ValueError, r"each named once; got \['depth'\]"),
    ({"tasks": ["semseg", "depth"]}, ValueError, r"each named once; got \['semseg', 'depth'\]"),
    ({"tasks": []}, ValueError, r"each named once; got \[\]"),
    ({"tasks": ["semseg", "semseg"]}, ValueError, r"each named once; got \['semseg', 'semseg'\]"),
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


# Copies
@few_by_default
def test_copies_are_equal_and_independent(row, adapt, make_base, pixels, perturb):
    model = perturb(adapt(make_base()))
    loss_of(predict(model, pixels, "semseg")).backward()
    expected = predict(model, pixels, "semseg")
    other = copy.deepcopy(model)
    perturb(model)
    assert differ(predict(model, pixels, "semseg"), expected)
    model.unload()
    check_equal(predict(other, pixels, "semseg"), expected)
    assert bool(hooks_of_ours(other)) == (row.config_class is not DecodersConfig)
    assert [hook.__name__ for hook in hooks_of_ours(other.unload())] in ([], ["refuse_tasks"])


@few_by_default
@torch.no_grad()
def test_pickles(adapt, make_base, pixels, perturb):
    model = perturb(adapt(make_base()))
    other = pickle.loads(pickle.dumps(model))  # not of SwinBackbone: transformers' hooks do not pickle
    check_equal(predict(other, pixels, "semseg"), predict(model, pixels, "semseg"))
    unloaded = other.unload()
    check_equal(predict_frozen(unloaded, pixels, "semseg"), predict_frozen(model.unload(), pixels, "semseg"))


# Which modules carry an adapter


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


# Models that are no Swin, and other ways in


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


@for_two_methods
def test_an_unknown_encoder_without_names_is_an_error(adapt):
    with pytest.raises(ValueError, match=r"Sequential has no blocks of a known encoder family.*`target_modules`"):
        adapt(nn.Sequential(nn.Linear(12, 12)))
