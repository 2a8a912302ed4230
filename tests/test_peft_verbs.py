# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""PEFT's other ways of loading, looking at and naming adapters, which know nothing of methods."""

import pytest
import torch
from peft import AutoPeftModel, PeftModel, get_layer_status, get_model_status, get_peft_model
from transformers import AutoModel, SwinModel, Trainer, TrainingArguments

from peft_polyhistor import BitFitConfig, MultiTaskDenseModel, PolyhistorLiteConfig, VmtAdapterConfig
from peft_polyhistor.data import collate


TASKS = ["semseg", "normals"]
CONFIGS = [PolyhistorLiteConfig, BitFitConfig, VmtAdapterConfig]


@pytest.fixture(params=CONFIGS, ids=lambda config: config.__name__)
def config(request):
    return request.param(tasks=TASKS)


@pytest.fixture
def model(config, make_dense, perturb):
    return perturb(get_peft_model(make_dense(TASKS), config)).eval()


@pytest.fixture
def pixels():
    return torch.randn(1, 3, 96, 96)


@torch.no_grad()
def check_equal(first, second, pixels):
    torch.testing.assert_close(first(pixels).logits, second(pixels).logits, rtol=0, atol=0)


def test_status_counts_and_names_what_is_there(model, config):
    status = get_model_status(model)
    assert status.active_adapters == ["default"] and status.enabled is True
    assert status.requires_grad == {"default": True} and status.merged_adapters == []
    assert status.peft_types == {"default": config.peft_type}
    assert status.trainable_params == model.get_nb_trainable_parameters()[0]
    model.base_model.disable_adapter_layers()
    assert get_model_status(model).enabled is False
    model.base_model.enable_adapter_layers()
    assert all(layer.active_adapters == ["default"] for layer in get_layer_status(model))


def test_prints_what_trains(model, capsys):
    model.print_trainable_parameters()
    trainable, total = model.get_nb_trainable_parameters()
    assert f"trainable params: {trainable:,d} || all params: {total:,d}" in capsys.readouterr().out


def test_loads_frozen_or_to_train_on(model, make_dense, pixels, tmp_path):
    model.save_pretrained(tmp_path)
    frozen = PeftModel.from_pretrained(make_dense(TASKS), tmp_path).eval()
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    trains = PeftModel.from_pretrained(make_dense(TASKS), tmp_path, is_trainable=True).eval()
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name, parameter in trains.named_parameters() if parameter.requires_grad} == names
    for other in (frozen, trains):
        check_equal(other, model, pixels)


def test_loads_from_a_subfolder_onto_a_device(model, make_dense, pixels, tmp_path):
    model.save_pretrained(tmp_path / "adapters" / "first")
    loaded = PeftModel.from_pretrained(make_dense(TASKS), tmp_path / "adapters", subfolder="first", torch_device="cpu")
    check_equal(loaded.eval(), model, pixels)


def test_other_sizes_load_where_asked(model, config, make_dense, tmp_path):
    model.save_pretrained(tmp_path)
    other = get_peft_model(make_dense(TASKS, decoder_width=8), config)
    with pytest.raises(RuntimeError, match="size mismatch"):
        other.load_adapter(tmp_path, "second")
    other.load_adapter(tmp_path, "third", ignore_mismatched_sizes=True)


@torch.no_grad()
def test_automatic_classes_find_base_and_adapter(config, make_swin, make_dense, perturb, pixels, tmp_path):
    if isinstance(config, VmtAdapterConfig):
        base = make_dense(TASKS)
        base.save_pretrained(tmp_path / "base")
        base = MultiTaskDenseModel.from_pretrained(tmp_path / "base")
        call = {}
    else:
        make_swin().save_pretrained(tmp_path / "base")
        base = SwinModel.from_pretrained(tmp_path / "base")
        call = {"task": "normals"}
    model = perturb(get_peft_model(base, config)).eval()
    model.save_pretrained(tmp_path / "adapter")
    expected = model(pixels, **call)[0 if call else "logits"]
    for auto, kwargs in ((AutoModel, {}), (AutoPeftModel, {"import_allowlist": ["peft_polyhistor", "transformers"]})):
        loaded = auto.from_pretrained(tmp_path / "adapter", **kwargs).eval()
        torch.testing.assert_close(loaded(pixels, **call)[0 if call else "logits"], expected, rtol=0, atol=0)


def test_trains_in_the_trainer_of_transformers(model, make_labels, tmp_path):
    pixels = torch.randn(4, 3, 64, 64)
    labels = make_labels(TASKS, 4, 64, 64)
    data = [{"pixel_values": pixels[i], **{task: labels[task][i] for task in TASKS}} for i in range(4)]
    arguments = TrainingArguments(
        tmp_path, max_steps=2, per_device_train_batch_size=2, remove_unused_columns=False, use_cpu=True,
        report_to="none", push_to_hub=False, save_strategy="no", gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": False},
    )  # fmt: skip
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    Trainer(model, arguments, train_dataset=data, data_collator=collate).train()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed and all(name in changed or not p.requires_grad for name, p in model.named_parameters())
