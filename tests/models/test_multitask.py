# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The dense model: logits, losses, saving, training by transformers' Trainer, and errors."""

import copy
import itertools

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from tiny_models import DENSE_TASKS, make_pvt, randomise
from torch import nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModel,
    ResNetBackbone,
    ResNetConfig,
    SwinBackbone,
    SwinConfig,
    SwinForImageClassification,
    SwinModel,
    Trainer,
    TrainingArguments,
)

from peft_polyhistor import (
    TASKS,
    DecodersConfig,
    MultiTaskDenseConfig,
    MultiTaskDenseModel,
    PolyhistorConfig,
    PolyhistorLiteConfig,
    StageEncoder,
    load_encoder,
)
from peft_polyhistor.models.multitask import MultiTaskDenseOutput
from peft_polyhistor.tasks.table import count_labels


ALL_TASKS = ["semseg", "human_parts", "saliency", "normals"]
CHANNELS = {"semseg": 21, "human_parts": 7, "saliency": 1, "normals": 3}


@pytest.fixture
def pixels():
    return torch.randn(2, 3, 64, 96)


@pytest.fixture
def labels(make_labels):
    return make_labels(ALL_TASKS, 2, 64, 96)


# Building


@pytest.mark.parametrize("cls", [SwinModel, SwinBackbone, SwinForImageClassification])
@torch.no_grad()
def test_a_pretrained_encoder_keeps_its_weights(make_swin, make_dense, pixels, cls):
    encoder = make_swin(cls)
    swin = encoder if cls is SwinModel else encoder.swin
    before = copy.deepcopy({**swin.embeddings.state_dict(), **swin.encoder.state_dict()})
    model = make_dense(ALL_TASKS, encoder)
    after = {**model.encoder.embeddings.state_dict(), **model.encoder.encoder.state_dict()}
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())
    assert sum(p.numel() for p in model.encoder.parameters()) == sum(tensor.numel() for tensor in before.values())


def test_a_backbone_keeps_its_weights(make_dense):
    encoder = make_pvt()
    before = copy.deepcopy(encoder.state_dict())
    after = make_dense(ALL_TASKS, encoder).encoder.backbone.state_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())


class OwnStages(StageEncoder):
    """An encoder of modules that transformers never initialised."""

    needs_norm = False

    def __init__(self):
        super().__init__()
        self.config, self.widths, self.strides = SwinConfig(), [3, 5, 7, 9], [4, 8, 16, 32]
        self.convs = nn.ModuleList(
            nn.Conv2d(i, o, kernel_size=s, stride=s)
            for i, o, s in zip([3, *self.widths], self.widths, [4, 2, 2, 2], strict=False)
        )

    def stage_maps(self, pixel_values):
        return list(itertools.accumulate(self.convs, lambda x, conv: conv(x), initial=pixel_values))[1:]


def test_an_encoder_of_ones_own_keeps_its_weights(make_dense, pixels):
    encoder = OwnStages()
    before = copy.deepcopy(encoder.state_dict())
    model = make_dense(ALL_TASKS, encoder)
    assert model.encoder is encoder
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())
    assert model(pixels).logits["semseg"].shape == (2, 21, 64, 96)


def test_norms_stand_where_the_encoder_has_none(make_dense):
    for encoder, norm in ((None, nn.LayerNorm), (make_pvt(), nn.Identity)):
        for head in make_dense(ALL_TASKS, encoder).decoders.heads.values():
            assert {type(module) for module in head.norms} == {norm}


# Logits


@pytest.mark.parametrize("encoder", [None, make_pvt], ids=["swin", "pvt"])
@pytest.mark.parametrize("size", [(32, 32), (33, 47), (64, 96), (40, 200)], ids=str)
@torch.no_grad()
def test_any_size_gives_logits_of_that_size_or_of_stride_4(make_dense, encoder, size):
    model = make_dense(ALL_TASKS, encoder and encoder())
    pixels = torch.randn(2, 3, *size)
    logits, coarse = model(pixels).logits, model(pixels, full_resolution=False).logits
    assert list(logits) == list(coarse) == ALL_TASKS
    for task, channels in CHANNELS.items():
        assert logits[task].shape == (2, channels, *size)
        assert coarse[task].shape == (2, channels, *(-(-side // 4) for side in size))
        expected = F.interpolate(coarse[task], size=size, mode="bilinear", align_corners=False)
        assert torch.equal(logits[task], expected)


@torch.no_grad()
def test_logits_are_those_of_the_encoder_and_the_decoders(make_swin, make_dense, pixels):
    model = make_dense(ALL_TASKS)
    maps = model.encoder(pixels)
    logits = model(pixels, full_resolution=False).logits
    for task in ALL_TASKS:
        assert torch.equal(logits[task], model.decoders.heads[task](maps))


@torch.no_grad()
def test_a_subset_of_tasks_is_predicted_alone(make_dense, pixels):
    model = make_dense(ALL_TASKS)
    every, some = model(pixels).logits, model(pixels, tasks=["normals", "semseg"]).logits
    assert list(some) == ["normals", "semseg"]
    assert all(torch.equal(some[task], every[task]) for task in some)


@torch.no_grad()
def test_a_tuple_on_request(make_dense, pixels, labels):
    model = make_dense(ALL_TASKS)
    loss, logits, losses = model(pixels, labels, return_dict=False)
    output = model(pixels, labels)
    assert loss == output.loss
    assert list(logits) == list(losses) == list(output.logits)
    assert len(model(pixels, return_dict=False)) == 1
    assert isinstance(model(pixels, return_dict=None), MultiTaskDenseOutput)


# Losses


@torch.no_grad()
def test_the_loss_is_the_weighted_sum_of_the_tasks(make_dense, pixels, labels):
    model = make_dense(ALL_TASKS)
    output = model(pixels, labels)
    coarse = model(pixels, full_resolution=False).logits
    for task in ALL_TASKS:
        assert torch.equal(output.losses[task], TASKS[task].loss(coarse[task], labels[task]))
    weights = {"semseg": 1, "human_parts": 2, "saliency": 5, "normals": 10}
    torch.testing.assert_close(output.loss, sum(weights[task] * output.losses[task] for task in ALL_TASKS))
    assert model(pixels).loss is model(pixels).losses is None


@torch.no_grad()
def test_counts_of_labels_replace_those_of_the_batch(make_dense, pixels, labels):
    model = make_dense(ALL_TASKS)
    output = model(pixels, labels, counts={"semseg": 3 * count_labels(labels, ["semseg"])["semseg"]})
    expected = model(pixels, labels).losses | {"semseg": model(pixels, labels).losses["semseg"] / 3}
    torch.testing.assert_close(output.losses, expected)


@torch.no_grad()
def test_weights_of_the_config_replace_those_of_the_tasks(make_dense, pixels, labels):
    output = make_dense(ALL_TASKS, loss_weights={"semseg": 0.5, "normals": 0})(pixels, labels)
    weights = {"semseg": 0.5, "human_parts": 2, "saliency": 5, "normals": 0}
    torch.testing.assert_close(output.loss, sum(weights[task] * output.losses[task] for task in ALL_TASKS))


@torch.no_grad()
def test_tasks_without_a_label_have_no_loss(make_dense, pixels, labels):
    model = make_dense(ALL_TASKS)
    output = model(pixels, {"saliency": labels["saliency"]})
    assert list(output.logits) == ALL_TASKS
    assert list(output.losses) == ["saliency"]
    torch.testing.assert_close(output.loss, 5 * output.losses["saliency"])
    assert list(model(pixels, labels, tasks=["semseg"]).losses) == ["semseg"]


@torch.no_grad()
def test_labels_may_be_larger_than_the_picture(make_dense, make_labels, pixels):
    assert make_dense(ALL_TASKS)(pixels, make_labels(ALL_TASKS, 2, 100, 150)).loss.isfinite()


# Saving


@pytest.mark.parametrize("encoder", [None, make_pvt], ids=["swin", "pvt"])
@pytest.mark.parametrize("loader", [MultiTaskDenseModel, AutoModel])
@torch.no_grad()
def test_saves_and_loads_bit_for_bit(make_dense, pixels, encoder, loader, tmp_path):
    model = make_dense(ALL_TASKS[::-1], encoder and encoder(), decoder_dropout=0.3, loss_weights={"semseg": 0.5})
    model.save_pretrained(tmp_path)
    loaded = loader.from_pretrained(tmp_path)
    assert type(loaded) is MultiTaskDenseModel
    assert not loaded.training
    state = loaded.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    logits = loaded(pixels).logits
    assert list(logits) == ALL_TASKS[::-1]
    assert all(torch.equal(logits[task], expected) for task, expected in model(pixels).logits.items())
    assert loaded.config.decoder_dropout == 0.3
    assert loaded.config.loss_weights == {"semseg": 0.5}


def test_the_config_round_trips(make_dense, tmp_path):
    config = make_dense(ALL_TASKS[:2]).config
    config.save_pretrained(tmp_path)
    for loaded in (MultiTaskDenseConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert type(loaded) is MultiTaskDenseConfig
        assert type(loaded.encoder) is type(config.encoder)
        assert loaded.tasks == ALL_TASKS[:2]
        assert loaded.encoder.embed_dim == 8


def test_a_config_alone_gives_fresh_weights(make_dense):
    model = MultiTaskDenseModel(make_dense(ALL_TASKS).config)
    assert model.state_dict().keys() == make_dense(ALL_TASKS).state_dict().keys()


# Training


class Pictures(torch.utils.data.Dataset):
    def __init__(self, labels):
        self.pixels, self.labels = torch.randn(4, 3, 64, 96), labels

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, i):
        return {"pixel_values": self.pixels[i], "labels": {task: label[i] for task, label in self.labels.items()}}


def collate(examples):
    labels = {task: torch.stack([example["labels"][task] for example in examples]) for task in examples[0]["labels"]}
    return {"pixel_values": torch.stack([example["pixel_values"] for example in examples]), "labels": labels}


@pytest.mark.parametrize("checkpointing", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("adapted", [False, True])
def test_trains_in_transformers_trainer(make_dense, make_labels, adapted, checkpointing, tmp_path):
    model = make_dense(ALL_TASKS)
    if adapted:
        model = get_peft_model(model, PolyhistorLiteConfig(tasks=ALL_TASKS))
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=2, learning_rate=0.01, use_cpu=True,
        report_to=[], remove_unused_columns=False, disable_tqdm=True, gradient_checkpointing=checkpointing,
    )  # fmt: skip
    pictures = Pictures(make_labels(ALL_TASKS, 4, 64, 96))
    trainer = Trainer(model, arguments, train_dataset=pictures, eval_dataset=pictures, data_collator=collate)
    assert trainer.train().global_step == 2
    assert trainer.evaluate()["eval_loss"] > 0
    changed = [name for name, p in model.named_parameters() if p.requires_grad and not torch.equal(p, before[name])]
    assert changed == list(before)
    assert (tmp_path / "checkpoint-2").is_dir()


def test_decoders_alone_can_train(make_dense, pixels, labels):
    model = make_dense(ALL_TASKS)
    model.encoder.requires_grad_(False)
    model(pixels, labels).loss.backward()
    assert all(p.grad is None for p in model.encoder.parameters())
    assert all(p.grad.any() for p in model.decoders.parameters())


@pytest.mark.parametrize("encoder", [None, make_pvt], ids=["swin", "pvt"])
@torch.no_grad()
def test_adapters_fit_any_encoder(make_dense, perturb, pixels, encoder):
    plain = make_dense(ALL_TASKS, encoder and encoder())
    target_modules = None if encoder is None else ["mlp"]
    config = PolyhistorConfig(tasks=ALL_TASKS, target_modules=target_modules, reduction_factor=2)
    model = get_peft_model(copy.deepcopy(plain), config).eval()
    for task in ALL_TASKS:
        assert torch.equal(model(pixels, tasks=[task]).logits[task], plain(pixels).logits[task])
    perturb(model.base_model.model.task_adapters)
    maps = model.base_model.model.encoder(pixels, tasks=ALL_TASKS)
    assert not any(torch.equal(a, b) for a, b in zip(maps["semseg"], maps["normals"], strict=True))


# Errors


def test_widths_that_are_no_multiples_are_an_error(make_dense):
    with pytest.raises(ValueError, match=r"multiples of the smallest, 8, and '.*mlp' has 20.*use PolyhistorConfig"):
        get_peft_model(make_dense(ALL_TASKS, make_pvt()), PolyhistorLiteConfig(target_modules=["mlp"]))


def test_biases_fit_the_labels(make_dense, labels):
    model = make_dense()
    model.fit_biases({task: labels[task] for task in ("semseg", "normals")})
    for task in ("semseg", "normals"):
        assert torch.equal(model.decoders.heads[task].classifier.bias, TASKS[task].fit_bias(labels[task]))
    assert model.decoders.heads["human_parts"].classifier.bias.count_nonzero() == 0
    assert all(parameter.requires_grad for parameter in model.decoders.parameters())


@pytest.mark.parametrize(
    ("task", "spoil", "message"),
    [
        ("nonsense", torch.clone, "nonsense"),
        ("human_parts", lambda label: label + 21, "human_parts"),
        ("human_parts", lambda label: torch.full_like(label, 255), "'human_parts' has a labelled pixel. Give labels"),
    ],
    ids=["unknown", "out of range", "unlabelled"],
)
def test_bad_labels_change_no_bias(make_dense, labels, task, spoil, message):
    model = make_dense()
    with pytest.raises(ValueError, match=message):
        model.fit_biases({"semseg": labels["semseg"], task: spoil(labels["human_parts"])})
    assert model.decoders.heads["semseg"].classifier.bias.count_nonzero() == 0


def test_biases_of_an_adapted_model_are_not_fitted(make_dense, labels):
    model = make_dense()
    get_peft_model(model, PolyhistorConfig(tasks=ALL_TASKS, reduction_factor=4))
    with pytest.raises(ValueError, match="Fit biases before `get_peft_model`"):
        model.fit_biases(labels)


@pytest.mark.parametrize("ours", [False, True])
@pytest.mark.parametrize("theirs", [False, True])
@torch.no_grad()
def test_copied_decoders_compute_the_same_whether_norms_are_shared_or_not(make_dense, pixels, ours, theirs):
    trained = randomise(make_dense(shared_norms=theirs))
    model = make_dense(["normals", "semseg"], shared_norms=ours)
    model.encoder.load_state_dict(trained.encoder.state_dict())
    model.copy_decoders(trained)
    expected = trained(pixels).logits
    for task, logits in model(pixels).logits.items():
        torch.testing.assert_close(logits, expected[task], atol=1e-4, rtol=1e-4)
    assert all(parameter.requires_grad for parameter in model.decoders.parameters())


def test_decoders_of_the_active_adapter_are_copied(make_dense):
    adapted = get_peft_model(make_dense(), DecodersConfig(tasks=DENSE_TASKS))
    adapted.add_adapter("second", DecodersConfig(tasks=DENSE_TASKS))
    adapted.set_adapter("second")
    randomise(adapted.get_base_model().decoders.modules_to_save["second"])
    model = make_dense()
    model.copy_decoders(adapted)
    theirs = adapted.get_base_model().decoders.modules_to_save["second"].heads["semseg"].classifier
    assert torch.equal(model.decoders.heads["semseg"].classifier.weight, theirs.weight)
    with pytest.raises(ValueError, match="Copy before `get_peft_model`"):
        adapted.get_base_model().copy_decoders(model)
    adapted.add_adapter("bare", DecodersConfig(tasks=DENSE_TASKS, inference_mode=True))  # without decoders
    adapted.set_adapter("bare")
    model.copy_decoders(adapted)
    theirs = adapted.get_base_model().decoders.original_module.heads["semseg"].classifier
    assert torch.equal(model.decoders.heads["semseg"].classifier.weight, theirs.weight)


@pytest.mark.parametrize(("tasks", "width"), [(["semseg"], 12), (DENSE_TASKS, 16)])
def test_decoders_of_other_sizes_are_not_copied(make_dense, tasks, width):
    model = make_dense(["semseg", "normals"])
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"has decoders for \['semseg'.*This model needs .*'normals'\] with .*=12"):
        model.copy_decoders(make_dense(tasks, decoder_width=width))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("tasks", [["semseg", "depth"], [], "semseg", ["semseg", "semseg"]], ids=str)
def test_unknown_tasks_are_an_error(make_swin, make_dense, pixels, tasks):
    with pytest.raises(ValueError, match=r"(?i)tasks?.*Known tasks: semseg, human_parts, saliency, normals"):
        MultiTaskDenseModel.from_encoder(make_swin(), tasks)
    message = r"(?i)(task|decoder).*This model has \['semseg', 'human_parts', 'saliency', 'normals'\]"
    with pytest.raises(ValueError, match=message):
        make_dense(ALL_TASKS)(pixels, tasks=tasks)


def test_a_task_that_is_removed_takes_its_loss_weight_along(make_dense):
    model = make_dense(ALL_TASKS, loss_weights={"semseg": 0.5, "normals": 2.0, "saliency": 3.0})
    model.remove_task("saliency")
    assert model.config.loss_weights == {"semseg": 0.5, "normals": 2.0}
    model.keep_tasks(["normals"])
    assert model.config.loss_weights == {"normals": 2.0}


def test_a_loss_weight_of_an_unknown_task_is_an_error(make_dense):
    with pytest.raises(ValueError, match=r"Unknown tasks \['depth'\]"):
        make_dense(ALL_TASKS, loss_weights={"depth": 1})


def test_a_task_without_a_decoder_is_an_error(make_dense, pixels):
    with pytest.raises(ValueError, match=r"No decoder for \['normals'\]\. This model has \['semseg'\]"):
        make_dense(["semseg"])(pixels, tasks=["normals"])


def test_an_encoder_without_four_stages_is_an_error(make_swin):
    encoder = make_swin(depths=[2, 2, 2], num_heads=[1, 2, 2], out_features=["stage3"])
    with pytest.raises(ValueError, match=r"needs the maps of four stages; SwinModel yields 3"):
        MultiTaskDenseModel.from_encoder(encoder, ALL_TASKS)


def test_what_is_no_encoder_is_an_error():
    with pytest.raises(TypeError, match="Linear is no encoder of a known family"):
        MultiTaskDenseModel.from_encoder(nn.Linear(3, 3), ALL_TASKS)


@pytest.mark.parametrize(("shape", "message"), [
    ((1, 3, 31, 64), r"31 x 64 pixels are too small.*at least 32"),
    ((1, 3, 64, 31), r"64 x 31 pixels are too small.*at least 32"),
    ((1, 1, 64, 64), r"\(batch, 3, height, width\), got \(1, 1, 64, 64\)"),
    ((3, 64, 64), r"\(batch, 3, height, width\), got \(3, 64, 64\)"),
])  # fmt: skip
def test_pictures_of_a_wrong_shape_are_an_error(make_dense, shape, message):
    with pytest.raises(ValueError, match=message):
        make_dense(ALL_TASKS)(torch.randn(shape))


def test_pictures_of_whole_numbers_are_an_error(make_dense):
    with pytest.raises(ValueError, match=r"normalised floating-point values, got torch\.uint8"):
        make_dense(ALL_TASKS)(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))


@pytest.mark.parametrize(("task", "spoil", "message"), [
    ("semseg", lambda label: label[:1], r"Labels of semseg have shape \(1, 64, 96\)"),
    ("semseg", lambda label: label[:, None], r"Labels of semseg have shape \(2, 1, 64, 96\)"),
    ("human_parts", lambda label: label + 7, r"Labels of human_parts hold .* allowed are the class ids 0 to 6"),
    ("human_parts", lambda label: label.float(), "Labels of human_parts are torch.float32"),
    ("saliency", lambda label: label[:, 0], r"Labels of saliency have shape \(2, 64, 96\)"),
    ("saliency", lambda label: label * 255, r"Labels of saliency hold the values \[255.0\]"),
    ("normals", lambda label: label[:, :2], r"Labels of normals have shape \(2, 2, 64, 96\)"),
    ("normals", lambda label: label * 2, "Labels of normals hold vectors of length"),
])  # fmt: skip
def test_labels_that_do_not_fit_are_an_error(make_dense, pixels, labels, task, spoil, message):
    with pytest.raises(ValueError, match=message):
        make_dense(ALL_TASKS)(pixels, {**labels, task: spoil(labels[task])})


def test_labels_of_no_task_are_an_error(make_dense, pixels, labels):
    with pytest.raises(ValueError, match=r"labels of \['semsag'\], which are no tasks; those predicted are"):
        make_dense(ALL_TASKS)(pixels, labels | {"semsag": labels["semseg"]})


def test_labels_of_other_tasks_are_an_error(make_dense, pixels, labels):
    with pytest.raises(ValueError, match=r"labels of \['normals'\] and none of the predicted tasks \['semseg'\]"):
        make_dense(ALL_TASKS)(pixels, {"normals": labels["normals"]}, tasks=["semseg"])


def test_a_frozen_encoder_keeps_its_statistics():
    stages = [f"stage{i}" for i in range(1, 5)]
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
    backbone = ResNetBackbone(ResNetConfig(**sizes, out_features=stages))
    model = MultiTaskDenseModel.from_encoder(backbone, ["saliency"], decoder_width=4)
    before = {name: buffer.clone() for name, buffer in model.encoder.named_buffers()}
    model.encoder.requires_grad_(False)
    model.train()(torch.randn(2, 3, 64, 64))
    for name, buffer in model.encoder.named_buffers():
        assert torch.equal(buffer, before[name])
    assert model.decoders.training


def test_the_place_an_encoder_came_from_is_not_saved(make_swin, tmp_path):
    make_swin().save_pretrained(tmp_path / "encoder")
    encoder = load_encoder(str(tmp_path / "encoder"))
    model = MultiTaskDenseModel.from_encoder(encoder, ["saliency"], decoder_width=4)
    model.save_pretrained(tmp_path / "dense")
    assert str(tmp_path) not in (tmp_path / "dense" / "config.json").read_text()


def test_arguments_have_the_names_of_transformers(make_dense, tmp_path):
    make_dense(["semseg"]).save_pretrained(tmp_path)
    model, info = MultiTaskDenseModel.from_pretrained(pretrained_model_name_or_path=tmp_path, output_loading_info=True)
    assert model.config.tasks == ["semseg"] and not info["missing_keys"]


def test_a_checkpoint_is_read_whole_or_refused(make_dense, tmp_path):
    make_dense(["semseg"]).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    first = min(weights)
    save_file({key: tensor for key, tensor in weights.items() if key != first}, file, {"format": "pt"})
    with pytest.raises(ValueError, match=f"1 are missing, as .*{first}.* 0 are left over"):
        MultiTaskDenseModel.from_pretrained(tmp_path)
    save_file(weights | {"more": torch.zeros(1)}, file, {"format": "pt"})
    with pytest.raises(ValueError, match=r"0 are missing, .* 1 are left over, as \['more'\]"):
        MultiTaskDenseModel.from_pretrained(tmp_path)
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(ValueError, match="are damaged"):
        MultiTaskDenseModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(("name", "value"), [
    ("decoder_width", 0), ("decoder_width", 2**31), ("decoder_dropout", float("nan")), ("shared_norms", "no"),
    ("loss_weights", {"semseg": "2"}), ("loss_weights", [1]), ("encoder", "swin"), ("encoder", {"model_type": "x"}),
])  # fmt: skip
def test_a_field_of_the_config_that_cannot_be_is_named(name, value):
    with pytest.raises(ValueError, match="no `encoder` to build"):
        MultiTaskDenseModel(MultiTaskDenseConfig())
    with pytest.raises((ValueError, TypeError), match=f"`{name}` must be"):
        MultiTaskDenseConfig(**{name: value})
