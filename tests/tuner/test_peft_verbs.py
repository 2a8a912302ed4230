# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""PEFT's and transformers' other ways of loading, looking at and naming adapters, for every method."""

import subprocess
import sys

import pytest
import torch
import transformers
from methods_table import (
    PLACED_BY_FILE,
    TASKS,
    check_equal,
    differ,
    predict,
    predict_frozen,
    rows,
    trainable,
)
from packaging.version import Version
from peft import (
    AutoPeftModel,
    LoraConfig,
    PeftModel,
    get_layer_status,
    get_model_status,
    get_peft_model,
    inject_adapter_in_model,
)
from transformers import AutoModel, SwinModel, Trainer, TrainingArguments
from transformers.integrations.peft import MIN_PEFT_VERSION
from transformers.utils import check_peft_version

from peft_polyhistor import MultiTaskDenseModel, PolyhistorConfig, PolyhistorLiteConfig
from peft_polyhistor.data import collate


# Up to 5.16, transformers' own loader of adapters leaves `modules_to_save` out; 5.18 does not.
DROPS_PARTS = Version(transformers.__version__) < Version("5.18")


def test_status_counts_and_names_what_is_there(adapt, make_config, make_base):
    model = adapt(make_base())
    status = get_model_status(model)
    assert status.active_adapters == ["default"] and status.enabled is True
    assert status.requires_grad == {"default": True} and status.merged_adapters == []
    assert status.peft_types == {"default": make_config().peft_type}
    assert status.trainable_params == model.get_nb_trainable_parameters()[0]
    model.base_model.disable_adapter_layers()
    assert get_model_status(model).enabled is False
    model.base_model.enable_adapter_layers()
    assert all(layer.active_adapters == ["default"] for layer in get_layer_status(model))


def test_prints_what_trains(adapt, make_base, capsys):
    model = adapt(make_base())
    model.print_trainable_parameters()
    trainable, total = model.get_nb_trainable_parameters()
    assert f"trainable params: {trainable:,d} || all params: {total:,d}" in capsys.readouterr().out


def test_loads_frozen_or_to_train_on(adapt, make_base, pixels, perturb, tmp_path):
    model = perturb(adapt(make_base()))
    model.save_pretrained(tmp_path)
    frozen = PeftModel.from_pretrained(make_base(), tmp_path).eval()
    assert not trainable(frozen)
    trains = PeftModel.from_pretrained(make_base(), tmp_path, is_trainable=True).eval()
    assert trainable(trains).keys() == trainable(model).keys()
    with torch.no_grad():  # attention takes another path where its position table trains
        for other in (frozen, trains):
            check_equal(predict(other, pixels, "normals"), predict(model, pixels, "normals"))


@torch.no_grad()
def test_loads_from_a_subfolder_onto_a_device(adapt, make_base, pixels, perturb, tmp_path):
    model = perturb(adapt(make_base()))
    model.save_pretrained(tmp_path / "adapters" / "first")
    loaded = PeftModel.from_pretrained(make_base(), tmp_path / "adapters", subfolder="first", torch_device="cpu")
    check_equal(predict(loaded.eval(), pixels, "normals"), predict(model, pixels, "normals"))


def test_other_sizes_load_where_asked(adapt, make_config, make_dense, tmp_path):
    adapt(make_dense()).save_pretrained(tmp_path)
    other = adapt(make_dense(decoder_width=8))
    with pytest.raises(RuntimeError, match="size mismatch"):
        other.load_adapter(tmp_path, "second")
    other.load_adapter(tmp_path, "third", ignore_mismatched_sizes=True)


@pytest.mark.usefixtures("double")
@torch.no_grad()
def test_automatic_classes_find_base_and_adapter(adapt, make_base, pixels, perturb, tmp_path):
    base = make_base()
    if not isinstance(base, SwinModel | MultiTaskDenseModel):
        pytest.skip("a view of an encoder is made by a call, and no class of transformers")
    base.save_pretrained(tmp_path / "base")
    model = perturb(adapt(type(base).from_pretrained(tmp_path / "base")))
    model.save_pretrained(tmp_path / "adapter")
    for auto, kwargs in ((AutoModel, {}), (AutoPeftModel, {"import_allowlist": ["peft_polyhistor", "transformers"]})):
        if auto is AutoModel and DROPS_PARTS and isinstance(base, MultiTaskDenseModel):
            with pytest.raises(ValueError, match=r"does not hold the weights of its config: .*decoders\.modules_to"):
                auto.from_pretrained(tmp_path / "adapter")
            continue
        loaded = auto.from_pretrained(tmp_path / "adapter", **kwargs).eval()
        check_equal(predict(loaded, pixels, "normals"), predict(model, pixels, "normals"), **PLACED_BY_FILE)


def test_trains_in_the_trainer_of_transformers(adapt, make_dense, make_labels, tmp_path):
    model = adapt(make_dense())
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


@torch.no_grad()
def test_injected_without_a_peft_model_it_does_the_same(adapt, make_config, make_base, pixels, perturb):
    model = perturb(adapt(make_base()))
    injected = inject_adapter_in_model(make_config(), make_base()).eval()
    weights = model.base_model.model.state_dict()
    injected.load_state_dict({name: weights[name] for name in injected.state_dict() if name in weights}, strict=False)
    encoder = model.base_model.model
    if isinstance(injected, MultiTaskDenseModel):  # PEFT leaves modules_to_save to its PeftModel
        injected, encoder = injected.encoder, encoder.encoder
    for task in TASKS:
        check_equal(injected(pixels, tasks=[task]), encoder(pixels, tasks=[task]))


@pytest.fixture
def accepted_by_transformers():
    """Skips where transformers refuses the installed PEFT in its own methods, whatever the adapter."""
    try:
        check_peft_version(MIN_PEFT_VERSION)
    except ValueError as error:
        pytest.skip(f"transformers: {error}")


@rows(lambda row: SwinModel in row.bases)
@pytest.mark.usefixtures("accepted_by_transformers", "double")
@torch.no_grad()
def test_adapters_of_transformers_do_the_same(adapt, make_config, make_swin, pixels, perturb, tmp_path):
    model = perturb(adapt(make_swin()))
    model.save_pretrained(tmp_path)
    expected = model(pixels, task="normals")
    loaded = make_swin()
    loaded.load_adapter(str(tmp_path))
    check_equal(loaded.eval()(pixels, task="normals"), expected, **PLACED_BY_FILE)
    loaded.disable_adapters()
    check_equal(loaded(pixels, task="normals"), make_swin()(pixels))
    loaded.enable_adapters()
    check_equal(loaded(pixels, task="normals"), expected, **PLACED_BY_FILE)
    loaded.delete_adapter("default")
    check_equal(loaded(pixels), make_swin()(pixels))
    loaded.add_adapter(make_config(), "fresh")
    assert loaded.active_adapters() == ["fresh"] and trainable(loaded)
    assert differ(perturb(loaded)(pixels, task="normals"), predict_frozen(make_swin(), pixels, "normals"))


def test_types_do_not_mix(make_swin):
    with pytest.raises(ValueError, match="'POLYHISTOR' is not compatible with the `PeftMixedModel`"):
        get_peft_model(make_swin(), PolyhistorConfig(tasks=TASKS, reduction_factor=2), mixed=True)
    model = get_peft_model(make_swin(), PolyhistorLiteConfig(tasks=TASKS))
    with pytest.raises(ValueError, match="LORA"):
        model.add_adapter("lora", LoraConfig(target_modules=["q_proj"]))


@pytest.mark.slow  # it imports everything anew
def test_without_the_import_the_error_names_the_type_and_the_import_mends_it(make_swin, tmp_path):
    get_peft_model(make_swin(), PolyhistorLiteConfig(tasks=TASKS)).save_pretrained(tmp_path)
    script = (
        "from peft import PeftConfig\n"
        f"try:\n    PeftConfig.from_pretrained({str(tmp_path)!r})\nexcept KeyError as error:\n    print(repr(error))\n"
        f"import peft_polyhistor\nprint(PeftConfig.from_pretrained({str(tmp_path)!r}).peft_type.value)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["KeyError('POLYHISTOR_LITE')", "POLYHISTOR_LITE"]
