# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The modules of a model with adapters in it, and the passes they compute in."""

import warnings

import pytest
import tiny_models
import torch
from methods_table import PLACED_BY_FILE, TASKS, check_equal, rows, trainable
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from torch import nn
from torch.utils._pytree import tree_flatten
from transformers import ConvNextConfig, ConvNextModel

from peft_polyhistor import (
    AdapterConfig,
    DecodersConfig,
    PolyhistorLiteConfig,
    SharedAdapterConfig,
    binary,
    register_task,
)


@rows(lambda row: row.config_class is not DecodersConfig)
def test_weights_are_made_where_the_generator_is(adapt, make_base):
    """On the meta device, a tensor made elsewhere is an error."""
    generator = adapt(make_base()).base_model.model.task_adapters.generators["default"].to("meta")
    for site in generator(torch.tensor([2, 0], device="meta")):
        assert all(tensor.is_meta for tensor in tree_flatten(site)[0])


@rows(lambda row: row.merges)
@torch.no_grad()
def test_a_merge_looks_at_no_values_unless_asked(adapt, make_swin):
    model = adapt(make_swin())
    for parameter in trainable(model).values():
        parameter.fill_(torch.nan)
    assert any(parameter.isnan().any() for parameter in model.merge_and_unload(task="semseg").parameters())


def test_one_generator_serves_all_sites(make_swin, monkeypatch):
    made = []
    make_generator = AdapterConfig.make_generator
    monkeypatch.setattr(AdapterConfig, "make_generator", lambda *args: made.append(make_generator(*args)) or made[-1])
    model = get_peft_model(make_swin(), AdapterConfig(tasks=TASKS))
    assert [model.base_model.model.task_adapters.generators["default"]] == made


@pytest.mark.parametrize("tasks", [[0], [2, 0, 1]])
def test_a_shared_adapter_has_one_set_of_weights_for_any_tasks(make_swin, tasks):
    model = get_peft_model(make_swin(), SharedAdapterConfig(tasks=TASKS))
    weights = model.base_model.model.task_adapters.generators["default"](torch.tensor(tasks))
    assert {len(tensor) for tensor in tree_flatten(weights)[0]} == {1}


@torch.no_grad()
def test_an_adapter_is_baked_by_its_name(make_swin, perturb, pixels):
    model = get_peft_model(make_swin(), AdapterConfig(tasks=TASKS)).eval()
    model.add_adapter("second", AdapterConfig(tasks=TASKS[:1], reduction_factor=4))
    model.set_adapter("second")
    expected = perturb(model)(pixels)
    model.set_adapter("default")
    baked = model.bake(adapter_name="second")
    assert list(baked.peft_config) == ["second"] and model.active_adapters == ["default"]
    check_equal(baked(pixels), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(("asked", "passes"), [(1, [2, 2, 2]), (2, [4, 2]), (3, [6]), (9, [6]), (None, [6])])
def test_as_many_tasks_share_a_pass_as_asked_for(make_swin, pixels, asked, passes):
    model = get_peft_model(make_swin(), AdapterConfig(tasks=TASKS, tasks_per_pass=asked)).eval()
    batches = []
    embeddings = model.base_model.model.embeddings
    embeddings.register_forward_hook(lambda module, args, output: batches.append(len(args[0])))
    model(pixels, tasks=TASKS)
    assert batches == passes


def test_adapting_a_dense_model_calls_nothing_deprecated(make_dense):
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        model = get_peft_model(make_dense(), PolyhistorLiteConfig(tasks=TASKS))
    assert not model.base_model.model.is_gradient_checkpointing
    tiny_models.recompute_layers(model)
    assert model.base_model.model.is_gradient_checkpointing


@pytest.mark.parametrize(("names", "place"), [
    (["layernorm_after"], "blocks.0.layernorm_after"), (["fc1"], "blocks.0.mlp"),
])  # fmt: skip
@pytest.mark.parametrize("config_class", [PolyhistorLiteConfig, SharedAdapterConfig])
def test_modules_to_save_that_an_adapter_needs_are_refused(config_class, names, place, make_swin):
    model = make_swin()
    with pytest.raises(
        ValueError, match=rf"`modules_to_save` names '.*{names[0]}', and the adapter .* needs '.*{place}"
    ):
        get_peft_model(model, config_class(tasks=TASKS, modules_to_save=names))
    get_peft_model(model, AdapterConfig(tasks=TASKS, modules_to_save=["layernorm"]))  # it was left as it was


def test_a_module_to_save_carries_no_adapters(make_swin):
    model = get_peft_model(make_swin(), PolyhistorLiteConfig(tasks=TASKS, modules_to_save=["encoder.layers.0"]))
    sites = [site.name for site in model.base_model.model.task_adapters.records["default"].sites]
    assert sites and not any("layers.0." in name for name in sites)
    with pytest.raises(ValueError, match=r"modules_to_save=\['mlp'\] \(which carry no adapters\)"):
        get_peft_model(make_swin(), PolyhistorLiteConfig(tasks=TASKS, modules_to_save=["mlp"]))


@pytest.mark.parametrize("name", ["train", "half", "keys", "my.adapter", "", "decoders"])
def test_a_name_that_no_module_can_have_is_refused_before_the_model_changes(name, make_swin):
    model = make_swin()
    with pytest.raises(ValueError, match=f"An adapter cannot be named '{name}'"):
        get_peft_model(model, AdapterConfig(tasks=TASKS), adapter_name=name)
    get_peft_model(model, PolyhistorLiteConfig(tasks=TASKS))


@pytest.mark.parametrize("name", ["0", "down", "weight", "task_adapters", "semseg", "classifier", "fuse"])
def test_a_name_that_is_part_of_a_saved_key_is_refused_before_the_model_changes(name, make_dense):
    """PEFT would drop the key on saving, or save it without this part and never load it."""
    model = make_dense()
    with pytest.raises(ValueError, match=rf"An adapter cannot be named '{name}', .*Choose a name that is no number"):
        get_peft_model(model, AdapterConfig(tasks=TASKS), adapter_name=name)
    adapted = get_peft_model(model, AdapterConfig(tasks=TASKS))
    with pytest.raises(ValueError, match=f"An adapter cannot be named '{name}'"):
        adapted.add_adapter(name, AdapterConfig(tasks=TASKS))
    adapted.add_adapter("second", AdapterConfig(tasks=TASKS))


def test_adapters_that_come_later_do_not_lose_weights_to_an_earlier_name(make_dense, make_swin):
    model = get_peft_model(make_swin(), AdapterConfig(tasks=TASKS, layers_to_transform=[1]), adapter_name="3")
    with pytest.raises(ValueError, match="An adapter cannot be named '3'"):
        model.add_adapter("default", AdapterConfig(tasks=TASKS))  # its keys have the numbers 0 to 4
    model = get_peft_model(make_dense(), AdapterConfig(tasks=TASKS), adapter_name="edges")
    register_task(binary("edges"))
    with pytest.raises(ValueError, match=r"The adapter has the name of the new task 'edges'.*under another name"):
        model.add_task("edges")
    assert "edges" not in model.peft_config["edges"].tasks


@pytest.mark.parametrize("names", [["classifier"], ["heads.semseg"], ["layernorm", "norms.0"]])
def test_modules_to_save_inside_of_decoders_are_refused(names, make_dense):
    """PEFT would save them twice, and load neither copy."""
    model = make_dense()
    with pytest.raises(ValueError, match=r"names 'decoders\.heads\..*', and the decoders are trained and saved as a"):
        get_peft_model(model, AdapterConfig(tasks=TASKS, modules_to_save=names))
    get_peft_model(model, AdapterConfig(tasks=TASKS, modules_to_save=["patch_embeddings", "decoders"]))


class Around(nn.Module):
    def __init__(self, dense):
        super().__init__()
        self.dense = dense

    def forward(self, pixels, **kwargs):
        return self.dense(pixels, **kwargs)


def test_a_dense_model_inside_of_another_trains_its_decoders_or_is_refused(make_dense, pixels, perturb, tmp_path):
    with pytest.raises(ValueError, match=r"decoders of 'dense', a MultiTaskDenseModel inside of a Around, .*frozen"):
        get_peft_model(Around(make_dense()), AdapterConfig(tasks=TASKS))
    config = AdapterConfig(tasks=TASKS, modules_to_save=["decoders"])
    model = perturb(get_peft_model(Around(make_dense()), config)).eval()
    assert any("decoders" in name for name in trainable(model))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(Around(make_dense()), tmp_path).eval()
    with torch.no_grad():
        check_equal(loaded(pixels).logits, model(pixels).logits, **PLACED_BY_FILE)
    model = Around(get_peft_model(make_dense(), AdapterConfig(tasks=TASKS)))
    assert any("decoders" in name for name in trainable(model))


def test_an_encoder_with_an_adapter_of_another_method_is_refused(make_swin, pixels):
    """It would be missing where the new adapters are saved or merged."""
    model = get_peft_model(make_swin(), LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    message = r"attention\.q_proj' carries an adapter of PEFT's own methods \(Linear\).*Call `merge_and_unload\(\)`"
    with pytest.raises(ValueError, match=message):
        get_peft_model(model.base_model.model, AdapterConfig(tasks=TASKS))
    with pytest.raises(ValueError, match=message):
        get_peft_model(model, AdapterConfig(tasks=TASKS))
    get_peft_model(model.merge_and_unload(), AdapterConfig(tasks=TASKS))


@rows(lambda row: row.config_class is not DecodersConfig)
def test_the_low_level_functions_of_peft_take_a_state(adapt, make_swin, row):
    """The config selects the modules, whatever the keys of the state are."""
    source = adapt(make_swin())
    state = {key.removeprefix("base_model.model."): value for key, value in get_peft_model_state_dict(source).items()}
    base = make_swin()
    for name in ("one", "two"):
        inject_adapter_in_model(source.peft_config["default"], base, name, state_dict=state)
        found = set_peft_model_state_dict(base, state, name)
        assert not found.unexpected_keys
        restored = get_peft_model_state_dict(base, adapter_name=name)
        check_equal(restored, state)


def test_maps_with_the_channels_first_are_refused_also_where_they_are_square():
    config = ConvNextConfig(hidden_sizes=[8, 16, 32, 64], depths=[1, 1, 1, 1], patch_size=4)
    targets = r"encoder\.stages\.0\.layers\.\d+"
    model = get_peft_model(ConvNextModel(config), AdapterConfig(tasks=["a"], target_modules=targets)).eval()
    for size in (32, 64):  # the first map of 32 px is 8 tokens wide
        with pytest.raises(ValueError, match="need its 8 channels on the last axis"):
            model(torch.zeros(1, 3, size, size))
