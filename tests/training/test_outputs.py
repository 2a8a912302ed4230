# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Commands write into their output folder alone, without a token of the Hub. Publishing: hub/test_round_trip.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import train_pascal as recipe
from file_contents import bytes_of
from PIL import Image

from peft_polyhistor import load
from peft_polyhistor.hub.run_record import record_of, write_files


RECIPES = Path(__file__).parents[2] / "recipes"
TOKEN = "hf_OfNobodyToBeSeenByNobody"

# Runs a script or a module, and notes what Python opens to write, makes, renames or removes; a line each.
WATCH = """
import os, runpy, sys

notes, what, sys.argv = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND), sys.argv[2], sys.argv[2:]
changing = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.truncate", "os.utime"}

def note(event, arguments):
    if event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        paths = arguments[:1]
    else:
        paths = arguments[:2] if event in changing else arguments[1:2] if event == "os.symlink" else ()
    within = arguments[-1] if event in ("os.mkdir", "os.remove", "os.rmdir") else -1  # the descriptor of a folder
    folder = os.readlink(f"/proc/self/fd/{within}") if within >= 0 else os.getcwd()
    for path in paths:
        if isinstance(path, (str, bytes, os.PathLike)):
            os.write(notes, os.fsencode(os.path.normpath(os.path.join(folder, os.fsdecode(path)))) + b"\\n")

sys.addaudithook(note)
sys.path.insert(0, os.path.dirname(what))
runpy.run_path(what, run_name="__main__") if what.endswith(".py") else runpy.run_module(what, run_name="__main__")
"""


def test_a_token_is_neither_saved_nor_printed(settings_of, tmp_path, monkeypatch, capfd, caplog):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    short = ["--methods", "decoders", "--steps", "1", "--eval_every", "1"]
    [results] = recipe.main(settings_of(tmp_path / "run", *short))
    write_files(tmp_path / "run" / "decoders", results, tmp_path)
    card = record_of(results, "best")
    with pytest.raises((OSError, ValueError)) as caught:
        load("nobody/nothing", token=TOKEN, cache_dir=str(tmp_path / "cache"), local_files_only=True)
    files = bytes_of(tmp_path)
    assert len(files) > 10 and not [name for name, content in files.items() if TOKEN.encode() in content]
    said = [*capfd.readouterr(), caplog.text, str(card), str(caught.value), repr(caught.value.__cause__)]
    assert not [text for text in said if TOKEN in text]


@pytest.mark.slow
def test_commands_write_into_their_output_folder_alone(small_run, parquet_scenes, tmp_path):
    """Beside it: the caches of Hugging Face and matplotlib, and temporary files, which are gone in the end."""
    (tmp_path / "watch.py").write_text(WATCH)
    folders = {name: tmp_path / name for name in ("home", "here", "temporary", "cache", "out")}
    for folder in folders.values():
        folder.mkdir()
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TORCH")}  # PyTorch's caches
    environment = {
        **inherited,
        "HOME": str(folders["home"]),
        "TMPDIR": str(folders["temporary"]),
        "HF_HOME": str(folders["cache"]),
        "MPLCONFIGDIR": str(folders["cache"] / "matplotlib"),
        "HF_TOKEN": TOKEN,
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": str(RECIPES.parent),
    }
    run, best = folders["out"] / "run", folders["out"] / "run" / "polyhistor_lite" / "best"
    Image.new("RGB", (80, 60)).save(tmp_path / "picture.png")
    data = bytes_of(parquet_scenes)
    short = ["--methods", "polyhistor_lite", "--steps", "2", "--eval_every", "1", "--tracker", "tensorboard"]
    commands = [
        [RECIPES / "train_pascal.py", *small_run(run, *short, "--workers", "1")],
        ["peft_polyhistor", "report", run],
        ["peft_polyhistor", "predict", best, tmp_path / "picture.png", "--out", folders["out"] / "predictions"],
    ]
    for command in commands:
        watched = [sys.executable, tmp_path / "watch.py", tmp_path / "notes", *command]
        done = subprocess.run(
            list(map(str, watched)), cwd=folders["here"], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert TOKEN not in done.stdout + done.stderr
    allowed = tuple(f"{folders[name]}{os.sep}" for name in ("out", "temporary", "cache"))
    written = set((tmp_path / "notes").read_text().splitlines())
    assert [path for path in written if not path.startswith((*allowed, "/dev/"))] == []
    # Files that others than Python wrote are seen here. PyTorch makes a folder for what it may compile.
    assert not any(list(folders[name].iterdir()) for name in ("home", "here"))
    assert [path for path in folders["temporary"].rglob("*") if not path.name.startswith("torchinductor")] == []
    assert bytes_of(parquet_scenes) == data
    assert {path.parts[0] for path in bytes_of(folders["out"])} == {"run", "predictions"}
    assert not [name for name, content in bytes_of(tmp_path).items() if TOKEN.encode() in content]
