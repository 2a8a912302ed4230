# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The folder of a run: what stands in it is whole, whichever write fails, and one run at a time is in it."""

import errno
import json
import os
import resource
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import train_pascal as recipe
from accelerate import Accelerator
from datasets import Dataset, concatenate_datasets
from file_contents import bytes_of
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from peft_polyhistor.training import files, key_of_data, key_of_weights
from peft_polyhistor.training.files import explain_failure, read_json, replacing, write_json, write_text
from peft_polyhistor.training.progress import Progress
from peft_polyhistor.training.run_folder import RunFolder
from peft_polyhistor.training.single_tasks import join_tasks


FULL = OSError(errno.ENOSPC, "No space left on device")
CALLS = ("mkdir", "replace", "fsync", "symlink")  # of `os`, that can fail
SETTINGS = {"steps": 6, "workers": 2}
INPUTS = {"the data": "a1", "the encoder": "b2"}


class Weights(nn.Module):
    """A model that saves its one weight as a file."""

    def __init__(self, value):
        super().__init__()
        self.weight, self.encoder = nn.Parameter(torch.tensor([float(value)])), None

    def save_pretrained(self, folder):
        (folder / "weights.txt").write_text(str(self.weight.item()))


def make_run(folder, value=0, neutral=()):
    """A run folder, its prepared model, and a schedule."""
    accelerator, model = Accelerator(), Weights(value)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model, optimizer = accelerator.prepare(model, optimizer)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer.optimizer)
    return RunFolder(folder, SETTINGS, accelerator, neutral), model, scheduler


def progress_of(*scores):
    """Progress whose evaluations, one a step, had these errors of normals, degrees."""
    history = [{"step": i, "scores": {"normals": {"mErr": score}}} for i, score in enumerate(scores, 1)]
    return Progress(step=len(scores), history=history)


def save_run(folder, *scores):
    """Evaluates and saves after each step; the weight is the number of the step."""
    run, model, scheduler = make_run(folder)
    run.open(resume=False, inputs=INPUTS)
    run.resume(scheduler)
    for step in range(1, len(scores) + 1):
        model.weight.data.fill_(step)
        run.save(model, progress_of(*scores[:step]))


def resumed(folder):
    """Step, weight and error of the last evaluation of the run that goes on in a folder."""
    run, model, scheduler = make_run(folder)
    assert run.open(resume=True) is None
    progress = run.resume(scheduler)
    return progress.step, model.weight.item(), len(progress.history)


def weights_of(folder):
    return {name: (folder / name / "weights.txt").read_text() for name in ("last", "best")}


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_last_and_best_are_kept_and_no_others(tmp_path, monkeypatch, links):
    if not links:  # as on Windows without the right to make them
        monkeypatch.setattr(os, "symlink", lambda *_, **__: (_ for _ in ()).throw(OSError("not held by the client")))
    save_run(tmp_path, 30.0, 20.0, 25.0, 20.0)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"step-2", "step-4"}
    assert weights_of(tmp_path) == {"last": "4.0", "best": "2.0"}
    assert (tmp_path / "last").is_symlink() == links
    assert not (tmp_path / "checkpoints/step-2/state").exists()  # nothing goes on from there
    assert resumed(tmp_path) == (4, 4.0, 4)


def test_a_checkpoint_stays_whole_whichever_call_fails(tmp_path, monkeypatch):
    """A disk that is full stays full: from one call on, all fail."""
    number, told = 0, []
    while True:
        number += 1
        folder = tmp_path / str(number)
        save_run(folder, 30.0)
        run, model, scheduler = make_run(folder)
        run.open(resume=True)
        run.resume(scheduler)
        model.weight.data.fill_(2)
        with monkeypatch.context() as patch:
            made = fail_at(patch, number)
            try:
                run.save(model, progress_of(30.0, 20.0))
            except OSError as error:
                told.append(str(error))
            else:
                break
        step, weight, evaluations = resumed(folder)
        assert step == weight == evaluations and step in (1, 2), number
        assert weights_of(folder)["last"] == str(weight)
        assert not list(folder.rglob("*.tmp")), number
    assert all("cannot be written" in text and "Earlier files are complete" in text for text in told)
    print(f"{len(told)} calls failed in turn")
    assert len(told) > 10 and {name for name, _ in made} == set(CALLS)
    links = [target for name, target in made if name == "replace"]
    assert links == ["step-2", "last", "best", "step-1.old.tmp"]


def fail_at(patch, number):
    """Lets the call of `os` with this number fail, and all after it; lists the calls and the names they were for."""
    made = []

    def counted(name, original):
        def call(*arguments, **keywords):
            made.append((name, os.path.basename(str(arguments[-1]))))
            if len(made) >= number:
                raise FULL
            return original(*arguments, **keywords)

        return call

    for name in CALLS:
        patch.setattr(os, name, counted(name, getattr(os, name)))
    return made


def test_all_is_on_the_disk_before_it_is_renamed(tmp_path, monkeypatch):
    events, fsync, replace = [], os.fsync, os.replace

    def note(descriptor):
        events.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(os, "replace", lambda *names: events.append("renamed") or replace(*names))
    save_run(tmp_path, 30.0)
    first = events[: events.index("renamed")]
    written = [path.name for path in (tmp_path / "checkpoints/step-1").rglob("*") if path.is_file()]
    assert sorted(first) == sorted(written) and "optimizer.bin" in written
    events.clear()
    write_json(tmp_path / "results.json", {})
    assert events == ["results.json.tmp", "renamed"]


def test_a_folder_is_replaced_where_a_killed_process_left_half_of_one(tmp_path):
    folder, leftover = tmp_path / "encoder", tmp_path / "encoder.old.tmp"
    for path in (folder, leftover):
        path.mkdir()
        (path / "old").touch()
    with replacing(folder) as fresh:
        fresh.mkdir()
    assert not list(folder.iterdir()) and not leftover.exists()


def test_what_an_interruption_leaves_is_no_checkpoint(tmp_path):
    save_run(tmp_path, 30.0, 20.0)
    checkpoints = tmp_path / "checkpoints"
    for leftover in ("step-3.tmp", "step-1.old.tmp"):
        (checkpoints / leftover / "state").mkdir(parents=True)
        (checkpoints / leftover / "state" / "progress.json").write_text("{")
    assert resumed(tmp_path)[0] == 2
    assert [path.name for path in checkpoints.iterdir()] == ["step-2"]


def test_links_that_an_interruption_left_behind_follow(tmp_path):
    save_run(tmp_path, 30.0, 20.0)
    os.rename(tmp_path / "checkpoints/step-2", tmp_path / "checkpoints/step-7")
    progress = tmp_path / "checkpoints/step-7/state/progress.json"
    progress.write_text(progress.read_text().replace('"step": 2', '"step": 7'))
    assert resumed(tmp_path)[0] == 7
    assert weights_of(tmp_path) == {"last": "2.0", "best": "2.0"}


def test_a_run_that_starts_anew_resumes_nothing_and_deletes_at_its_first_checkpoint(tmp_path, capsys):
    save_run(tmp_path, 30.0, 20.0, 25.0)
    write_json(tmp_path / "results.json", {})
    run, model, scheduler = make_run(tmp_path)
    assert run.open(resume=False) is None and run.resume(scheduler).step == 0
    assert f"{tmp_path}: the run starts at step 0. Its first evaluation replaces" in capsys.readouterr().out
    assert weights_of(tmp_path) == {"last": "3.0", "best": "2.0"} and not (tmp_path / "results.json").exists()
    assert resumed(tmp_path) == (3, 3.0, 3)  # a forgotten --resume costs nothing yet
    (tmp_path / "predictions.png").touch()
    (tmp_path / "gallery").mkdir()
    model.weight.data.fill_(9)
    run.save(model, Progress(step=3, history=[{"step": 3, "scores": {"normals": {"mErr": 50.0}}}]))
    assert weights_of(tmp_path) == {"last": "9.0", "best": "9.0"}
    assert not (tmp_path / "predictions.png").exists() and not (tmp_path / "gallery").exists()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-3"]


def test_a_new_run_that_is_killed_at_its_first_checkpoint_is_not_taken_for_the_earlier_one(tmp_path, monkeypatch):
    save_run(tmp_path, 30.0, 20.0, 25.0)
    run, model, scheduler = make_run(tmp_path)
    run.open(resume=False)
    run.resume(scheduler)
    model.weight.data.fill_(9)
    monkeypatch.setattr(RunFolder, "_tidy", lambda *_: None)
    run.save(model, progress_of(50.0))  # step 1, before step 3 of the earlier run
    monkeypatch.undo()
    assert resumed(tmp_path) == (1, 9.0, 1)


def test_a_new_run_that_cannot_write_its_first_checkpoint_leaves_the_earlier_one(tmp_path, monkeypatch):
    save_run(tmp_path, 30.0, 20.0, 25.0)
    run, model, scheduler = make_run(tmp_path)
    run.open(resume=False)
    run.resume(scheduler)
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Earlier files are complete"):
        run.save(model, progress_of(50.0))
    monkeypatch.undo()
    assert resumed(tmp_path) == (3, 3.0, 3)


def fail(*_):
    raise FULL


def test_other_data_and_another_encoder_are_refused(tmp_path):
    save_run(tmp_path, 30.0)
    run, _, _ = make_run(tmp_path)
    assert run.open(resume=True, inputs=INPUTS) is None
    with pytest.raises(ValueError, match=r"progress\.json was made before the data changed\. Restore what was there"):
        run.open(resume=True, inputs={**INPUTS, "the data": "c3"})
    run.finish("decoders", {}, progress_of(30.0))
    with pytest.raises(ValueError, match=r"results\.json was made before the data and the encoder changed\."):
        run.open(resume=True, inputs=dict.fromkeys(INPUTS, "d4"))
    assert run.open(resume=False, inputs=dict.fromkeys(INPUTS, "d4")) is None


def test_a_key_changes_with_each_value():
    rows = Dataset.from_dict({"image_id": ["a", "b"] * 50, "label": [bytes(9), bytes(7)] * 50})
    key = key_of_data(rows)
    assert key_of_data(rows.select(range(100))) == key_of_data(Dataset.from_list(list(rows))) == key
    for other in (rows.select(range(99)), rows.rename_column("label", "x"), rows.select([*range(98), 99, 98])):
        assert (key_of_data(other) == key) == ("x" in other.column_names)  # names are in the settings
    images = [{"bytes": bytes(number), "path": None} for number in range(70)]
    whole = Dataset.from_dict({"image": images, "grid": [[[1, 2], [3]]] * 70})
    parts = concatenate_datasets([whole.select(range(30)), whole.select(range(30, 70))])
    assert key_of_data(parts) == key_of_data(whole)  # as several processes prepare it
    mended = [bytes(9), bytes(7)] * 49 + [bytes(9), bytes(6) + b"1"]
    assert key_of_data(rows.remove_columns("label").add_column("label", mended)) != key

    weights = Weights(1)
    key = key_of_weights(weights)
    assert key_of_weights(Weights(1)) == key != key_of_weights(Weights(2))
    assert key_of_weights(weights.half()) != key


def test_other_settings_are_refused_but_for_neutral_ones(tmp_path):
    save_run(tmp_path, 30.0)
    for name, value in (("steps", 7), ("workers", 0)):
        run = RunFolder(tmp_path, {**SETTINGS, name: value}, Accelerator(), neutral=("workers",))
        if name == "workers":
            assert run.open(resume=True) is None
            continue
        with pytest.raises(ValueError, match=r"progress\.json was made with other settings: steps was 6 and is 7\. "):
            run.open(resume=True)


def test_a_setting_that_a_record_lacks_had_its_default(tmp_path):
    save_run(tmp_path, 30.0)
    settings = {**SETTINGS, "bias_images": 0}
    assert RunFolder(tmp_path, settings, Accelerator(), defaults={"bias_images": 0}).open(resume=True) is None
    with pytest.raises(ValueError, match="bias_images was 200 and is 0"):
        RunFolder(tmp_path, settings, Accelerator(), defaults={"bias_images": 200}).open(resume=True)


@contextmanager
def largest_file(size):
    """Lets the system refuse to write more than so many bytes to a file, as it does where a disk is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("save", [torch.save, save_file], ids=["torch", "safetensors"])
def test_a_writer_that_finds_no_room_is_explained(tmp_path, save):
    weights = {"weight": torch.zeros(10_000)}
    with (
        largest_file(20_000),
        pytest.raises(OSError, match=r"state cannot be written .* Free space .* then resume the run"),
        explain_failure(tmp_path / "state"),
        replacing(tmp_path / "state") as fresh,
    ):
        save(weights, fresh)
    assert not list(tmp_path.iterdir())


def test_checkpoints_of_a_run_stay_whole_on_a_full_disk(settings_of, tmp_path, monkeypatch):
    folder, save, failed = tmp_path / "decoders", RunFolder.save, []

    def fill_the_disk(run, model, progress):
        for size in (0, 20_000, 200_000) if progress.step == 2 else ():
            before = bytes_of(folder)
            with largest_file(size), pytest.raises(OSError, match=r"step-2 cannot be written .* Free space"):
                save(run, model, progress)
            assert bytes_of(folder) == before
            failed.append(size)
        save(run, model, progress)

    monkeypatch.setattr(RunFolder, "save", fill_the_disk)
    results = recipe.train("decoders", settings_of(tmp_path, "--steps", "2", "--eval_every", "1"))
    assert len(failed) == 3 and [entry["step"] for entry in results["history"]] == [1, 2]


def test_damaged_files_of_a_run_are_named(tmp_path):
    save_run(tmp_path, 30.0)
    state = tmp_path / "checkpoints" / "step-1" / "state"
    (state / "optimizer.bin").write_bytes((state / "optimizer.bin").read_bytes()[:-50])
    run, _, scheduler = make_run(tmp_path)
    with pytest.raises(ValueError, match=r"step-1 is damaged .*Delete it to start the run again"):
        run.resume(scheduler)


@pytest.mark.parametrize("text", ["", '{"scores": {', "null", "\ufffd\x00"])
def test_a_damaged_json_file_is_named(tmp_path, text):
    file = tmp_path / "results.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"results\.json is damaged.*Delete it and resume the run"):
        read_json(file)


@pytest.mark.parametrize("error", [FULL, RuntimeError("file write failed"), SafetensorError("I/O error")])
def test_a_file_that_cannot_be_written_stays_as_it_was(tmp_path, monkeypatch, error):
    file = tmp_path / "results.json"
    write_json(file, {"run": "old"})
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(error))
    with pytest.raises(OSError, match=r"results\.json cannot be written") as caught:
        write_json(file, {"run": "new"})
    assert caught.value.__cause__ is error
    assert json.loads(file.read_text()) == {"run": "old"} and list(tmp_path.iterdir()) == [file]


@pytest.fixture
def impatient(monkeypatch):
    """Refuses a folder at once that is in use."""
    monkeypatch.setattr(files, "_PATIENCE", 0)


def test_a_second_run_in_the_process_is_refused(tmp_path, impatient):
    first, second = (RunFolder(tmp_path / "run", {}, Accelerator()) for _ in range(2))
    with first.locked(), pytest.raises(BlockingIOError), second.locked():
        pass
    with second.locked():
        pass


def test_a_run_is_refused_until_the_other_is_gone_whatever_its_workers_do(tmp_path, impatient):
    """They load images, and outlive their run by seconds."""
    folder, (ready, started), (wait, alive) = RunFolder(tmp_path, {}, Accelerator()), os.pipe(), os.pipe()
    run = os.fork()
    if run == 0:
        with folder.locked():
            os.close(alive)
            if os.fork() == 0:
                os.write(started, b".")
            os.read(wait, 1)
            os._exit(0)
    os.read(ready, 1)
    message = rf"is in use by another run, process {run} on .*\. Wait until it ends"
    with pytest.raises(BlockingIOError, match=message), folder.locked():
        pass
    os.kill(run, signal.SIGKILL)
    os.waitpid(run, 0)
    with folder.locked():
        pass
    os.close(alive)  # ends the worker


def test_a_folder_that_cannot_be_made_says_so(tmp_path):
    (tmp_path / "file").touch()
    run = RunFolder(tmp_path / "file" / "run", {}, Accelerator())
    with pytest.raises(OSError, match=r"lock cannot be written .*another output folder"), run.locked():
        pass


def test_runs_on_single_tasks_are_joined(tmp_path):
    def results_of(task, steps):
        score = {task: {"mIoU": 1.0}}
        entries = [{"step": step, "losses": {task: step}} for step in steps]
        parameters = {"encoder": 1, "all": 2}
        history = [{"step": 4, "scores": score}]
        return {"parameters": parameters, "scores": score, "seconds": 1.5, "losses": entries, "history": history} | {
            "classes": {task: {}} if task == "semseg" else {},
            "examples": {task: 3},
            "settings": {"seed": 0, "processes": 2},
            "inputs": INPUTS,
            "versions": {"torch": "3.0"},
        }

    (tmp_path / "single_task").mkdir()
    runs = {"semseg": results_of("semseg", [2, 4]), "normals": results_of("normals", [4])}
    joined = join_tasks(tmp_path / "single_task", runs)
    assert joined["method"] == "single_task" and joined["seconds"] == 3.0
    assert joined["settings"] == {"seed": 0, "processes": 2} and joined["inputs"] == INPUTS
    assert joined["versions"] == {"torch": "3.0"}
    assert joined["parameters"] == {"encoder": 2, "all": 4} and list(joined["scores"]) == ["semseg", "normals"]
    both = {"step": 4, "losses": {"semseg": 4, "normals": 4}}
    assert joined["losses"] == [{"step": 2, "losses": {"semseg": 2}}, both]
    assert joined["history"] == [{"step": 4, "scores": joined["scores"]}]
    assert joined["classes"] == {"semseg": {}} and joined["examples"] == {"semseg": 3, "normals": 3}
    assert json.loads((tmp_path / "single_task" / "results.json").read_text()) == joined


@pytest.mark.parametrize("leave", [Path.touch, Path.mkdir])
def test_files_of_others_among_the_checkpoints_are_left_alone(tmp_path, leave):
    save_run(tmp_path, 30.0)
    for name in (".DS_Store", ".nfs0001.tmp", "notes"):
        leave(tmp_path / "checkpoints" / name)
    run, _, scheduler = make_run(tmp_path)
    run.open(resume=True)
    run.resume(scheduler)
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {"step-1", ".DS_Store", "notes"}  # NAME.tmp is left by an interrupted write


def test_a_file_does_not_replace_a_folder(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "thesis.txt").write_text("precious")
    with pytest.raises(IsADirectoryError):
        write_text(tmp_path / "docs", "page")
    assert [path.name for path in tmp_path.iterdir()] == ["docs"]
    assert (tmp_path / "docs" / "thesis.txt").read_text() == "precious"
