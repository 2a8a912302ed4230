# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The tasks of a trained adapter change, and adapters take turns."""

import copy
import gc

import pytest
import torch
from methods_table import (
    ROUNDING,
    TASKS,
    check_equal,
    differ,
    for_two_methods,
    gradients,
    loss_of,
    predict,
    rows,
    trainable,
)
from peft import PeftModel
from tiny_models import recompute_layers

from peft_polyhistor import (
    MultiTaskDenseModel,
)
from peft_polyhistor.config import BottleneckConfig


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
    # One at a time: kernels of some CPUs round the images of a batch by their place in it.
    saliency, parts = (encoder(pixels, tasks=[task])[task] for task in ("saliency", "human_parts"))
    check_equal(saliency, parts)
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


@for_two_methods
def test_a_task_that_is_taken_away_leaves_the_record_of_decoders(adapt, make_dense):
    model = adapt(make_dense(loss_weights={"semseg": 2.0, "normals": 3.0}))
    model.remove_task("normals")
    assert model.peft_config["default"].made_for["decoders"]["loss_weights"] == {"semseg": 2.0}


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


@for_two_methods
def test_a_baked_adapter_names_the_same_base(adapt, make_swin):
    named = {"base_model_name_or_path": "someone/swin", "revision": "v2"}
    model = adapt(make_swin())
    vars(model.peft_config["default"]).update(named)
    baked = model.bake().peft_config["default"]
    assert {name: getattr(baked, name) for name in named} == named


@rows(lambda row: row.config_class.shares_pass)
def test_what_tasks_share_is_not_baked(adapt, make_dense):
    with pytest.raises(ValueError, match="has no adapters per task that could be baked"):
        adapt(make_dense()).bake()


BAD_TASKS = [
    ("add_task", {"name": "semseg"}, r"'default' has a task 'semseg' already; its tasks are \['semseg'"),
    ("add_task", {"name": "a b"}, "at least one name of letters, digits and underscores"),
    ("add_task", {"name": "x", "from_": "depth"}, r"no task 'depth'; it has \['semseg'"),
    ("add_task", {"name": "x", "adapter_name": "other"}, r"`adapter_name` must be one of \['default'\], got 'other'"),
    ("bake", {"tasks": ["depth"]}, r"must be among \['semseg', .*'normals'\], each named once"),
    ("remove_task", {"name": "depth"}, r"no task 'depth'; it has \['semseg'"),
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
def test_an_adapter_per_image_is_refused(adapt, make_swin, pixels):
    with pytest.raises(ValueError, match="`adapter_names` chooses an adapter per image"):
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
    with pytest.raises(ValueError, match=r"decoders for \['semseg'\], of which 'semseg' cannot be removed"):
        make_dense(["semseg"]).remove_task("semseg")
    with pytest.raises(ValueError, match=r"decoders for \['semseg'\]; got a new task 'normals' from 'saliency'"):
        make_dense(["semseg"]).add_task("normals", from_="saliency")


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
    with pytest.raises(ValueError, match=r"placed as ResidualLayer.*ask for SerialLayer.*share a placement"):
        model.add_adapter("second", make_config(placement="serial"))
