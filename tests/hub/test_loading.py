# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""`load` of a folder, and what an adapter records of the model it was made for."""

import json
import re
from dataclasses import replace

import pytest
import torch
from methods_table import PLACED_BY_FILE, check_equal
from peft import PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import SwinModel, ViTConfig, ViTModel

from peft_polyhistor import (
    TASKS,
    DecodersConfig,
    MultiTaskDenseModel,
    PolyhistorLiteConfig,
    load,
    load_encoder,
    register_task,
    regression,
    segmentation,
)
from peft_polyhistor.inference import MultiTaskPredictor
from peft_polyhistor.models.encoder import ASSETS


NAMES = ["semseg", "normals"]


@pytest.fixture
def saved(perturb, tmp_path):
    """A trained model on the embedded encoder, and its folder."""
    dense = MultiTaskDenseModel.from_encoder(
        load_encoder("swin-mini"), NAMES, decoder_width=12, loss_weights={"semseg": 3.0}
    )
    model = perturb(get_peft_model(dense, PolyhistorLiteConfig(tasks=NAMES, reduction_factor=4))).eval()
    model.save_pretrained(tmp_path)
    return model, tmp_path


@torch.no_grad()
def test_builds_the_model_from_the_folder_alone(saved, pixels):
    model, folder = saved
    loaded = load(folder)
    check_equal(loaded(pixels), model(pixels))
    assert not loaded.training and not any(parameter.requires_grad for parameter in loaded.parameters())
    assert loaded.base_model.model.config.loss_weights == {"semseg": 3.0}
    trains = load(str(folder), is_trainable=True)
    names = {name for name, parameter in trains.named_parameters() if parameter.requires_grad}
    assert names == {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@torch.no_grad()
def test_tasks_that_came_and_went_are_those_of_the_folder(saved, pixels, tmp_path):
    model, _ = saved
    model.add_task("saliency", from_="semseg")
    model.remove_task("normals")
    model.save_pretrained(tmp_path / "changed")
    check_equal(load(tmp_path / "changed")(pixels), model(pixels))
    model.bake().save_pretrained(tmp_path / "baked")
    check_equal(load(tmp_path / "baked")(pixels), model(pixels), rtol=1e-5, atol=1e-5)


def test_another_encoder_is_refused(saved, make_swin, tmp_path):
    _, folder = saved
    for encoder in (make_swin(), make_swin(embed_dim=32, num_heads=[1, 2, 4, 8], depths=[2, 2, 2, 2])):
        with pytest.raises(ValueError, match=r"made for swin-mini with .*\[32, 32, 64.*this encoder has .*'widths'"):
            load(folder, encoder=encoder)
        with pytest.raises(ValueError, match="made for swin-mini with"):
            PeftModel.from_pretrained(encoder, folder)
    encoder.save_pretrained(tmp_path / "swin")
    with pytest.raises(ValueError, match="made for swin-mini with"):
        load(folder, encoder=tmp_path / "swin")


def test_an_encoder_of_no_known_family_is_a_value_error_with_a_way_out(saved, tmp_path):
    _, folder = saved
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    ViTModel(ViTConfig(**sizes)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"cannot be used: .* is no backbone .* give encoder='its folder or Hub id'"):
        load(folder, encoder=tmp_path)


def test_rows_of_tasks_are_saved_with_adapters_and_models(pixels, tmp_path):
    rows = [segmentation("lanes", classes=["road", "lane"]), regression("depth", unit="m")]
    for row in rows:
        register_task(row)
    dense = MultiTaskDenseModel.from_encoder(load_encoder("swin-mini"), ["lanes", "semseg"], decoder_width=8)
    dense.save_pretrained(tmp_path / "dense")
    model = get_peft_model(dense, PolyhistorLiteConfig(tasks=["lanes", "semseg"])).eval()
    model.add_task("depth", from_="lanes")
    model.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        expected = model(pixels).logits
    for row in rows:
        del TASKS[row.name]
    with torch.no_grad():
        check_equal(load(tmp_path / "adapter")(pixels).logits, expected)
    assert [TASKS[row.name] for row in rows] == rows
    del TASKS["lanes"]
    again = MultiTaskDenseModel.from_pretrained(tmp_path / "dense")
    assert TASKS["lanes"] == rows[0] and again.config.tasks == ["lanes", "semseg"]
    TASKS["depth"] = regression("depth", unit="mm")
    with pytest.raises(
        ValueError, match=r"describes a model that cannot be built: A task named 'depth' exists already"
    ):
        load(tmp_path / "adapter")


def test_other_tasks_are_refused(saved):
    _, folder = saved
    TASKS["semseg"] = replace(TASKS["semseg"], classes=list("abcde"))
    with pytest.raises(ValueError, match=r"does not fit .* 2 weights differ.*\(21,\) in it, \(5,\) in the model"):
        load(folder)
    del TASKS["semseg"]
    with pytest.raises(
        ValueError, match=r"Unknown tasks \['semseg'\].*`register_task` or a recipe's YAML file adds one"
    ):
        load(folder)


def test_a_file_that_lacks_weights_is_refused(saved):
    _, folder = saved
    file = folder / "adapter_model.safetensors"
    weights = load_file(file)
    weights.pop(max(weights))
    save_file(weights, file)
    with pytest.raises(ValueError, match=r"1 weights differ, such as .*: None in it, \(\d+"):
        load(folder)


@torch.no_grad()
def test_what_a_newer_version_recorded_is_told_and_has_no_effect(saved, pixels):
    model, folder = saved
    file = folder / "adapter_config.json"
    settings = json.loads(file.read_text())
    settings["made_for"] |= {"stages": 4}
    settings["made_for"]["decoders"] |= {"activation": "gelu"}
    file.write_text(json.dumps(settings))
    told = r"`made_for` holds \['activation', 'stages'\].*saved by a newer version"
    with pytest.warns(UserWarning, match=told):
        loaded = load(folder)
    check_equal(loaded(pixels), model(pixels))
    assert PeftConfig.from_pretrained(folder).made_for == settings["made_for"]
    with pytest.warns(UserWarning, match=told):
        PeftModel.from_pretrained(load_encoder("swin-mini"), folder)


def test_damaged_files_are_named(saved):
    _, folder = saved
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        file = folder / name
        content = file.read_bytes()
        file.write_bytes(content[:100])
        with pytest.raises(ValueError, match=rf"{name} of '.*' is damaged \(.*100 bytes\)\. Copy the folder again"):
            load(folder)
        file.write_bytes(content)


def test_other_weights_are_told_with_the_origin_of_the_adapter(make_swin, make_dense, tmp_path):
    make_swin().save_pretrained(tmp_path / "first")
    encoder = make_swin()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.mul_(2)
    encoder.save_pretrained(tmp_path / "second")
    dense = make_dense(NAMES, encoder=load_encoder(tmp_path / "first"))
    get_peft_model(dense, PolyhistorLiteConfig(tasks=NAMES)).save_pretrained(tmp_path / "ad")
    with pytest.warns(UserWarning, match=rf"made for {re.escape(str(tmp_path))}/first with other weights"):
        loaded = load(tmp_path / "ad", encoder=tmp_path / "second")
    assert loaded.peft_config["default"].base_model_name_or_path == str(tmp_path / "second")


def test_what_is_no_checkpoint_is_named(saved, tmp_path):
    with pytest.raises(ValueError, match="name of the checkpoint is empty"):
        load("")
    for load_it in (load, MultiTaskPredictor.from_pretrained):
        with pytest.raises(ValueError, match=r"Got revision='v9' for '.*', which is a folder"):
            load_it(saved[1], revision="v9")
    with pytest.raises(FileNotFoundError, match=r"no folder '\./nowhere'"):
        load("./nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"has no adapter_config\.json and no adapter_model\.safetensors"):
        load(tmp_path / "empty")
    (tmp_path / "runs/lite").mkdir(parents=True)
    (tmp_path / "runs/lite/best").symlink_to(saved[1])
    for folder, below in (("runs", "lite/best"), ("runs/lite", "best")):
        with pytest.raises(FileNotFoundError, match=rf"Give one of the folders in it: {below}\."):
            load(tmp_path / folder)
    with pytest.raises(FileNotFoundError, match=r"no folder .*/bset'\. Beside it are the checkpoints best\."):
        load(tmp_path / "runs/lite/bset")
    file = saved[1] / "adapter_config.json"
    settings = json.loads(file.read_text())
    settings["made_for"]["encoder"] = None
    file.write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="not known which encoder"):
        load(saved[1])
    load(saved[1], encoder="swin-mini")
    file.write_text(json.dumps(settings | {"base_model_name_or_path": "./gone"}))
    with pytest.raises(FileNotFoundError, match=r"The encoder '\./gone' of .* cannot be loaded .*give encoder="):
        load(saved[1])


def test_a_dense_model_in_several_files_is_loaded(make_dense, pixels, tmp_path):
    model = make_dense()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert not (tmp_path / "model.safetensors").exists()
    check_equal(load(tmp_path)(pixels).logits, model(pixels).logits, **PLACED_BY_FILE)


def test_an_encoder_of_one_s_own_is_recorded_with_its_revision(make_swin, make_dense, tmp_path):
    make_swin().save_pretrained(tmp_path / "enc")
    encoder = load_encoder(tmp_path / "enc")
    encoder.revision = "v2"  # as from the Hub
    for model in (encoder, make_dense(["semseg"], encoder=load_encoder(tmp_path / "enc"))):
        adapted = get_peft_model(model, PolyhistorLiteConfig(tasks=["semseg"]))
        assert adapted.peft_config["default"].base_model_name_or_path == str(tmp_path / "enc")
        assert adapted.peft_config["default"].revision == ("v2" if model is encoder else None)
    adapted.save_pretrained(tmp_path / "ad")
    (tmp_path / "enc").rename(tmp_path / "moved")
    load(tmp_path / "ad", encoder=tmp_path / "moved").save_pretrained(tmp_path / "again")
    assert load(tmp_path / "again").peft_config["default"].base_model_name_or_path == str(tmp_path / "moved")


def test_the_embedded_encoder_is_known_by_its_folder_too(tmp_path):
    made = get_peft_model(SwinModel.from_pretrained(ASSETS / "swin-mini"), PolyhistorLiteConfig(tasks=["semseg"]))
    made.save_pretrained(tmp_path / "made")
    loaded = PeftModel.from_pretrained(SwinModel.from_pretrained(ASSETS / "swin-mini"), tmp_path / "made")
    loaded.save_pretrained(tmp_path / "loaded")
    for name in ("made", "loaded"):
        config = PeftConfig.from_pretrained(tmp_path / name)
        assert config.made_for["encoder"] == "swin-mini" and not config.base_model_name_or_path
    assert load_encoder(ASSETS / "swin-mini").config.embedded_name == "swin-mini"


def test_adapters_on_merged_decoders_know_their_encoder(tmp_path):
    dense = MultiTaskDenseModel.from_encoder(load_encoder("swin-mini"), ["semseg"], decoder_width=8)
    merged = get_peft_model(dense, DecodersConfig(tasks=["semseg"])).merge_and_unload()
    get_peft_model(merged, PolyhistorLiteConfig(tasks=["semseg"])).save_pretrained(tmp_path)
    assert PeftConfig.from_pretrained(tmp_path).made_for["encoder"] == "swin-mini"


def test_adapters_on_a_saved_dense_model_load(make_dense, pixels, perturb, tmp_path):
    make_dense(NAMES).save_pretrained(tmp_path / "dense")
    model = get_peft_model(load(tmp_path / "dense"), PolyhistorLiteConfig(tasks=NAMES))
    perturb(model).save_pretrained(tmp_path / "ad")
    check_equal(load(tmp_path / "ad")(pixels).logits, model.eval()(pixels).logits, **PLACED_BY_FILE)


def test_a_folder_named_like_the_embedded_encoder_is_no_other(make_swin, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_swin().save_pretrained("swin-mini")
    assert load_encoder("./swin-mini").name_or_path == "./swin-mini"
