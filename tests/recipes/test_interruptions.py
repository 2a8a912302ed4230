# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""What is left of a run when the disk is full, and what it says of damaged files."""

import resource
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import save_file


@pytest.fixture
def recipe(load_recipe):
    return load_recipe("train_pascal")


@contextmanager
def largest_file(size):
    """Lets the system refuse to write more than so many bytes to a file, as it does where a disk is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("save", [torch.save, save_file], ids=["torch", "safetensors"])
def test_a_writer_that_finds_no_room_is_explained(load_recipe, tmp_path, save):
    weights = {"weight": torch.zeros(10_000)}
    with largest_file(20_000), pytest.raises(OSError, match=r"state cannot be written .* Free space"):
        load_recipe("atomic").replace_folder(tmp_path / "state", lambda folder: save(weights, folder / "weights"))
    assert not list(tmp_path.iterdir())


def test_checkpoints_stay_whole_on_a_full_disk(recipe, settings_of, tmp_path, monkeypatch):
    folder, save, unwritable = tmp_path / "decoders", recipe.save, []

    def fill_the_disk(accelerator, model, folder, progress, settings):
        if progress.step == 1:
            return save(accelerator, model, folder, progress, settings)
        before = {name: bytes_of(folder / name) for name in ("last", "best", "state")}
        for size in (0, 20_000, 200_000):
            with largest_file(size), pytest.raises(OSError, match=r"cannot be written .* Free space") as caught:
                save(accelerator, model, folder, progress, settings)
            unwritable.append(str(caught.value).partition(" ")[0])
            assert bytes_of(folder / "state") == before["state"]
            if unwritable[-1] != str(folder / "state"):
                assert bytes_of(folder / "last") == before["last"] and bytes_of(folder / "best") == before["best"]
            assert not [path for path in folder.iterdir() if path.suffix in (".new", ".old")]
        save(accelerator, model, folder, progress, settings)
        assert bytes_of(folder / "state") != before["state"]

    monkeypatch.setattr(recipe, "save", fill_the_disk)
    recipe.train("decoders", settings_of(tmp_path, "--steps", "2", "--eval_every", "1"))
    assert unwritable == [str(folder / name) for name in ("last", "last", "state")]


def test_damaged_files_of_a_run_are_named(recipe, settings_of, tmp_path):
    folder, settings = tmp_path / "decoders", settings_of(tmp_path, "--steps", "1", "--eval_every", "1", "--resume")
    results = recipe.train("decoders", settings)
    cut_short(folder / "results.json")
    with pytest.raises(ValueError, match=r"results\.json is damaged .*Delete it and give the command again"):
        recipe.train("decoders", settings)
    (folder / "results.json").unlink()
    assert recipe.train("decoders", settings)["history"] == results["history"]
    (folder / "results.json").unlink()
    cut_short(folder / "state" / "optimizer.bin")
    with pytest.raises(ValueError, match=r"state is damaged .*Delete it to start the run anew"):
        recipe.train("decoders", settings)


def cut_short(file):
    file.write_bytes(file.read_bytes()[:-50])
