# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The training recipe, for a few steps on a few scenes."""

import json
import os
import shutil
import subprocess
import sys
import warnings

import pytest
import torch
import train_pascal as recipe
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file
from tiny_models import make_swin

from peft_polyhistor import TASKS, MultiTaskDenseModel, load_encoder
from peft_polyhistor.evaluation import count_trainable
from peft_polyhistor.methods.per_task import load_per_task
from peft_polyhistor.studies.report import make_report
from peft_polyhistor.training import RunFolder, StepGuard
from peft_polyhistor.training.loaders import load_splits, sample_labels


def test_trains_scores_saves_and_draws(settings_of, tmp_path, capsys):
    results = recipe.main(settings_of(tmp_path, "--methods", "decoders", "polyhistor_lite"))
    assert [result["method"] for result in results] == ["decoders", "polyhistor_lite"]
    assert results[0]["parameters"]["encoder"] == 0
    assert all(set(result["scores"]) == {"semseg", "human_parts", "saliency", "normals"} for result in results)
    folder = tmp_path / "polyhistor_lite"
    assert json.loads((folder / "results.json").read_text()) == results[1]
    assert (folder / "predictions.png").stat().st_size > 10_000
    pictures = {
        f"{task}_{entry['index']}.webp": entry
        for task, ends in results[1]["examples"].items()
        for entry in ends["best"] + ends["worst"]
    }
    assert {path.name for path in (folder / "gallery").iterdir()} == set(pictures)
    assert pictures["semseg_2.webp"]["image_id"] == "synthetic_0_val_000002" and len(results[1]["classes"]) == 2
    files = {path.name for path in (folder / "best").iterdir()} - {"state"}
    assert files == {"adapter_config.json", "adapter_model.safetensors", "preprocessor_config.json"}
    assert not list(tmp_path.rglob("*.tmp"))
    printed = capsys.readouterr().out
    assert "normals mErr down" in printed and "polyhistor_lite" in printed


@pytest.mark.parametrize(
    ("owner", "name", "call", "resumed_at"),
    [
        (RunFolder, "save", 1, 3),
        pytest.param(StepGuard, "take_means", 3, 3, marks=pytest.mark.slow),
        pytest.param(StepGuard, "take_means", 1, None, marks=pytest.mark.slow),
        pytest.param(recipe, "draw_examples", 1, 6, marks=pytest.mark.slow),
    ],
    ids=["after a checkpoint", "between evaluations", "before the first evaluation", "before the results"],
)
def test_resumed_run_ends_like_one_that_was_not_stopped(
    settings_of, stop_after, assert_same_weights, tmp_path, capsys, owner, name, call, resumed_at
):
    whole = recipe.train("polyhistor_lite", settings_of(tmp_path / "whole", "--log_every", "2"))
    cut = settings_of(tmp_path / "cut", "--resume", "True", "--log_every", "2")
    stop_after(owner, name, call, lambda: recipe.train("polyhistor_lite", cut))
    capsys.readouterr()
    results = recipe.train("polyhistor_lite", cut)
    expected = f"resumed at step {resumed_at}" if resumed_at else "no checkpoint to resume from, so the run starts"
    assert expected in capsys.readouterr().out
    assert [entry["step"] for entry in results["history"]] == [3, 6]
    assert [entry["step"] for entry in results["losses"]] == [2, 3, 4, 6]
    assert all(results[name] == whole[name] for name in ("history", "losses", "classes", "examples"))
    assert_same_weights(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.slow
def test_resumes_with_gradient_accumulation_in_mid_epoch(settings_of, stop_after, assert_same_weights, tmp_path):
    accumulate = ("--gradient_accumulation", "2", "--eval_every", "2", "--steps", "4", "--max_grad_norm", "1")
    recipe.train("polyhistor_lite", settings_of(tmp_path / "whole", *accumulate))
    cut = settings_of(tmp_path / "cut", *accumulate, "--resume", "True")
    stop_after(RunFolder, "save", 1, lambda: recipe.train("polyhistor_lite", cut))
    recipe.train("polyhistor_lite", cut)
    assert_same_weights(tmp_path / "whole", tmp_path / "cut")


def test_finished_run_is_not_repeated_and_other_settings_are_refused(settings_of, tmp_path, monkeypatch):
    short = ("--steps", "2", "--eval_every", "2")
    results = recipe.train("decoders", settings_of(tmp_path, *short))
    assert results["settings"]["methods"] == ["decoders"] and results["settings"]["processes"] == 1
    monkeypatch.setattr(recipe, "make_loader", lambda *_: pytest.fail("trained again"))
    again = settings_of(tmp_path, *short, "--resume", "--log_every", "5", "--methods", "decoders", "phm: {order: 1}")
    assert recipe.train("decoders", again) == results  # a run depends on its own method alone
    with pytest.raises(
        ValueError, match=r"other settings: learning_rate was 0\.001 and is 0\.002; seed was 0 and is 1"
    ):
        recipe.train("decoders", settings_of(tmp_path, *short, "--resume", "--learning_rate", "2e-3", "--seed", "1"))
    (tmp_path / "decoders" / "results.json").unlink()
    with pytest.raises(ValueError, match=r"progress\.json was made with other settings: batch_size was 2 and is 3"):
        recipe.train("decoders", settings_of(tmp_path, *short, "--resume", "--batch_size", "3"))
    with monkeypatch.context() as patch:
        patch.setattr(recipe, "load_encoder", lambda name: make_swin(embed_dim=16))
        with pytest.raises(ValueError, match=r"progress\.json was made before the weights of the encoder changed"):
            recipe.train("decoders", again)
    monkeypatch.setattr(recipe.Accelerator, "num_processes", 2)
    with pytest.raises(ValueError, match="processes was 1 and is 2"):
        recipe.train("decoders", again)


@pytest.mark.slow
def test_run_that_starts_anew_resumes_nothing_of_the_one_before(settings_of, stop_after, tmp_path):
    short, folder = ("--steps", "2", "--eval_every", "2"), tmp_path / "decoders"
    before = recipe.train("decoders", settings_of(tmp_path, *short))
    settings = settings_of(tmp_path, *short, "--seed", "1")
    for name, exists in (("load_splits", True), ("make_loader", False)):
        stop_after(recipe, name, 1, lambda: recipe.train("decoders", settings))
        assert (folder / "results.json").exists() is exists and (folder / "best" / "adapter_config.json").is_file()
    with pytest.raises(ValueError, match="made with other settings: seed was 0 and is 1"):
        recipe.train("decoders", settings_of(tmp_path, *short, "--seed", "1", "--resume"))
    resumed = recipe.train("decoders", settings_of(tmp_path, *short, "--resume"))
    assert resumed["scores"] == before["scores"]
    assert recipe.train("decoders", settings)["settings"]["seed"] == 1
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-2"]


@pytest.mark.slow
def test_recomputes_to_save_memory(settings_of, tmp_path):
    short = ("--steps", "1", "--eval_every", "1", "--tasks", "semseg", "normals")
    for method in ("peft_lora", "polyhistor_lite", "vmt_adapter"):
        plain = recipe.train(method, settings_of(tmp_path / "plain", *short))
        saving = recipe.train(method, settings_of(tmp_path / "saving", *short, "--gradient_checkpointing", "True"))
        for task, scores in plain["scores"].items():
            assert saving["scores"][task] == pytest.approx(scores, rel=1e-3)


@pytest.mark.slow
def test_backward_per_task_trains_the_same(settings_of, tmp_path):
    # Nothing is left to chance, and Adam would make much of rounding where gradient is small.
    alike = ["--decoder_dropout", "0", "--optimizer", "sgd"]
    alike += ["--learning_rate", "0.01", "--gradient_accumulation", "2", "--steps", "3"]
    weights = []
    for name, more in (("together", []), ("per_task", ["--backward_per_task"])):
        recipe.train("polyhistor_lite", settings_of(tmp_path / name, *alike, *more))
        weights.append(load_file(tmp_path / name / "polyhistor_lite/last/adapter_model.safetensors"))
    torch.testing.assert_close(*weights, rtol=0, atol=1e-5)


def test_losses_are_averaged_over_steps_and_logged_now_and_then(settings_of, tmp_path, monkeypatch):
    entries, losses, add_gradients = {}, [], recipe.add_gradients
    monkeypatch.setattr(
        recipe.Accelerator, "log", lambda self, values, step=None: entries.setdefault(step, {}).update(values)
    )
    monkeypatch.setattr(recipe, "add_gradients", lambda *given: losses.append(add_gradients(*given)) or losses[-1])
    settings = settings_of(tmp_path, "--gradient_accumulation", "2", "--steps", "4", "--log_every", "2")
    recipe.train("decoders", settings)
    # An epoch has 5 batches and so 3 steps, the last of one batch; it ends with an evaluation, which has an entry too.
    for step, of_steps in ((2, losses[:2]), (3, losses[2:3]), (4, losses[3:])):
        expected = torch.stack(of_steps).mean(dim=0)
        torch.testing.assert_close(torch.tensor([entries[step][f"loss/{task}"] for task in settings.tasks]), expected)
    assert len(losses) == 4
    assert not any(name.startswith("loss/") for name in entries.get(1, {}))


@pytest.mark.slow
def test_one_seed_is_one_run_whatever_the_number_of_workers(settings_of, assert_same_weights, tmp_path):
    for name, workers in (("first", "0"), ("again", "0"), ("one", "1"), ("four", "4")):
        recipe.train("polyhistor_lite", settings_of(tmp_path / name, "--workers", workers))
        assert_same_weights(tmp_path / "first", tmp_path / name)
    recipe.train("polyhistor_lite", settings_of(tmp_path / "other", "--seed", "1"))
    with pytest.raises(AssertionError):
        assert_same_weights(tmp_path / "first", tmp_path / "other")


@pytest.mark.slow
def test_workers_persist_over_whole_epochs(settings_of, tmp_path, monkeypatch):
    monkeypatch.setattr(recipe.Accelerator, "skip_first_batches", lambda *_: pytest.fail("made another loader"))
    recipe.train("decoders", settings_of(tmp_path, "--steps", "10", "--eval_every", "10", "--batch_size", "5"))


def test_single_task_trains_a_model_per_task_and_makes_one_row(settings_of, tmp_path, monkeypatch):
    short = ("--steps", "1", "--eval_every", "1", "--tasks", "semseg", "normals", "--loss_weights", "normals=2")
    results = recipe.train("single_task", settings_of(tmp_path, *short, "--resume", "True"))
    assert list(results["scores"]) == ["semseg", "normals"]
    folders = {task: tmp_path / "single_task" / task for task in results["scores"]}
    runs = {task: json.loads((folder / "results.json").read_text()) for task, folder in folders.items()}
    for task, run in runs.items():
        assert run["scores"] == {task: results["scores"][task]} and run["history"][-1]["step"] == 1
        assert json.loads((folders[task] / "last" / "config.json").read_text())["tasks"] == [task]
    assert results["history"] == [{"step": 1, "scores": results["scores"]}]
    assert results["losses"][0]["losses"] == {task: run["losses"][0]["losses"][task] for task, run in runs.items()}
    assert results["examples"] == {task: run["examples"][task] for task, run in runs.items()}
    encoder = runs["semseg"]["parameters"]["encoder"]
    assert results["parameters"]["encoder"] == 2 * encoder > 0
    assert results["parameters"]["all"] == sum(run["parameters"]["all"] for run in runs.values())
    assert json.loads((tmp_path / "single_task" / "results.json").read_text()) == results

    recipe.train("decoders", settings_of(tmp_path, *short))
    assert make_report(tmp_path).is_file()  # both runs record the same data

    monkeypatch.setattr(recipe, "make_loader", lambda *_: pytest.fail("trained again"))
    assert recipe.train("single_task", settings_of(tmp_path, *short, "--resume", "True")) == results


def test_first_biases_fit_the_labels_of_some_training_images(settings_of, parquet_scenes, tmp_path):
    rates = ("--eval_every", "1", "--learning_rate", "1e-12", "--decoder_learning_rate", "1e-12")
    recipe.train("decoders", settings_of(tmp_path, "--bias_images", "3", "--steps", "1", *rates))
    weights = load_file(tmp_path / "decoders" / "last" / "adapter_model.safetensors")
    data = load_splits(str(parquet_scenes), ["semseg"], Accelerator(cpu=True))["train"]
    sample = sample_labels(data, 3)["semseg"]
    assert sample.shape == (3, 128, 128)
    assert torch.equal(sample_labels(data, 20)["semseg"][[0, 3, 6]], sample)  # of 10 images
    [bias] = [value for name, value in weights.items() if name.endswith("semseg.classifier.bias")]
    torch.testing.assert_close(bias, TASKS["semseg"].fit_bias(sample))


def test_a_task_without_a_label_is_refused_before_the_training(settings_of, tmp_path):
    for folder, mode in (("images", "RGB"), ("lanes", "L"), ("depth", "I;16")):
        (tmp_path / folder).mkdir()
        for number in range(8):
            Image.new(mode, (40, 40), 1500 if mode == "I;16" else None).save(tmp_path / folder / f"{number}.png")
    for split in ("train", "val"):
        (tmp_path / f"{split}.txt").write_text("\n".join(map(str, range(8))))
    tasks = ["lanes: {kind: segmentation, classes: [road, lane]}"]
    tasks.append("depth: {kind: regression, unit: m, valid: [0.1, 80]}")
    settings = settings_of(tmp_path / "runs", "--data", str(tmp_path), "--tasks", *tasks)
    with pytest.raises(ValueError, match=r"None of the 8 labels of depth has a value in valid=\(0\.1, 80\)"):
        recipe.train("decoders", settings)
    assert not (tmp_path / "runs" / "decoders" / "last").exists()


def test_a_run_starts_from_the_decoders_of_another(settings_of, tmp_path, monkeypatch):
    short = ("--steps", "1", "--eval_every", "1", "--learning_rate", "1e-12", "--decoder_learning_rate")
    recipe.train("decoders", settings_of(tmp_path / "first", *short, "3e-2"))
    best = ("--decoders", str(tmp_path / "first" / "decoders" / "best"))
    first, copied = (load_file(tmp_path / "first" / "decoders" / "best" / "adapter_model.safetensors"), {})
    for method in ("full", "polyhistor_lite"):
        results = recipe.train(method, settings_of(tmp_path / "second", *short, "1e-12", *best, "--bias_images", "0"))
        assert "the weights of the decoders" in results["inputs"]
        file = "adapter_model" if method == "polyhistor_lite" else "model"
        copied[method] = load_file(tmp_path / "second" / method / "last" / f"{file}.safetensors")
    for weights in copied.values():
        [ours], [theirs] = (
            [value for name, value in found.items() if name.endswith("semseg.classifier.weight")]
            for found in (weights, first)
        )
        torch.testing.assert_close(ours, theirs)
    with pytest.raises(ValueError, match="`decoders` brings biases: give bias_images=0 with it, got 3"):
        settings_of(tmp_path, *best, "--bias_images", "3")


@pytest.mark.slow
def test_methods_of_peft_train_an_adapter_per_task(settings_of, tmp_path):
    short = ("--steps", "2", "--eval_every", "1", "--methods", "peft_lora: {r: 2}", "--tasks", "semseg", "normals")
    settings = settings_of(tmp_path, *short)
    [results] = recipe.main(settings)
    assert [entry["step"] for entry in results["history"]] == [1, 2]
    encoder = load_encoder(settings.encoder)
    model = MultiTaskDenseModel.from_encoder(encoder, settings.tasks, decoder_width=settings.decoder_width)
    load_per_task(model, tmp_path / "peft_lora" / "last", is_trainable=True)
    assert count_trainable(model) == results["parameters"]
    trained = [p for name, p in model.encoder.named_parameters() if "lora_B" in name]
    assert all(parameter.any() for parameter in trained)


def test_held_out_images_are_of_the_training_split_and_the_same_in_every_run(parquet_scenes):
    accelerator = recipe.Accelerator()
    plain = load_splits(str(parquet_scenes), ["normals"], accelerator)
    parts, again = (load_splits(str(parquet_scenes), ["semseg"], accelerator, holdout=0.3) for _ in range(2))
    train, val = (set(parts[split]["image_id"]) for split in ("train", "val"))
    assert len(val) == 3 and not train & val and train | val == set(plain["train"]["image_id"])
    assert again["val"]["image_id"] == parts["val"]["image_id"]
    grid = load_splits(str(parquet_scenes), ["semseg"], accelerator, holdout=0.3, left_out=0.3)
    assert set(grid["train"]["image_id"]) | set(grid["val"]["image_id"]) == train  # no image of the split val


def test_images_of_both_splits_are_told(parquet_scenes, tmp_path):
    accelerator = recipe.Accelerator()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_splits(str(parquet_scenes), ["semseg"], accelerator)
    shutil.copytree(parquet_scenes, tmp_path / "copy")
    [train], [val] = (list((tmp_path / "copy").rglob(f"{split}*.parquet")) for split in ("train", "val"))
    shutil.copy(train, val)
    with pytest.warns(UserWarning, match=r"Images in both splits, train and val: 10, such as \w+\. A model is scored"):
        load_splits(str(tmp_path / "copy"), ["semseg"], accelerator)


def test_fewer_images_than_a_step_takes_are_refused(settings_of, tmp_path):
    with pytest.raises(ValueError, match=r"10 training images make 0 full batches per process, .* takes 1\. Lower"):
        recipe.train("decoders", settings_of(tmp_path, "--batch_size", "11"))


def test_a_warm_up_that_does_not_end_is_refused_and_the_earlier_run_stays(settings_of, tmp_path):
    earlier = tmp_path / "decoders/results.json"
    earlier.parent.mkdir()
    earlier.write_text("{}")
    settings = settings_of(tmp_path, "--steps", "0", "--epochs", "1", "--batch_size", "2", "--warmup_steps", "5")
    with pytest.raises(ValueError, match=r"must be below the optimiser steps of the run, 5, got 5\. Give fewer"):
        recipe.train("decoders", settings)
    assert earlier.exists()


@pytest.mark.slow
def test_workers_may_be_spawned(small_run, tmp_path):
    """As on macOS and Windows, where a worker imports the recipe, and all that its loader needs is pickled."""
    (tmp_path / "sitecustomize.py").write_text("import multiprocessing\nmultiprocessing.set_start_method('spawn')\n")
    command = [recipe.__file__, *small_run(tmp_path / "run", "--steps", "2", "--eval_every", "2", "--workers", "2")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
