# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Merged models leave this package: to transformers and onnxruntime alone, to the predictor, and to the Hub."""

import subprocess
import sys

import pytest
import torch
from hub_metadata import check_metadata
from methods_table import PLACED_BY_FILE, check_equal
from peft import get_peft_model
from torch.export import Dim

from peft_polyhistor import MultiTaskDenseModel, PolyhistorLiteConfig, TrainingRecord, load, load_encoder, publish
from peft_polyhistor.hub.merged_cards import make_merged_card, origin_of
from peft_polyhistor.inference import MultiTaskPredictor


NAMES = ["semseg", "normals"]
WITHOUT_THE_PACKAGE = """
import sys
sys.modules["peft"] = sys.modules["peft_polyhistor"] = None  # an import of either fails
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel
model = AutoModel.from_pretrained(sys.argv[1])
pixels = load_file(sys.argv[2])["pixels"]
with torch.no_grad():
    output = model(pixels).last_hidden_state
save_file({"output": output}, sys.argv[3])
print(type(model).__name__, model.config.mlp_ratio)
"""


@pytest.fixture
def merged(make_swin, perturb):
    """A merged encoder, of the class of its base."""
    swin = make_swin()
    swin.name_or_path = swin.config.name_or_path = "ann/tiny-swin"
    return perturb(get_peft_model(swin, PolyhistorLiteConfig(tasks=NAMES)).eval()).merge_and_unload(task="semseg")


@pytest.fixture
def merged_dense(perturb):
    """A merged dense model on the embedded encoder."""
    dense = MultiTaskDenseModel.from_encoder(load_encoder("swin-mini"), NAMES, decoder_width=12, image_size=64)
    return perturb(get_peft_model(dense, PolyhistorLiteConfig(tasks=NAMES)).eval()).merge_and_unload(task="semseg")


@pytest.mark.slow  # the start of a process
@torch.no_grad()
def test_transformers_alone_loads_it(merged, pixels, tmp_path):
    from safetensors.torch import load_file, save_file

    merged.save_pretrained(tmp_path / "merged")
    save_file({"pixels": pixels}, tmp_path / "pixels")
    files = [str(tmp_path / name) for name in ("merged", "pixels", "output")]
    run = subprocess.run([sys.executable, "-c", WITHOUT_THE_PACKAGE, *files], capture_output=True, text=True)
    assert run.stdout == "SwinModel 4.5\n", run.stderr
    check_equal(load_file(tmp_path / "output")["output"], merged(pixels).last_hidden_state, **PLACED_BY_FILE)


@pytest.mark.slow
@torch.no_grad()
def test_exports_and_runs_in_onnxruntime(merged, pixels, tmp_path):
    """Without a module of this package in the graph's program."""
    any_batch = {"pixel_values": {0: Dim.DYNAMIC}}
    program = torch.export.export(merged, (), {"pixel_values": pixels, "return_dict": True}, dynamic_shapes=None)
    check_equal(program.module()(pixel_values=pixels, return_dict=True)[0], merged(pixels)[0], rtol=1e-4, atol=1e-5)
    pytest.importorskip("onnxscript", reason="the extra 'slow' installs onnxscript and onnxruntime")
    runtime = pytest.importorskip("onnxruntime")
    names = {"input_names": ["pixel_values"], "output_names": ["tokens", "pooled"]}
    torch.onnx.export(merged, (pixels,), dynamo=True, verbose=False, dynamic_shapes=any_batch, **names).save(
        tmp_path / "model.onnx"
    )
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    for batch in (2, 3):
        images = torch.randn(batch, *pixels.shape[1:])
        tokens = torch.from_numpy(session.run(["tokens"], {"pixel_values": images.numpy()})[0])
        torch.testing.assert_close(tokens, merged(images).last_hidden_state, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_merged_dense_model_loads_and_predicts(merged_dense, pixels, tmp_path):
    merged_dense.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert type(loaded) is MultiTaskDenseModel and loaded.config.encoder.mlp_ratio == 4.5
    assert not loaded.training and not any(parameter.requires_grad for parameter in loaded.parameters())
    check_equal(loaded(pixels), merged_dense(pixels), **PLACED_BY_FILE)
    with pytest.raises(ValueError, match=r"its own encoder\. Leave `encoder` out"):
        load(tmp_path, encoder="swin-mini")
    predictor = MultiTaskPredictor.from_pretrained(tmp_path)
    assert predictor.tasks == ["semseg"] and predictor.image_size == (64, 64)
    assert not hasattr(loaded.config.encoder, "embedded_name"), "an adapter for the result is for no other encoder"


def test_what_is_no_dense_model_is_refused(merged, merged_dense, tmp_path):
    merged.save_pretrained(tmp_path / "swin")
    with pytest.raises(FileNotFoundError, match=r"has no adapter_config.json and no adapter_model.safetensors"):
        load(tmp_path / "swin")
    merged_dense.save_pretrained(tmp_path / "dense")
    (tmp_path / "dense" / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no model.safetensors\..*without adapters config.json and"):
        load(tmp_path / "dense")
    (tmp_path / "dense" / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json of .* is damaged"):
        load(tmp_path / "dense")


def test_the_card_of_a_merged_encoder_says_from_what_it_is(merged):
    card = make_merged_card(merged, origin_of(merged, adapter="ann/lite"), "mit", ["swin"], "ann/merged")
    assert check_metadata(str(card)) == []
    data = card.data
    assert (data.library_name, data.base_model, data.base_model_relation) == (
        "transformers",
        "ann/tiny-swin",
        "finetune",
    )
    assert {"POLYHISTOR_LITE", "merged", "semantic-segmentation", "swin"} <= set(data.tags)
    for line in (
        "a `POLYHISTOR_LITE` adapter for the task `semseg`",
        "[ann/lite](https://huggingface.co/ann/lite)",
        "The model needs only transformers, neither PEFT nor peft-polyhistor.",
        'model = SwinModel.from_pretrained("ann/merged")',
        "- These weights: mit",
    ):
        assert line in card.text


def test_the_card_of_a_merged_dense_model_loads_it(merged_dense):
    card = make_merged_card(merged_dense, origin_of(merged_dense), "mit", [], "ann/merged")
    assert check_metadata(str(card)) == []
    assert "`swin-mini`, which comes with peft-polyhistor" in card.text and card.data.base_model is None
    assert 'MultiTaskPredictor.from_pretrained("ann/merged")' in card.text
    assert "Not measured." in card.text and "1e-5" not in card.text


def test_what_has_no_card_is_not_published(merged, make_swin):
    with pytest.raises(TypeError, match="got a SwinModel without a `merged_from`"):
        publish(make_swin(), "ann/swin")
    record = TrainingRecord("x", "x", False, "x", "val", 64, "x", 0, 1, {}, {})
    with pytest.raises(ValueError, match="`training` is for adapters"):
        publish(merged, "ann/swin", training=record)
