# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Every method saves what trains, and loads it where it fits."""

import json
import re
import warnings
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from methods_table import (
    BASES,
    PLACED_BY_FILE,
    ROUNDING,
    TASKS,
    check_equal,
    differ,
    every_method,
    for_two_methods,
    predict,
    predict_frozen,
    rows,
    trainable,
)
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import SwinBackbone, SwinModel

from peft_polyhistor import TASKS as TASKS_OF_MODELS
from peft_polyhistor import load, regression, segmentation
from peft_polyhistor.tuner.provenance import measure_blocks


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


@every_method
def test_saves_what_trains_and_nothing_else(adapt, make_base, perturb, tmp_path):
    model = perturb(adapt(make_base()))
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    buffers = {name: buffer for name, buffer in model.named_buffers() if ".default." in name}
    expected = {
        re.sub(r"(\.modules_to_save)?\.default\.", ".", name): tensor.data
        for name, tensor in {**trainable(model), **buffers}.items()
    }
    check_equal(load_file(tmp_path / "adapter_model.safetensors"), expected)


@pytest.mark.usefixtures("double")
@torch.no_grad()
def test_loads_without_the_usual_memory(adapt, make_base, pixels, perturb, tmp_path):
    model = perturb(adapt(make_base()))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_base(), tmp_path, low_cpu_mem_usage=True).eval()
    assert not any(parameter.is_meta for parameter in loaded.parameters())
    check_equal(get_peft_model_state_dict(loaded), get_peft_model_state_dict(model))
    check_equal(predict(loaded, pixels, "normals"), predict(model, pixels, "normals"), **PLACED_BY_FILE)


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
    models[0].remove_task(TASKS[0])
    assert models[1].peft_config["default"].tasks == TASKS  # what one does to its adapter is not done to another's
    written = {name for name, value in vars(config).items() if value != getattr(make_config(), name)}
    assert written <= {"base_model_name_or_path"}  # by PEFT


@torch.no_grad()
def test_a_change_of_the_config_does_not_change_the_model(make_config, make_swin, pixels, perturb):
    config = make_config(exclude_modules=["nothing"])
    model = perturb(get_peft_model(make_swin(), config)).eval()
    expected = model(pixels, task="normals")
    config.tasks.remove("semseg")
    config.exclude_modules.append("mlp")
    check_equal(model(pixels, task="normals"), expected)
    assert model.peft_config["default"].tasks == TASKS
    assert model.peft_config["default"].exclude_modules == ["nothing"]


@for_two_methods
def test_a_config_that_is_given_replaces_the_saved_one(adapt, make_config, make_swin, tmp_path):
    adapt(make_swin()).save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_swin(), tmp_path, config=make_config(dropout=0.5))
    config = loaded.peft_config["default"]
    assert config.dropout == 0.5 and config.inference_mode


def test_a_config_of_a_dense_model_adapts_its_bare_encoder(make_config, make_dense, make_swin, pixels, tmp_path):
    config = make_config()
    get_peft_model(make_dense(), config)
    bare = get_peft_model(make_swin(), config)
    assert config.modules_to_save is None and bare.peft_config["default"].modules_to_save is None
    assert not any("decoders" in name for name in trainable(bare))


SAVED_KEYS = json.loads(Path(__file__).with_name("saved_keys.json").read_text())
"""By method, the names and shapes of the tensors in adapters that the first release saved."""


def test_the_names_in_saved_adapters_stay(row, adapt, tmp_path):
    adapt(BASES[row.bases[0]]()).save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    found = {name.removeprefix("base_model.model."): list(tensor.shape) for name, tensor in saved.items()}
    assert {name: shape for name, shape in found.items() if not name.endswith(".gain")} == SAVED_KEYS[row.name]


@rows(lambda row: not row.config_class.shares_pass)
def test_rows_do_not_go_to_other_tasks(adapt, make_swin, make_config, tmp_path):
    """PEFT reads no config where an adapter of the name is there, or one is given."""
    adapt(make_swin()).save_pretrained(tmp_path)
    for tasks in (TASKS[::-1], ["x", "y", "z"]):
        model = adapt(make_swin(), tasks=tasks)
        with pytest.raises(ValueError, match=r"with tasks=\['semseg', .*'default' has tasks=.*under another name"):
            model.load_adapter(tmp_path, "default")
        with pytest.raises(ValueError, match=r"with tasks=\['semseg', .*leave `config` out"):
            PeftModel.from_pretrained(make_swin(), tmp_path, config=make_config(tasks=tasks))
        model.load_adapter(tmp_path, "other")
        assert model.peft_config["other"].tasks == TASKS
    adapt(make_swin()).load_adapter(tmp_path, "default")


@for_two_methods
def test_weights_do_not_go_to_an_adapter_that_computes_something_else(adapt, make_swin, make_config, tmp_path):
    adapt(make_swin(), sublayers=["attention", "feed_forward"], dropout=0.1).save_pretrained(tmp_path)
    same = {"sublayers": ("feed_forward", "attention"), "init_weights": False, "tasks_per_pass": 1}
    adapt(make_swin(), **same).load_adapter(tmp_path, "default")
    message = r"saved with placement='parallel', and 'default' has placement='serial'\. Load it under another name"
    with pytest.raises(ValueError, match=message):
        adapt(make_swin(), **same, placement="serial").load_adapter(tmp_path, "default")
    with pytest.raises(ValueError, match=message):
        PeftModel.from_pretrained(make_swin(), tmp_path, config=make_config(**same, placement="serial"))


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


@torch.no_grad()
def test_an_adapter_with_decoders_loads_onto_a_dense_model_of_fewer(adapt, make_dense, pixels, perturb, tmp_path):
    model = perturb(adapt(make_dense()))
    model.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=r"has decoders for \['human_parts'\], which the model lacks.*not loaded"):
        loaded = PeftModel.from_pretrained(make_dense(["normals", "semseg"]), tmp_path).eval()
    for task in ("normals", "semseg"):
        check_equal(predict(loaded, pixels, task), predict(model, pixels, task))


@for_two_methods
def test_what_an_adapter_recorded_stays_on_a_dense_model_of_other_settings(adapt, make_dense, tmp_path):
    TASKS_OF_MODELS["lanes"] = segmentation("lanes", classes=["road", "lane"])
    tasks, weights = ["semseg", "lanes"], {"lanes": 2.0}
    model = adapt(make_dense(tasks, image_size=96, loss_weights=weights, decoder_dropout=0.3), tasks=tasks)
    record = model.peft_config["default"].made_for
    model.save_pretrained(tmp_path)
    TASKS_OF_MODELS["lanes"] = segmentation("lanes", classes=["lane", "road"])
    other = adapt(make_dense(["semseg"], image_size=64, loss_weights={"semseg": 3.0}), tasks=["semseg"])
    with pytest.warns(UserWarning, match=r"has decoders for \['lanes'\], which the model lacks"):
        other.load_adapter(tmp_path, "second")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*which the model lacks")
        with pytest.raises(
            ValueError, match=r"trained for a task 'lanes' with .* so outputs would mean something else"
        ):
            PeftModel.from_pretrained(make_dense(tasks), tmp_path)
        TASKS_OF_MODELS["lanes"] = segmentation("lanes", classes=["road", "lane"])
        plain = PeftModel.from_pretrained(make_dense(tasks), tmp_path, adapter_name="second")
    assert plain.peft_config["second"].made_for == other.peft_config["second"].made_for == record
    assert other.peft_config["default"].made_for["decoders"]["image_size"] == 64
    plain.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "second" / "adapter_config.json").read_text())["made_for"] == record
    TASKS_OF_MODELS["depth"] = regression("depth")
    plain.add_task("depth")
    plain.remove_task("lanes")
    changed = record["decoders"] | {"loss_weights": {}, "tasks": [{"depth": TASKS_OF_MODELS["depth"].to_dict()}]}
    assert plain.peft_config["second"].made_for["decoders"] == changed


@for_two_methods
def test_an_adapter_without_decoders_stays_one_on_a_dense_model(adapt, make_dense, make_swin, tmp_path):
    adapt(make_swin()).save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_dense(image_size=64), tmp_path)
    assert loaded.peft_config["default"].made_for["decoders"] is None
    loaded.add_task("saliency")
    loaded.save_pretrained(tmp_path / "again")
    with pytest.raises(ValueError, match="has no decoders: it was made for a bare encoder"):
        load(tmp_path / "again")


@for_two_methods
def test_an_old_record_without_an_image_size_takes_that_of_the_model(adapt, make_dense, tmp_path):
    adapt(make_dense()).save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    settings = json.loads(file.read_text())
    del settings["made_for"]["decoders"]["image_size"]
    file.write_text(json.dumps(settings))
    loaded = PeftModel.from_pretrained(make_dense(image_size=64), tmp_path)
    assert loaded.peft_config["default"].made_for["decoders"]["image_size"] == 64


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


@torch.no_grad()
def test_fresh_decoders_train_on_an_adapter_without_decoders(adapt, make_dense, make_swin, pixels, perturb, tmp_path):
    perturb(adapt(make_swin())).save_pretrained(tmp_path)
    fixed = PeftModel.from_pretrained(make_dense(), tmp_path).eval()
    loaded = PeftModel.from_pretrained(make_dense(), tmp_path, is_trainable=True).eval()
    check_equal(loaded(pixels).logits, fixed(pixels).logits)
    assert any("decoders" in name for name in trainable(loaded))
    assert loaded.peft_config["default"].made_for["decoders"] is not None
    loaded.save_pretrained(tmp_path / "trained")
    check_equal(
        PeftModel.from_pretrained(make_dense(), tmp_path / "trained").eval()(pixels).logits, fixed(pixels).logits
    )


OTHER_WEIGHTS = "was made for an encoder with other weights than this encoder has"


@for_two_methods
def test_an_encoder_with_other_weights_is_told(adapt, make_config, make_swin, make_dense, tmp_path):
    adapt(make_swin()).save_pretrained(tmp_path)
    other = make_swin()
    other.encoder.layers[1].blocks[0].mlp.fc1.weight.data *= 1.01
    for model in (deepcopy(other), make_dense(encoder=deepcopy(other))):
        with pytest.warns(UserWarning, match=OTHER_WEIGHTS):
            PeftModel.from_pretrained(model, tmp_path)
    adapted = adapt(deepcopy(other))
    for name in ("second", "default"):  # a new one, and one that exists
        with pytest.warns(UserWarning, match=OTHER_WEIGHTS):
            adapted.load_adapter(tmp_path, name)
    with pytest.warns(UserWarning, match=OTHER_WEIGHTS):
        given = PeftModel.from_pretrained(other, tmp_path, config=make_config())
    record = json.loads((tmp_path / "adapter_config.json").read_text())["made_for"]
    assert given.peft_config["default"].made_for["block_sizes"] == record["block_sizes"]  # those of the training


@for_two_methods
def test_the_same_weights_are_known_in_any_precision_and_class(adapt, make_swin, make_dense, tmp_path):
    model = adapt(make_swin(), modules_to_save=["layernorm"])
    model.save_pretrained(tmp_path / "first")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*other weights")
        for encoder in (make_swin().bfloat16(), make_swin().half(), make_swin(SwinBackbone)):
            PeftModel.from_pretrained(make_dense(encoder=encoder), tmp_path / "first")
        adapt(make_dense()).load_adapter(tmp_path / "first", "second")
        model.load_adapter(tmp_path / "first", "second")
        sizes = model.peft_config["second"].made_for["block_sizes"]
        assert sizes == model.peft_config["default"].made_for["block_sizes"]
    for block, size in zip(make_swin().encoder.layers[2].blocks, sizes[2:4], strict=True):
        linear = [module for module in block.modules() if isinstance(module, torch.nn.Linear)]
        weights = torch.cat([module.weight.flatten() for module in linear])
        assert size == pytest.approx(float(weights.square().mean().sqrt()), rel=1e-5)


@for_two_methods
def test_weights_that_cannot_be_read_are_not_compared_and_keep_the_record(adapt, make_swin, tmp_path):
    model = adapt(make_swin())
    model.save_pretrained(tmp_path)
    sizes = model.peft_config["default"].made_for["block_sizes"]
    with torch.device("meta"):
        blank = SwinModel(make_swin().config)
    packed = make_swin()
    for linear in [module for module in packed.modules() if isinstance(module, torch.nn.Linear)]:
        linear.weight = torch.nn.Parameter(linear.weight.to(torch.float8_e4m3fn), requires_grad=False)
    dynamic = torch.ao.quantization.quantize_dynamic(make_swin(), {torch.nn.Linear})
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*other weights")
        for encoder in (blank, packed):
            loaded = PeftModel.from_pretrained(encoder, tmp_path)
            assert loaded.peft_config["default"].made_for["block_sizes"] == sizes
    assert adapt(dynamic).peft_config["default"].made_for["block_sizes"] is None


@for_two_methods
def test_an_adapter_keeps_the_weights_of_its_training_until_it_trains_on(adapt, make_swin, tmp_path):
    model = adapt(make_swin())
    model.save_pretrained(tmp_path)
    sizes = model.peft_config["default"].made_for["block_sizes"]
    for is_trainable in (False, True):
        other = make_swin()
        other.encoder.layers[1].blocks[0].mlp.fc1.weight.data *= 1.01
        with pytest.warns(UserWarning, match=OTHER_WEIGHTS):
            loaded = PeftModel.from_pretrained(other, tmp_path, is_trainable=is_trainable)
        assert (loaded.peft_config["default"].made_for["block_sizes"] == sizes) is not is_trainable


def test_the_size_of_many_weights_is_exact():
    block = torch.nn.Linear(2000, 2000, bias=False)
    module = torch.nn.ModuleDict({"block": block})
    [size] = measure_blocks(module, [SimpleNamespace(name="block")])
    assert size == pytest.approx(float(block.weight.double().square().mean().sqrt()), rel=1e-5)


@rows(lambda row: row.starts_frozen)
@torch.no_grad()
def test_a_dense_model_may_have_fewer_decoders_than_the_adapter_has_tasks(adapt, make_dense, pixels):
    model, pixels = adapt(make_dense(TASKS[:2])).double(), pixels.double()
    check_equal(model(pixels).logits, make_dense(TASKS[:2]).double()(pixels).logits, **ROUNDING)
    with pytest.raises(ValueError, match=r"No decoder for \['normals'\]"):
        model(pixels, tasks=["normals"])
