# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The pretraining recipe, on a few pictures of noise and with tiny teachers."""

import json

import numpy as np
import pytest
import timm
import torch
from datasets import Dataset
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import ResNetConfig, ResNetForImageClassification, SwinConfig, SwinModel, ViTImageProcessor

from peft_polyhistor import load_encoder


CROPS = "--shards 3 --shard-size 4 --teacher-size 96 --image-size 64 --teacher-batch-size 2 --steps 0"
STUDENT = "--embed-dim 8 --depths 1 1 1 1 --heads 1 2 2 2 --window 2 --batch-size 2 --warmup-steps 2 --decay-steps 2"


@pytest.fixture
def recipe(load_recipe):
    return load_recipe("pretrain_encoder")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder, noise = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for label in ("cat", "dog"):
        (folder / label).mkdir()
        for number in range(3):
            pixels = noise.integers(0, 256, (40, 36, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def timm_teacher(tmp_path_factory):
    """`--teacher` for an untrained LCNet, written as timm writes it for the Hub."""
    folder, model = tmp_path_factory.mktemp("teacher"), timm.create_model("lcnet_035", num_classes=5)
    timm.models.save_for_hf(
        model, folder, model_config={"mean": [0.5] * 3, "std": [0.25] * 3}, safe_serialization=True
    )
    return f"local-dir:{folder}"


@pytest.fixture(scope="module")
def transformers_teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resnet")
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], num_labels=5)
    ResNetForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def answer(recipe, pictures, tmp_path):
    """`answer(*more)`: the folder of three shards, made with these further arguments."""

    def run(*more, name="answers"):
        folders = ["--answers", str(tmp_path / name), "--output-dir", str(tmp_path / "none")]
        recipe.main(recipe.parse_arguments(["--data", str(pictures), *folders, *CROPS.split(), *more]))
        return tmp_path / name

    return run


@pytest.fixture
def train(recipe):
    def run(answers, output, *more):
        arguments = ["--answers", str(answers), "--output-dir", str(output), *STUDENT.split(), *more]
        return recipe.main(recipe.parse_arguments(arguments))

    return run


def test_student_can_be_loaded(answer, train, timm_teacher, tmp_path):
    progress = train(answer("--teacher", timm_teacher), tmp_path / "run", "--steps", "3")
    output = tmp_path / "run" / "encoder"
    assert {path.name for path in output.iterdir()} == {"config.json", "model.safetensors", "training.json"}
    training = json.loads((output / "training.json").read_text())
    assert training["step"] == progress["step"] == 3 and training["best"] == progress["best"]
    assert set(training["losses"]) == {"map8", "map16", "map32", "places16", "places32", "logits"}
    assert {
        weight.dtype for weight in load_file(output / "model.safetensors").values() if weight.is_floating_point()
    } == {torch.float16}
    encoder = load_encoder(str(output))
    assert list(encoder.widths) == [8, 16, 32, 64]
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}
    assert all(torch.isfinite(parameter).all() for parameter in encoder.parameters())


def test_answers_are_the_teachers(answer, timm_teacher):
    shards = [load_file(file) for file in sorted(answer("--teacher", timm_teacher, "--teacher-size", "64").glob("0*"))]
    model = timm.create_model(timm_teacher, pretrained=True).eval()
    pixels = (shards[1]["images"] / 255 - 0.5) / 0.25  # the student's crops here, as both sizes are 64
    with torch.inference_mode():
        torch.testing.assert_close(shards[1]["logits"].float(), model(pixels), atol=2e-3, rtol=2e-3)
        last = model.forward_intermediates(pixels, intermediates_only=True)[-1]
    torch.testing.assert_close(shards[1]["map32"].float(), last, atol=2e-3, rtol=2e-3)
    assert [shards[1][f"map{stride}"].shape[-1] for stride in (8, 16, 32)] == [8, 4, 2]


def test_places_are_classified_as_small_pictures_of_their_own(answer, timm_teacher):
    shard = load_file(answer("--teacher", timm_teacher, "--teacher-size", "64") / "00000.safetensors")
    model = timm.create_model(timm_teacher, pretrained=True).eval()
    with torch.inference_mode():
        last, _ = model.forward_intermediates((shard["images"] / 255 - 0.5) / 0.25)
        for row in range(2):
            for column in range(2):
                place = model.forward_head(last[:, :, row : row + 1, column : column + 1]).softmax(-1)
                found = torch.zeros_like(place).scatter_(
                    1, shard["classes"][:, :, row, column].long(), shard["probabilities"][:, :, row, column].float()
                )
                torch.testing.assert_close(found, place, atol=2e-3, rtol=2e-3)  # all five classes are kept


def test_teacher_of_transformers(answer, transformers_teacher):
    shard = load_file(answer("--teacher", transformers_teacher) / "00000.safetensors")
    assert shard["logits"].shape == (4, 5) and shard["images"].shape == (4, 3, 64, 64)
    assert [tuple(shard[f"map{stride}"].shape[1:]) for stride in (8, 16, 32)] == [(8, 12, 12), (16, 6, 6), (16, 3, 3)]


def test_answers_beyond_float16_are_refused(recipe, timm_teacher):
    teacher = recipe.Teacher(timm_teacher, torch.device("cpu"))
    teacher.model.classifier.bias.data.fill_(1e6)
    with pytest.raises(ValueError, match=r"The teacher's \['logits'\] hold numbers that are no finite float16"):
        teacher(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))


def test_missing_shard_is_made_again_and_the_same(answer):
    folder = answer()
    before = load_file(folder / "00001.safetensors")
    (folder / "00001.safetensors").unlink()
    (folder / "00002.safetensors").write_bytes(b"kept")
    answer()
    after = load_file(folder / "00001.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in ("images", "labels"))
    assert (folder / "00002.safetensors").read_bytes() == b"kept"


def test_resumed_run_equals_an_uninterrupted_one(answer, train, recipe, timm_teacher, tmp_path, monkeypatch):
    answers = answer("--teacher", timm_teacher)
    train(answers, tmp_path / "whole", "--steps", "5")
    backward = torch.Tensor.backward
    monkeypatch.setattr(torch.Tensor, "backward", stop_after(3, backward))
    with pytest.raises(KeyboardInterrupt):
        train(answers, tmp_path / "broken", "--steps", "5", "--save-minutes", "0")
    monkeypatch.setattr(torch.Tensor, "backward", backward)
    train(answers, tmp_path / "broken", "--steps", "5")
    whole, broken = (torch.load(tmp_path / name / "state.pt") for name in ("whole", "broken"))
    assert whole["progress"]["step"] == broken["progress"]["step"] == 5
    assert all(torch.equal(value, broken["lesson"][name]) for name, value in whole["lesson"].items())


def stop_after(count, backward):
    calls = []

    def stopping(*arguments, **keywords):
        calls.append(None)
        if len(calls) > count:
            raise KeyboardInterrupt
        return backward(*arguments, **keywords)

    return stopping


def test_branch_leaves_its_origin_alone(answer, train, tmp_path):
    answers, stable, branch = answer(), tmp_path / "stable", tmp_path / "branch"
    train(answers, stable, "--steps", "3", "--decay-steps", "0")
    before = (stable / "state.pt").read_bytes()
    assert train(answers, branch, "--steps", "5", "--start-from", str(stable))["step"] == 5
    assert (stable / "state.pt").read_bytes() == before and (branch / "encoder" / "config.json").exists()


def test_student_starts_from_given_weights(answer, train, recipe, tmp_path):
    answers = answer()
    train(answers, tmp_path / "first", "--steps", "1")
    given = str(tmp_path / "first" / "encoder")
    arguments = recipe.parse_arguments(["--answers", "x", "--output-dir", "y", "--student", given])
    student, pixels = recipe.make_student(arguments, 96, 7).eval(), torch.randn(1, 3, 96, 96)
    assert student.config.image_size == 96 and student.classifier.out_features == 7
    assert recipe.make_student(arguments, 96, 7).training
    wanted = SwinModel.from_pretrained(given, dtype=torch.float32).eval()(pixels).last_hidden_state
    assert torch.equal(student.swin(pixels).last_hidden_state, wanted)
    words = [
        "--answers",
        str(answers),
        "--output-dir",
        str(tmp_path / "second"),
        "--student",
        given,
        "--batch-size",
        "2",
    ]
    assert recipe.main(recipe.parse_arguments([*words, "--steps", "1"]))["step"] == 1
    training = json.loads((tmp_path / "second" / "encoder" / "training.json").read_text())
    assert training["student"] == given and "embed_dim" not in training


def test_student_is_a_swin(recipe, transformers_teacher):
    arguments = recipe.parse_arguments(["--answers", "x", "--output-dir", "y", "--student", transformers_teacher])
    with pytest.raises(ValueError, match=r"--student .*: the weights \['swin\..*Give a Swin"):
        recipe.make_student(arguments, 64, 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_absolute_embeddings": True}, r"\['swin\.embeddings\.position_embeddings'\] are missing or have other"),
        ({"patch_size": 2}, "has patches of 2 px and 4 stages"),
        ({"depths": [1, 1], "num_heads": [1, 2]}, "has patches of 4 px and 2 stages"),
    ],
)
def test_students_that_cannot_learn_are_refused(recipe, tmp_path, change, message):
    shape = {"image_size": 64, "embed_dim": 8, "depths": [1] * 4, "num_heads": [1, 2, 2, 2], "window_size": 2}
    SwinModel(SwinConfig(**shape | change)).save_pretrained(tmp_path)
    arguments = recipe.parse_arguments(["--answers", "x", "--output-dir", "y", "--student", str(tmp_path)])
    with pytest.raises(ValueError, match=message):
        recipe.make_student(arguments, 96, 5)


def test_best_student_stays(answer, train, recipe, tmp_path, monkeypatch):
    scores = iter([{"labels": 1.0}, {"labels": 2.0}])
    monkeypatch.setattr(recipe, "validate", lambda *arguments: next(scores))
    assert train(answer(), tmp_path, "--steps", "2", "--save-minutes", "0")["best"] == 1.0
    assert json.loads((tmp_path / "encoder" / "training.json").read_text())["step"] == 1


def test_a_loss_that_is_not_finite_leaves_the_last_save(answer, train, recipe, tmp_path, monkeypatch):
    scores = iter([{"labels": 1.0}, {"labels": float("nan")}])
    monkeypatch.setattr(recipe, "validate", lambda *arguments: next(scores))
    with pytest.raises(FloatingPointError, match="Lower --learning-rate"):
        train(answer(), tmp_path, "--steps", "2", "--save-minutes", "0")
    assert torch.load(tmp_path / "state.pt")["progress"]["step"] == 1


def test_a_resumed_run_takes_the_weight_decay_of_its_command(answer, train, recipe, tmp_path, monkeypatch):
    answers, kept = answer(), []
    train(answers, tmp_path, "--steps", "1")
    monkeypatch.setattr(recipe, "save", lambda arguments, lesson, optimizer, *_: kept.append(optimizer))
    train(answers, tmp_path, "--steps", "2", "--weight-decay", "0.3")
    assert [group["weight_decay"] for group in kept[0].param_groups] == [0.3, 0.0]


def test_shards_of_other_settings_are_refused(recipe, answer, timm_teacher):
    folder = answer()
    with pytest.raises(ValueError, match=r"has shards of \{'teacher': None.*Give another folder"):
        answer("--teacher", timm_teacher)
    other = answer("--image-size", "96", name="other")
    (other / "00001.safetensors").replace(folder / "00001.safetensors")
    with pytest.raises(ValueError, match=r"00001\.safetensors and .*00000\.safetensors were made with other settings"):
        recipe.load_shards(folder)


def test_folders_of_answers_take_turns(recipe, answer, train, timm_teacher, tmp_path, monkeypatch):
    large = answer("--teacher", timm_teacher, "--image-size", "96", name="large")
    small, sizes, forward = answer("--teacher", timm_teacher, name="small"), [], recipe.Lesson.forward

    def watched(lesson, shard, flip):
        sizes.append(shard["images"].shape[-1])
        return forward(lesson, shard, flip)

    monkeypatch.setattr(recipe.Lesson, "forward", watched)
    train(large, tmp_path / "run", "--answers", str(large), str(small), "--steps", "3")
    assert sizes == [64, 96, 64, 64, 64, 96, 96]  # three steps, then two batches of each held-out shard
    assert load_encoder(str(tmp_path / "run" / "encoder")).config.image_size == 64


def test_folders_of_other_teachers_are_refused(recipe, answer, timm_teacher, transformers_teacher):
    folders = [answer("--teacher", teacher, name=teacher[-3:]) for teacher in (timm_teacher, transformers_teacher)]
    with pytest.raises(ValueError, match=r"have answers with these channels: .*'map8': .*Give folders of one teacher"):
        recipe.load_folders(folders)


def test_data_fills_one_folder(recipe, capsys):
    with pytest.raises(SystemExit):
        recipe.parse_arguments(["--answers", "x", "y", "--data", "z", "--output-dir", "o"])
    assert "--data fills one folder of --answers, got 2. Fill one after the other." in capsys.readouterr().err


def test_rate_rises_stays_and_falls(recipe):
    words = ["--answers", "x", "--output-dir", "y", "--learning-rate", "1", "--steps", "10", "--warmup-steps", "2"]
    rates = [recipe.rate_at(step, recipe.parse_arguments([*words, "--decay-steps", "4"])) for step in range(10)]
    assert rates == [0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]
    assert recipe.rate_at(9, recipe.parse_arguments([*words, "--decay-steps", "0"])) == 1


def test_flipped_crop_has_flipped_answers(answer, recipe, timm_teacher, tmp_path):
    shard = load_file(answer("--teacher", timm_teacher) / "00000.safetensors")
    arguments = recipe.parse_arguments(["--answers", "x", "--output-dir", "y", *STUDENT.split()])
    lesson = recipe.Lesson(arguments, shard, 5)
    mirrored = {name: value.flip(-1) if value.ndim == 4 else value for name, value in shard.items()}
    some = torch.tensor([True, False, True, True])
    mixed = {
        name: torch.where(some.view(-1, 1, 1, 1), mirrored[name], value) if value.ndim == 4 else value
        for name, value in shard.items()
    }
    given, wanted = lesson(shard, some), lesson(mixed, torch.zeros(4).bool())
    assert all(torch.equal(given[name], wanted[name]) for name in wanted)


def test_loss_of_places_is_the_cross_entropy_with_the_resized_probabilities(recipe, answer, timm_teacher):
    shard = load_file(answer("--teacher", timm_teacher) / "00000.safetensors")  # places of 96 px: 3 x 3
    arguments = recipe.parse_arguments(["--answers", "x", "--output-dir", "y", *STUDENT.split()])
    lesson = recipe.Lesson(arguments, shard, 5)
    maps = {16: torch.randn(4, 32, 4, 4), 32: torch.randn(4, 64, 2, 2)}
    losses = lesson.classify_places(maps, shard)
    asked = torch.zeros(4, 5, 3, 3).scatter_(1, shard["classes"].long(), shard["probabilities"].float())
    given = {16: lesson.classifier16(maps[16].movedim(1, -1))}
    given[32] = lesson.student.classifier(lesson.student.swin.layernorm(maps[32].movedim(1, -1)))
    for stride, logits in given.items():
        places = F.interpolate(asked, logits.shape[1:3], mode="bilinear", antialias=True).movedim(1, -1)
        entropy = -(places / places.sum(-1, keepdim=True) * logits.log_softmax(-1)).sum(-1).mean()
        torch.testing.assert_close(losses[f"places{stride}"], recipe.LOGITS_WEIGHT * entropy)


def test_heads_look_to_their_own_places_at_first(recipe):
    arguments = recipe.parse_arguments(["--answers", "x", "--output-dir", "y", "--window", "4"])
    bias = recipe.make_student(arguments, 128, 5).swin.encoder.layers[1].blocks[0].attention
    table = next(value for name, value in bias.named_parameters() if name.endswith("relative_position_bias_table"))
    assert len({int(column.argmax()) for column in table.T}) == table.shape[1] == 4
    assert F.softmax(table, 0).amax(0).min() > 0.2


def test_bad_data(recipe, answer, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        recipe.load_photographs(str(tmp_path / "nowhere"), ["image"])
    with pytest.raises(ValueError, match=r"data=none: 'none' is no share\. Give a number above 0, e\.g\. data=2"):
        recipe.split_shares(["data=none"])
    with pytest.raises(FileNotFoundError, match=r"0 shards\. Make two or more"):
        recipe.load_shards(tmp_path)


def test_crops_smaller_than_a_window(recipe):
    arguments = recipe.parse_arguments(["--answers", "x", "--output-dir", "y", "--window", "3"])
    with pytest.raises(ValueError, match="The crops have 64 pixels; one window of 3 tokens needs 96 to fit"):
        recipe.make_student(arguments, 64, 5)


def test_processes_that_would_train_apart_are_refused(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    folders = ["--answers", str(tmp_path), "--output-dir", str(tmp_path)]
    with pytest.raises(ValueError, match=r"2 processes were started, and accelerate joins 1\. .* --cpu"):
        recipe.main(recipe.parse_arguments(folders))


def test_columns_are_needed(recipe, tmp_path):
    Dataset.from_dict({"picture": [1]}).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"lacks the columns \['image'\]; it has \['picture'\]"):
        recipe.load_photographs(str(tmp_path), ["image"])


def test_shares(recipe):
    assert recipe.split_shares(["a=3", "b"]) == {"a": 0.75, "b": 0.25}


def test_bad_arguments(recipe, capsys):
    with pytest.raises(SystemExit):
        recipe.parse_arguments(["--answers", "x", "--output-dir", "y", "--shards", "0"])
    assert "--shards must be at least 1, got 0" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        recipe.parse_arguments(["--answers", "x", "--output-dir", "y", "--student", "z", "--window", "7"])
    assert "--window has no effect with --student" in capsys.readouterr().err
