# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The image processor: what it refuses, and the mean and standard deviation it has from an encoder."""

import json
from collections import UserList
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from peft import get_peft_model
from PIL import Image
from safetensors.torch import save_file
from tiny_models import make_dense, make_swin
from transformers import SwinModel

from peft_polyhistor import DenseImageProcessor, MultiTaskDenseModel, PolyhistorLiteConfig, load, load_encoder
from peft_polyhistor.inference import MultiTaskPredictor
from peft_polyhistor.models import encoder as encoders
from peft_polyhistor.models.encoder import view_encoder
from peft_polyhistor.models.image_processor import FILE, IMAGENET_MEAN, IMAGENET_STD


MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.2, 0.1)


@pytest.mark.parametrize(("image", "message"), [
    (Image.new("I;16", (6, 4), 4000), "The image must be a PIL image of 8 bits per channel.* got mode I;16. Convert"),
    (Image.new("F", (6, 4), 0.5), "got mode F"),
    (np.full((4, 6), 0.5, np.float32), r"must be uint8 \(height, width\).*got float32 of shape \(4, 6\). Scale"),
    (np.zeros((4, 6, 3)), r"got float64 of shape \(4, 6, 3\)"),
    (torch.zeros(3, 4, 6), r"got float32 of shape \(3, 4, 6\).*channels last"),
])  # fmt: skip
def test_images_that_would_be_clipped_are_refused(image, message):
    with pytest.raises(ValueError, match=message):
        DenseImageProcessor(8)(image)


def test_arrays_and_images_are_prepared_alike():
    values = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    prepared = DenseImageProcessor(8)([values, torch.from_numpy(values), Image.fromarray(values)])["pixel_values"]
    assert prepared.shape == (3, 3, 8, 8)
    assert torch.equal(prepared[0], prepared[1]) and torch.equal(prepared[0], prepared[2])


def test_any_sequence_of_images_is_a_batch_and_none_is_refused():
    images = [Image.new("RGB", (8, 6), (value, 0, 0)) for value in (0, 200)]
    expected = DenseImageProcessor(8)(images)["pixel_values"]
    torch.testing.assert_close(DenseImageProcessor(8)(UserList(images))["pixel_values"], expected, rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"There are no images to prepare"):
        DenseImageProcessor(8)([])


def test_painting_undoes_the_normalisation():
    values = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    for processor in (DenseImageProcessor(8), DenseImageProcessor(8, [0.5, 0.4, 0.3], [0.2, 0.2, 0.1])):
        assert np.array_equal(processor.paint(processor(values)["pixel_values"][0]), values)


@pytest.mark.parametrize(("saved", "mean", "std"), [
    (None, IMAGENET_MEAN, IMAGENET_STD),
    ({"image_mean": MEAN, "image_std": STD}, MEAN, STD),
    ({"image_mean": 0.5, "image_std": 0.25, "do_normalize": True}, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
    ({"image_mean": MEAN, "image_std": STD, "do_normalize": False}, (0, 0, 0), (1, 1, 1)),
    ({"size": 224}, IMAGENET_MEAN, IMAGENET_STD),
    ({"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [51.0] * 3}, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)),
    ({"rescale_factor": 1 / 127.5, "do_normalize": False}, (0, 0, 0), (0.5, 0.5, 0.5)),
])  # fmt: skip
def test_images_are_normalised_as_the_encoder_knows_them(tmp_path, saved, mean, std):
    make_swin().save_pretrained(tmp_path / "encoder")
    if saved:
        (tmp_path / "encoder" / FILE).write_text(json.dumps(saved))
    dense = make_dense(["semseg"], load_encoder(tmp_path / "encoder"), image_size=64)
    dense.save_pretrained(tmp_path / "dense")
    for model in (dense, MultiTaskDenseModel.from_pretrained(tmp_path / "dense")):
        processor = DenseImageProcessor.from_model(model)
        assert processor.image_size == [64, 64] and DenseImageProcessor.from_model(model, 32).image_size == [32, 32]
        assert tuple(processor.image_mean) == mean and tuple(processor.image_std) == std
        assert MultiTaskPredictor(model).processor.to_dict() == processor.to_dict()
    DenseImageProcessor.save_for(dense, tmp_path)
    assert DenseImageProcessor.from_pretrained(tmp_path).to_dict() == processor.to_dict()


def test_a_checkpoint_keeps_the_statistics_it_was_trained_with(tmp_path):
    """Also where the files of its encoder have others."""
    make_swin().save_pretrained(tmp_path / "encoder")
    (tmp_path / "encoder" / FILE).write_text(json.dumps({"image_mean": MEAN, "image_std": STD}))
    plain = make_dense(["semseg"], SwinModel.from_pretrained(tmp_path / "encoder"), image_size=64)  # ImageNet's
    plain.config.name_or_path = str(tmp_path / "encoder")
    get_peft_model(plain, PolyhistorLiteConfig(tasks=["semseg"])).save_pretrained(tmp_path / "adapter")
    loaded = load(tmp_path / "adapter")
    assert tuple(DenseImageProcessor.from_model(loaded).image_mean) == IMAGENET_MEAN

    other = make_dense(["semseg"], load_encoder(tmp_path / "encoder"), image_size=64)
    model = get_peft_model(other, PolyhistorLiteConfig(tasks=["semseg"]))
    model.load_adapter(tmp_path / "adapter", "second")
    for name, mean in (("default", MEAN), ("second", IMAGENET_MEAN)):
        model.set_adapter(name)
        assert tuple(DenseImageProcessor.from_model(model).image_mean) == mean
        assert tuple(DenseImageProcessor.from_model(model.bake(["semseg"])).image_mean) == mean
    merged = model.merge_and_unload(task="semseg")
    assert tuple(DenseImageProcessor.from_model(merged).image_mean) == IMAGENET_MEAN


def test_a_processor_that_could_not_be_looked_for_is_said(tmp_path, monkeypatch, recwarn):
    """The Hub was not reached, and the cache holds the encoder alone."""
    make_swin().save_pretrained(tmp_path / "ann" / "swin")
    monkeypatch.chdir(tmp_path)
    load_encoder("ann/swin")
    assert not [warning for warning in recwarn if "image processor" in str(warning.message)]
    monkeypatch.setattr(Path, "is_dir", lambda path: False)
    monkeypatch.setattr(encoders, "try_to_load_from_cache", lambda *_, **__: None)
    with pytest.warns(UserWarning, match="Whether 'ann/swin' has an image processor is unknown"):
        load_encoder("ann/swin")
    monkeypatch.setattr(encoders, "try_to_load_from_cache", lambda *_, **__: encoders.NONE_ON_HUB)
    recwarn.clear()
    load_encoder("ann/swin")
    assert not [warning for warning in recwarn if "image processor" in str(warning.message)]


def test_encoders_load_in_float32_unless_told(tmp_path):
    make_swin().half().save_pretrained(tmp_path)
    assert next(load_encoder(tmp_path).parameters()).dtype == torch.float32
    assert next(load_encoder(tmp_path, dtype=torch.float16).parameters()).dtype == torch.float16


def test_models_of_timm_bring_their_mean_and_standard_deviation(tmp_path):
    encoder = view_encoder(timm.create_model("pvt_v2_b0"))
    assert encoder.image_statistics == {"image_mean": list(IMAGENET_MEAN), "image_std": list(IMAGENET_STD)}
    config = {"architecture": "pvt_v2_b0", "num_classes": 1000, "pretrained_cfg": {"mean": MEAN, "std": STD}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(timm.create_model("pvt_v2_b0").state_dict(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    processor = DenseImageProcessor.from_model(make_dense(["semseg"], load_encoder(tmp_path), image_size=64))
    assert (tuple(processor.image_mean), tuple(processor.image_std)) == (MEAN, STD)


def test_statistics_that_are_not_three_numbers_are_refused(tmp_path):
    make_swin().save_pretrained(tmp_path)
    (tmp_path / FILE).write_text(json.dumps({"image_mean": [0.5], "image_std": [0.5]}))
    with pytest.raises(ValueError, match=r"`image_mean` must be three numbers.*got \[0.5\]"):
        make_dense(["semseg"], load_encoder(tmp_path), image_size=64)
    (tmp_path / FILE).write_text("{")
    with pytest.raises(ValueError, match=r"preprocessor_config\.json is damaged .*Write it again"):
        load_encoder(tmp_path)


def test_a_processor_is_made_for_dense_models_of_a_known_size_alone():
    with pytest.raises(TypeError, match="needs a MultiTaskDenseModel, adapted or not, got SwinModel"):
        DenseImageProcessor.from_model(make_swin())
    with pytest.raises(ValueError, match=r"has no `image_size`.*Give image_size="):
        DenseImageProcessor.from_model(make_dense(["semseg"]))
