# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The training recipe, for a few steps on a few scenes."""

import json
import math
import os

import pytest
import torch
from safetensors.torch import load_file
from transformers import SwinModel

from peft_polyhistor import MultiTaskDenseModel, load_encoder
from peft_polyhistor.evaluation import count_trainable
from peft_polyhistor.methods.per_task import load_per_task


@pytest.fixture
def recipe(load_recipe):
    return load_recipe("train_pascal")


class StopError(Exception):
    """Stands for a power cut."""


def train_and_stop(recipe, monkeypatch, settings, name, call):
    """Trains, and cuts the power right after the given call of a function of the recipe."""
    original, calls = getattr(recipe, name), []

    def stopping(*arguments):
        result = original(*arguments)
        calls.append(1)
        if len(calls) == call:
            raise StopError
        return result

    with monkeypatch.context() as patch:
        patch.setattr(recipe, name, stopping)
        with pytest.raises(StopError):
            recipe.train("polyhistor_lite", settings)


def assert_same_weights(first, second):
    first, second = (load_file(run / "polyhistor_lite/last/adapter_model.safetensors") for run in (first, second))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=0, atol=0)


def test_trains_scores_saves_and_draws(recipe, settings_of, tmp_path, capsys):
    results = recipe.main(settings_of(tmp_path, "--methods", "decoders", "polyhistor_lite"))
    assert [result["method"] for result in results] == ["decoders", "polyhistor_lite"]
    assert results[0]["parameters"]["encoder"] == 0
    assert all(set(result["scores"]) == {"semseg", "human_parts", "saliency", "normals"} for result in results)
    folder = tmp_path / "polyhistor_lite"
    assert json.loads((folder / "results.json").read_text()) == results[1]
    assert (folder / "predictions.png").stat().st_size > 10_000
    pictures = {
        f"{task}_{entry['index']}.webp": entry
        for task, ends in results[1]["pictures"].items()
        for entry in ends["best"] + ends["worst"]
    }
    assert {path.name for path in (folder / "gallery").iterdir()} == set(pictures)
    assert pictures["semseg_2.webp"]["image_id"] == "synthetic_0_val_000002" and len(results[1]["classes"]) == 2
    assert {path.name for path in (folder / "best").iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".new", ".old")]
    printed = capsys.readouterr().out
    assert "normals mErr down" in printed and "polyhistor_lite" in printed


@pytest.mark.parametrize(
    ("name", "call", "resumed_at"),
    [("save", 1, 3), ("log_losses", 3, 3), ("log_losses", 1, None), ("draw_pictures", 1, 6)],
    ids=["after a save", "between evaluations", "before the first evaluation", "before the results"],
)
def test_resumed_run_ends_like_one_that_was_not_stopped(
    recipe, settings_of, tmp_path, capsys, monkeypatch, name, call, resumed_at
):
    whole = recipe.train("polyhistor_lite", settings_of(tmp_path / "whole", "--log_every", "2"))
    cut = settings_of(tmp_path / "cut", "--resume", "True", "--log_every", "2")
    train_and_stop(recipe, monkeypatch, cut, name, call)
    capsys.readouterr()
    results = recipe.train("polyhistor_lite", cut)
    expected = f"resumed at step {resumed_at} of 6" if resumed_at else "no state to resume from, so the run starts"
    assert expected in capsys.readouterr().out
    assert [entry["step"] for entry in results["history"]] == [3, 6]
    assert [entry["step"] for entry in results["losses"]] == [2, 3, 4, 6]
    assert all(results[name] == whole[name] for name in ("history", "losses", "classes", "pictures"))
    assert_same_weights(tmp_path / "whole", tmp_path / "cut")


def test_resumes_with_gradient_accumulation_in_mid_epoch(recipe, settings_of, tmp_path, monkeypatch):
    accumulate = ("--gradient_accumulation", "2", "--eval_every", "2", "--steps", "4", "--max_grad_norm", "1")
    recipe.train("polyhistor_lite", settings_of(tmp_path / "whole", *accumulate))
    cut = settings_of(tmp_path / "cut", *accumulate, "--resume", "True")
    train_and_stop(recipe, monkeypatch, cut, "save", 1)
    recipe.train("polyhistor_lite", cut)
    assert_same_weights(tmp_path / "whole", tmp_path / "cut")


def test_finished_run_is_not_repeated_and_other_settings_are_refused(recipe, settings_of, tmp_path, monkeypatch):
    short = ("--steps", "2", "--eval_every", "2")
    results = recipe.train("decoders", settings_of(tmp_path, *short))
    monkeypatch.setattr(recipe, "build", lambda *_: pytest.fail("trained again"))
    assert recipe.train("decoders", settings_of(tmp_path, *short, "--resume", "--log_every", "5")) == results
    with pytest.raises(
        ValueError, match=r"other settings: learning_rate was 0\.0002 and is 0\.001; seed was 0 and is 1"
    ):
        recipe.train("decoders", settings_of(tmp_path, *short, "--resume", "--learning_rate", "1e-3", "--seed", "1"))
    (tmp_path / "decoders" / "results.json").unlink()
    with pytest.raises(ValueError, match=r"settings\.json was made with other settings: batch_size was 2 and is 3"):
        recipe.train("decoders", settings_of(tmp_path, *short, "--resume", "--batch_size", "3"))


def test_state_of_a_crash_between_two_names_is_put_back(recipe, settings_of, load_recipe, tmp_path):
    checkpoints, folder = load_recipe("checkpoints"), tmp_path / "decoders"
    recipe.train("decoders", settings_of(tmp_path, "--steps", "2", "--eval_every", "2"))
    for name in ("state", "best"):
        os.replace(folder / name, folder / f"{name}.old")
    (folder / "results.json").unlink()
    settings = settings_of(tmp_path, "--steps", "2", "--eval_every", "2", "--resume")
    assert checkpoints.open_folder(recipe.Accelerator(), folder, settings) is None
    assert (folder / "state" / "settings.json").is_file() and (folder / "best" / "adapter_config.json").is_file()


def test_run_depends_on_its_own_settings_alone(recipe, settings_of, tmp_path, monkeypatch):
    short = ("--steps", "1", "--eval_every", "1", "--methods", "decoders", "phm", "--resume")
    results = recipe.train("decoders", settings_of(tmp_path, *short, "--method_settings", "phm.reduction_factor=12"))
    assert results["settings"]["method_settings"] == [] and results["settings"]["processes"] == 1
    again = settings_of(tmp_path, *short, "--method_settings", "phm.order=1", "phm.reduction_factor=6")
    assert recipe.train("decoders", again) == results
    monkeypatch.setattr(recipe.Accelerator, "num_processes", 2)
    with pytest.raises(ValueError, match="processes was 1 and is 2"):
        recipe.train("decoders", again)


def test_leftovers_of_a_crash_are_no_state(recipe, settings_of, load_recipe, tmp_path):
    folder, short = tmp_path / "decoders", ("--steps", "2", "--eval_every", "2")
    recipe.train("decoders", settings_of(tmp_path, *short))
    os.replace(folder / "state", folder / "state.old")
    (folder / "results.json").unlink()
    open_folder = load_recipe("checkpoints").open_folder
    assert open_folder(recipe.Accelerator(), folder, settings_of(tmp_path, *short)) is None
    assert not list(folder.glob("state*"))  # it started anew
    (folder / "state").mkdir()
    assert open_folder(recipe.Accelerator(), folder, settings_of(tmp_path, *short, "--resume")) is None
    assert not (folder / "state").exists()  # half deleted by a power cut


@pytest.mark.slow
def test_recomputes_to_save_memory(recipe, settings_of, tmp_path):
    short = ("--steps", "1", "--eval_every", "1", "--tasks", "semseg", "normals")
    for method in ("peft_lora", "polyhistor_lite", "vmt_adapter"):
        plain = recipe.train(method, settings_of(tmp_path / "plain", *short))
        saving = recipe.train(method, settings_of(tmp_path / "saving", *short, "--gradient_checkpointing", "True"))
        for task, scores in plain["scores"].items():
            assert saving["scores"][task] == pytest.approx(scores, rel=1e-3)


def test_backward_per_task_trains_the_same(recipe, settings_of, tmp_path):
    config = load_encoder("swin-micro").config
    config.drop_path_rate = 0.0  # nothing is left to chance
    torch.manual_seed(0)
    SwinModel(config).save_pretrained(tmp_path / "encoder")
    # Adam would make much of rounding where gradient is small.
    alike = ["--encoder", str(tmp_path / "encoder"), "--decoder_dropout", "0", "--optimizer", "sgd"]
    alike += ["--learning_rate", "0.01", "--gradient_accumulation", "2", "--steps", "3"]
    weights = []
    for name, more in (("together", []), ("per_task", ["--backward_per_task"])):
        recipe.train("polyhistor_lite", settings_of(tmp_path / name, *alike, *more))
        weights.append(load_file(tmp_path / name / "polyhistor_lite/last/adapter_model.safetensors"))
    torch.testing.assert_close(*weights, rtol=0, atol=1e-5)


def test_run_that_starts_anew_drops_the_state_of_the_one_before(recipe, settings_of, tmp_path, monkeypatch):
    recipe.train("decoders", settings_of(tmp_path, "--steps", "2", "--eval_every", "2"))
    monkeypatch.setattr(recipe, "build", lambda *_: (_ for _ in ()).throw(StopError))
    with pytest.raises(StopError):
        recipe.train("decoders", settings_of(tmp_path, "--steps", "2", "--eval_every", "2"))
    assert not (tmp_path / "decoders" / "state").exists()
    assert not (tmp_path / "decoders" / "results.json").exists()


def scores_of(semseg, error):
    return {"semseg": {"mIoU": semseg}, "normals": {"mErr": error}}


def test_best_counts_finite_scores_first_and_then_sums_them(load_recipe):
    merit = load_recipe("checkpoints").merit
    assert merit(scores_of(50.0, 20.0)) == (2, 30.0)
    assert merit(scores_of(50.0, 20.0)) < merit(scores_of(50.0, 19.0)) < merit(scores_of(52.0, 19.0))
    assert merit(scores_of(50.0, math.nan)) < merit(scores_of(51.0, math.nan)) < merit(scores_of(1.0, 80.0))
    assert merit(scores_of(math.nan, math.inf)) == (0, 0)


def test_first_evaluation_is_best_whatever_its_scores(recipe, settings_of, tmp_path, monkeypatch):
    scores = iter([scores_of(math.nan, math.nan), scores_of(5.0, math.nan), scores_of(4.0, math.nan)])
    monkeypatch.setattr(recipe, "collect_statistics", lambda *_: {})
    monkeypatch.setattr(recipe, "score_tasks", lambda _: next(scores))
    written, original = [], recipe.save

    def save(accelerator, model, folder, progress, settings):
        original(accelerator, model, folder, progress, settings)
        written.append((progress.best, (folder / "best").stat().st_ino))

    monkeypatch.setattr(recipe, "save", save)
    monkeypatch.setattr(recipe, "finish", lambda *_: {})
    recipe.train("decoders", settings_of(tmp_path, "--steps", "3", "--eval_every", "1"))
    (_, first), (_, second), (_, third) = written
    assert [best for best, _ in written] == [(0, 0), (1, 5.0), (1, 5.0)]
    assert first != second == third


def test_losses_are_averaged_over_steps_and_logged_now_and_then(recipe, settings_of, tmp_path, monkeypatch):
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
def test_one_seed_is_one_run_whatever_the_number_of_workers(recipe, settings_of, tmp_path):
    for name, workers in (("first", "0"), ("again", "0"), ("one", "1"), ("four", "4")):
        recipe.train("polyhistor_lite", settings_of(tmp_path / name, "--workers", workers))
        assert_same_weights(tmp_path / "first", tmp_path / name)
    recipe.train("polyhistor_lite", settings_of(tmp_path / "other", "--seed", "1"))
    with pytest.raises(AssertionError):
        assert_same_weights(tmp_path / "first", tmp_path / "other")


def test_workers_persist_over_whole_epochs(recipe, settings_of, tmp_path, monkeypatch):
    monkeypatch.setattr(recipe.Accelerator, "skip_first_batches", lambda *_: pytest.fail("made another loader"))
    recipe.train("decoders", settings_of(tmp_path, "--steps", "10", "--eval_every", "10", "--batch_size", "5"))


def test_single_task_trains_a_model_per_task_and_makes_one_row(recipe, settings_of, tmp_path, monkeypatch):
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
    assert results["pictures"] == {task: run["pictures"][task] for task, run in runs.items()}
    encoder = runs["semseg"]["parameters"]["encoder"]
    assert results["parameters"]["encoder"] == 2 * encoder > 0
    assert results["parameters"]["all"] == sum(run["parameters"]["all"] for run in runs.values())
    assert json.loads((tmp_path / "single_task" / "results.json").read_text()) == results

    monkeypatch.setattr(recipe, "build", lambda *_: pytest.fail("trained again"))
    assert recipe.train("single_task", settings_of(tmp_path, *short, "--resume", "True")) == results


def test_methods_of_peft_train_an_adapter_per_task(recipe, settings_of, tmp_path):
    short = ("--steps", "2", "--eval_every", "1", "--methods", "peft_lora", "--tasks", "semseg", "normals")
    settings = settings_of(tmp_path, *short, "--method_settings", "r=2")
    results = recipe.train("peft_lora", settings)
    assert [entry["step"] for entry in results["history"]] == [1, 2]
    encoder = load_encoder(settings.encoder)
    model = MultiTaskDenseModel.from_encoder(encoder, settings.tasks, decoder_width=settings.decoder_width)
    load_per_task(model, tmp_path / "peft_lora" / "last", is_trainable=True)
    assert count_trainable(model) == results["parameters"]
    trained = [p for name, p in model.encoder.named_parameters() if "lora_B" in name]
    assert all(parameter.any() for parameter in trained)


def test_every_method_of_peft_builds(load_recipe):
    methods, settings = load_recipe("methods"), load_recipe("settings").Settings(decoder_width=8, tasks=["normals"])
    for method in methods.PEFT_METHODS:
        assert count_trainable(methods.build_model(method, settings, {}))["encoder"] > 0, method


def test_held_out_pictures_are_of_the_training_split_and_the_same_for_every_seed(load_recipe, settings_of, tmp_path):
    load, accelerator = load_recipe("loaders").load_data, load_recipe("train_pascal").Accelerator()
    plain = load(settings_of(tmp_path), ["normals"], accelerator)
    assert plain["train"].column_names == ["image_id", "image", "normals"]
    parts = [
        load(settings_of(tmp_path, "--holdout", "0.3", "--seed", seed), ["semseg"], accelerator) for seed in ("0", "1")
    ]
    train, val = (set(parts[0][split]["image_id"]) for split in ("train", "val"))
    assert len(val) == 3 and not train & val and train | val == set(plain["train"]["image_id"])
    assert parts[1]["val"]["image_id"] == parts[0]["val"]["image_id"]
