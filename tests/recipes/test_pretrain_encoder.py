# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The pretraining recipe, on a few images of noise and with tiny teachers."""

import json

import numpy as np
import pytest
import timm
import torch
from datasets import Dataset
from distillation.shards import load_folders, load_photographs, load_shards, split_shares
from distillation.student import LOGITS_WEIGHT, Distillation, make_student
from distillation.teacher import Teacher
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import ResNetConfig, ResNetForImageClassification, SwinConfig, SwinModel, ViTImageProcessor

from peft_polyhistor import load_encoder
from peft_polyhistor.training import files


CROPS = "--shards 3 --shard_size 4 --teacher_size 96 --image_size 64 --teacher_batch_size 2 --steps 0"
STUDENT = "--embed_dim 8 --depths 1 1 1 1 --heads 1 2 2 2 --window 2 --batch_size 2 --warmup_steps 2 --decay_steps 2"


@pytest.fixture
def recipe(load_recipe):
    return load_recipe("pretrain_encoder")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder, noise = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
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
def parse(recipe):
    """`parse(*words)`: the arguments of these words, and of two folders that are not used."""
    return lambda *words: recipe.parse_arguments(["--teacher_outputs", "x", "--output_dir", "y", *words])


@pytest.fixture
def make_shards(recipe, photographs, tmp_path):
    """`make_shards(*more)`: the folder of three shards, made with these further arguments."""

    def run(*more, name="shards"):
        folders = ["--teacher_outputs", str(tmp_path / name), "--output_dir", str(tmp_path / "none")]
        recipe.main(recipe.parse_arguments(["--data", str(photographs), *folders, *CROPS.split(), *more]))
        return tmp_path / name

    return run


@pytest.fixture
def train(recipe):
    def run(shards, output, *more):
        arguments = ["--teacher_outputs", str(shards), "--output_dir", str(output), *STUDENT.split(), *more]
        return recipe.main(recipe.parse_arguments(arguments))

    return run


def test_student_can_be_loaded(make_shards, train, timm_teacher, tmp_path):
    progress = train(make_shards("--teacher", timm_teacher), tmp_path / "run", "--steps", "3")
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


def test_outputs_are_the_teachers(make_shards, timm_teacher):
    folder = make_shards("--teacher", timm_teacher, "--teacher_size", "64")
    shards = [load_file(file) for file in sorted(folder.glob("0*"))]
    model = timm.create_model(timm_teacher, pretrained=True).eval()
    pixels = (shards[1]["images"] / 255 - 0.5) / 0.25  # the student's crops here, as both sizes are 64
    with torch.inference_mode():
        torch.testing.assert_close(shards[1]["logits"].float(), model(pixels), atol=2e-3, rtol=2e-3)
        last = model.forward_intermediates(pixels, intermediates_only=True)[-1]
    torch.testing.assert_close(shards[1]["map32"].float(), last, atol=2e-3, rtol=2e-3)
    assert [shards[1][f"map{stride}"].shape[-1] for stride in (8, 16, 32)] == [8, 4, 2]


def test_positions_are_classified_as_small_images_of_their_own(make_shards, timm_teacher):
    shard = load_file(make_shards("--teacher", timm_teacher, "--teacher_size", "64") / "00000.safetensors")
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


def test_teacher_of_transformers(make_shards, transformers_teacher):
    shard = load_file(make_shards("--teacher", transformers_teacher) / "00000.safetensors")
    assert shard["logits"].shape == (4, 5) and shard["images"].shape == (4, 3, 64, 64)
    assert [tuple(shard[f"map{stride}"].shape[1:]) for stride in (8, 16, 32)] == [(8, 12, 12), (16, 6, 6), (16, 3, 3)]


def test_outputs_beyond_float16_are_refused(timm_teacher):
    teacher = Teacher(timm_teacher, torch.device("cpu"))
    teacher.model.classifier.bias.data.fill_(1e6)
    with pytest.raises(ValueError, match=r"The teacher's \['logits'\] hold numbers that are no finite float16"):
        teacher(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))


def test_missing_shard_is_made_again_and_the_same(make_shards):
    folder = make_shards()
    before = load_file(folder / "00001.safetensors")
    (folder / "00001.safetensors").unlink()
    (folder / "00002.safetensors").write_bytes(b"kept")
    make_shards()
    after = load_file(folder / "00001.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in ("images", "labels"))
    assert (folder / "00002.safetensors").read_bytes() == b"kept"


def test_resumed_run_equals_an_uninterrupted_one(make_shards, train, timm_teacher, tmp_path, monkeypatch):
    shards = make_shards("--teacher", timm_teacher)
    train(shards, tmp_path / "whole", "--steps", "5")
    backward = torch.Tensor.backward
    monkeypatch.setattr(torch.Tensor, "backward", stop_after(3, backward))
    with pytest.raises(KeyboardInterrupt):
        train(shards, tmp_path / "broken", "--steps", "5", "--save_minutes", "0")
    monkeypatch.setattr(torch.Tensor, "backward", backward)
    train(shards, tmp_path / "broken", "--steps", "5")
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


def test_branch_leaves_its_origin_alone(make_shards, train, tmp_path):
    shards, stable, branch = make_shards(), tmp_path / "stable", tmp_path / "branch"
    train(shards, stable, "--steps", "3", "--decay_steps", "0")
    before = (stable / "state.pt").read_bytes()
    assert train(shards, branch, "--steps", "5", "--start_from", str(stable))["step"] == 5
    assert (stable / "state.pt").read_bytes() == before and (branch / "encoder" / "config.json").exists()


def test_a_run_resumes_with_its_own_settings_and_shards(make_shards, train, tmp_path):
    shards, run, branch = make_shards(), tmp_path / "run", tmp_path / "branch"
    train(shards, run, "--steps", "1")
    before = (run / "state.pt").read_bytes()
    for change, message in (
        (("--batch_size", "1", "--seed", "5"), "batch_size was 2 and is 1; seed was 0 and is 5"),
        (("--embed_dim", "16"), "embed_dim was 8 and is 16"),
    ):
        with pytest.raises(ValueError, match=rf"{message}\. Give the earlier settings, or branch off"):
            train(shards, run, "--steps", "2", *change)
    (shards / "00000.safetensors").unlink()
    with pytest.raises(ValueError, match="held-out crops was '"):
        train(shards, run, "--steps", "2")
    assert (run / "state.pt").read_bytes() == before
    train(shards, branch, "--steps", "2", "--start_from", str(run), "--seed", "5")
    with pytest.raises(ValueError, match=r"(?s)run has another student or other heads: .*Give the arg"):
        train(shards, tmp_path / "wide", "--steps", "2", "--start_from", str(run), "--embed_dim", "16")


def test_a_second_command_on_a_folder_is_refused(make_shards, train, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_PATIENCE", 0)
    shards = make_shards()
    with files.locked(shards), pytest.raises(BlockingIOError, match="shards is in use by another run"):
        make_shards()
    with files.locked(tmp_path / "run"), pytest.raises(BlockingIOError, match="run is in use by another run"):
        train(shards, tmp_path / "run", "--steps", "1")


def test_held_out_losses_do_not_depend_on_the_batches(parse, recipe, make_shards, timm_teacher):
    shards = load_shards(make_shards("--teacher", timm_teacher, "--shard_size", "5"))
    student = make_student(parse(*STUDENT.split()), 64, 5)
    distillation = Distillation(student, shards[0], temperature=1.0)
    whole, parts = (recipe.validate(distillation, shards[:1], count) for count in (5, 2))
    assert parts == pytest.approx(whole, abs=2e-4)


def test_student_starts_from_given_weights(parse, make_shards, train, recipe, tmp_path):
    shards = make_shards()
    train(shards, tmp_path / "first", "--steps", "1")
    given = str(tmp_path / "first" / "encoder")
    arguments = parse("--student", given)
    student, pixels = make_student(arguments, 96, 7).eval(), torch.randn(1, 3, 96, 96)
    assert student.config.image_size == 96 and student.classifier.out_features == 7
    assert make_student(arguments, 96, 7).training
    wanted = SwinModel.from_pretrained(given, dtype=torch.float32).eval()(pixels).last_hidden_state
    assert torch.equal(student.swin(pixels).last_hidden_state, wanted)
    folders = ["--teacher_outputs", str(shards), "--output_dir", str(tmp_path / "second")]
    words = [*folders, "--student", given, "--batch_size", "2", "--steps", "1"]
    assert recipe.main(recipe.parse_arguments(words))["step"] == 1
    training = json.loads((tmp_path / "second" / "encoder" / "training.json").read_text())
    assert training["student"] == given and "embed_dim" not in training


def test_student_is_a_swin(parse, transformers_teacher):
    arguments = parse("--student", transformers_teacher)
    with pytest.raises(ValueError, match=r"--student .*: the weights \['swin\..*Give a Swin"):
        make_student(arguments, 64, 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_absolute_embeddings": True}, r"\['swin\.embeddings\.position_embeddings'\] are missing or have other"),
        ({"patch_size": 2}, "has patches of 2 px and 4 stages"),
        ({"depths": [1, 1], "num_heads": [1, 2]}, "has patches of 4 px and 2 stages"),
    ],
)
def test_students_that_cannot_learn_are_refused(parse, tmp_path, change, message):
    shape = {"image_size": 64, "embed_dim": 8, "depths": [1] * 4, "num_heads": [1, 2, 2, 2], "window_size": 2}
    SwinModel(SwinConfig(**shape | change)).save_pretrained(tmp_path)
    arguments = parse("--student", str(tmp_path))
    with pytest.raises(ValueError, match=message):
        make_student(arguments, 96, 5)


def test_best_student_stays(make_shards, train, recipe, tmp_path, monkeypatch):
    scores = iter([{"labels": 1.0}, {"labels": 2.0}])
    monkeypatch.setattr(recipe, "validate", lambda *arguments: next(scores))
    assert train(make_shards(), tmp_path, "--steps", "2", "--save_minutes", "0")["best"] == 1.0
    assert json.loads((tmp_path / "encoder" / "training.json").read_text())["step"] == 1


def test_a_loss_that_is_not_finite_leaves_the_last_save(make_shards, train, recipe, tmp_path, monkeypatch):
    scores = iter([{"labels": 1.0}, {"labels": float("nan")}])
    monkeypatch.setattr(recipe, "validate", lambda *arguments: next(scores))
    with pytest.raises(FloatingPointError, match="Lower --learning_rate"):
        train(make_shards(), tmp_path, "--steps", "2", "--save_minutes", "0")
    assert torch.load(tmp_path / "state.pt")["progress"]["step"] == 1


def test_a_resumed_run_takes_the_weight_decay_of_its_command(make_shards, train, recipe, tmp_path, monkeypatch):
    shards, kept = make_shards(), []
    train(shards, tmp_path, "--steps", "1")
    monkeypatch.setattr(recipe, "save", lambda arguments, distillation, optimizer, *_: kept.append(optimizer))
    train(shards, tmp_path, "--steps", "2", "--weight_decay", "0.3")
    assert [group["weight_decay"] for group in kept[0].param_groups] == [0.3, 0.0]


def test_shards_of_other_settings_are_refused(make_shards, timm_teacher):
    folder = make_shards()
    with pytest.raises(ValueError, match=r"has shards of \{'teacher': None.*Give another folder"):
        make_shards("--teacher", timm_teacher)
    other = make_shards("--image_size", "96", name="other")
    (other / "00001.safetensors").replace(folder / "00001.safetensors")
    with pytest.raises(ValueError, match=r"00001\.safetensors and .*00000\.safetensors were made with other settings"):
        load_shards(folder)


@pytest.mark.parametrize("content", ["", '{"teacher":'])
def test_the_same_command_writes_a_deleted_record_again(make_shards, content):
    record = make_shards() / "settings.json"
    whole = record.read_text()
    record.write_text(content)
    with pytest.raises(ValueError, match=r"settings\.json is damaged .*Delete it and resume the run") as caught:
        make_shards()
    assert "--resume" not in str(caught.value)  # a flag of other recipes
    record.unlink()
    make_shards()
    assert record.read_text() == whole


def test_the_same_command_resumes_after_a_failed_write(make_shards, train, tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError("No space left on device")

    shards = make_shards()
    with monkeypatch.context() as patch:
        patch.setattr("peft_polyhistor.training.files.write_text", fail)
        with pytest.raises(OSError, match=r"training\.json cannot be written .*then resume the run; or") as caught:
            train(shards, tmp_path / "run", "--steps", "1")
    assert "--resume" not in str(caught.value) and {path.name for path in (tmp_path / "run").iterdir()} == {
        "lock",
        "process.txt",
    }
    assert train(shards, tmp_path / "run", "--steps", "1")["step"] == 1


def test_folders_take_turns(make_shards, train, timm_teacher, tmp_path, monkeypatch):
    large = make_shards("--teacher", timm_teacher, "--image_size", "96", name="large")
    small, sizes, forward = make_shards("--teacher", timm_teacher, name="small"), [], Distillation.forward

    def watched(distillation, batch, flip):
        sizes.append(batch["images"].shape[-1])
        return forward(distillation, batch, flip)

    monkeypatch.setattr(Distillation, "forward", watched)
    train(large, tmp_path / "run", "--teacher_outputs", str(large), str(small), "--steps", "3")
    assert sizes == [64, 96, 64, 64, 64, 96, 96]  # three steps, then two batches of each held-out shard
    assert load_encoder(str(tmp_path / "run" / "encoder")).config.image_size == 64


def test_folders_of_other_teachers_are_refused(make_shards, timm_teacher, transformers_teacher):
    teachers = (timm_teacher, transformers_teacher)
    folders = [make_shards("--teacher", teacher, name=teacher[-3:]) for teacher in teachers]
    with pytest.raises(ValueError, match=r"have outputs with these channels: .*'map8': .*Give folders of one teacher"):
        load_folders(folders)


def test_data_fills_one_folder(recipe, capsys):
    with pytest.raises(SystemExit):
        recipe.parse_arguments(["--teacher_outputs", "x", "y", "--data", "z", "--output_dir", "o"])
    assert "--data fills one folder of --teacher_outputs, got 2. Fill one after the other." in capsys.readouterr().err


def test_rate_rises_stays_and_falls(recipe, parse):
    words = ["--learning_rate", "1", "--steps", "10", "--warmup_steps", "2", "--decay_steps"]
    rates = [recipe.learning_rate_at(step, parse(*words, "4")) for step in range(10)]
    assert rates == [0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]
    assert recipe.learning_rate_at(9, parse(*words, "0")) == 1


def test_flipped_crop_has_flipped_outputs(parse, make_shards, timm_teacher):
    shard = load_file(make_shards("--teacher", timm_teacher) / "00000.safetensors")
    distillation = Distillation(make_student(parse(*STUDENT.split()), 64, 5), shard, temperature=1.0)
    mirrored = {name: value.flip(-1) if value.ndim == 4 else value for name, value in shard.items()}
    some = torch.tensor([True, False, True, True])
    mixed = {
        name: torch.where(some.view(-1, 1, 1, 1), mirrored[name], value) if value.ndim == 4 else value
        for name, value in shard.items()
    }
    given, wanted = distillation(shard, some), distillation(mixed, torch.zeros(4).bool())
    assert all(torch.equal(given[name], wanted[name]) for name in wanted)


def test_loss_of_positions_is_the_cross_entropy_with_the_resized_probabilities(parse, make_shards, timm_teacher):
    shard = load_file(make_shards("--teacher", timm_teacher) / "00000.safetensors")  # the last map of 96 px: 3 x 3
    distillation = Distillation(make_student(parse(*STUDENT.split()), 64, 5), shard, temperature=1.0)
    maps = {16: torch.randn(4, 32, 4, 4), 32: torch.randn(4, 64, 2, 2)}
    losses = distillation.position_losses(maps, shard)
    target = torch.zeros(4, 5, 3, 3).scatter_(1, shard["classes"].long(), shard["probabilities"].float())
    predictions = {16: distillation.classifier16(maps[16].movedim(1, -1))}
    predictions[32] = distillation.student.classifier(distillation.student.swin.layernorm(maps[32].movedim(1, -1)))
    for stride, logits in predictions.items():
        resized = F.interpolate(target, logits.shape[1:3], mode="bilinear", antialias=True).movedim(1, -1)
        entropy = -(resized / resized.sum(-1, keepdim=True) * logits.log_softmax(-1)).sum(-1).mean()
        torch.testing.assert_close(losses[f"places{stride}"], LOGITS_WEIGHT * entropy)


def test_heads_attend_to_offsets_of_their_own_at_first(parse):
    arguments = parse("--window", "4")
    bias = make_student(arguments, 128, 5).swin.encoder.layers[1].blocks[0].attention
    table = next(value for name, value in bias.named_parameters() if name.endswith("relative_position_bias_table"))
    assert len({int(column.argmax()) for column in table.T}) == table.shape[1] == 4
    assert F.softmax(table, 0).amax(0).min() > 0.2


def test_bad_data(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        load_photographs(str(tmp_path / "nowhere"), ["image"])
    with pytest.raises(ValueError, match=r"data=none: 'none' is no share\. Give a number above 0, e\.g\. data=2"):
        split_shares(["data=none"])
    with pytest.raises(FileNotFoundError, match=r"0 shards\. Make two or more"):
        load_shards(tmp_path)


def test_crops_smaller_than_a_window(parse):
    arguments = parse("--window", "3")
    with pytest.raises(ValueError, match="The crops have 64 pixels; one window of 3 tokens needs 96 to fit"):
        make_student(arguments, 64, 5)


def test_processes_that_would_train_apart_are_refused(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    folders = ["--teacher_outputs", str(tmp_path), "--output_dir", str(tmp_path)]
    with pytest.raises(ValueError, match=r"2 processes were started, and accelerate joins 1\. .* --cpu"):
        recipe.main(recipe.parse_arguments(folders))


def test_columns_are_needed(tmp_path):
    Dataset.from_dict({"picture": [1]}).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"lacks the columns \['image'\]; it has \['picture'\]"):
        load_photographs(str(tmp_path), ["image"])


def test_shares():
    assert split_shares(["a=3", "b"]) == {"a": 0.75, "b": 0.25}


def test_bad_arguments(parse, capsys):
    with pytest.raises(SystemExit):
        parse("--shards", "0")
    assert "--shards must be at least 1, got 0" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parse("--student", "z", "--window", "7")
    assert "--window has no effect with --student" in capsys.readouterr().err
