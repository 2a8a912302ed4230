# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Files and folders are whole or not there, whichever of the calls that write them fails."""

import errno
import fcntl
import os
import signal
import subprocess
import sys

import pytest
from accelerate import Accelerator
from safetensors import SafetensorError


FULL = OSError(errno.ENOSPC, "No space left on device")
MESSAGE = (
    r"state cannot be written \(\[Errno 28\] No space left on device\)\. What was there before is whole\. "
    r"Free space on the disk .* with --resume True"
)
CALLS = ("mkdir", "replace", "fsync")  # of `os`, that can fail


@pytest.fixture
def atomic(load_recipe):
    return load_recipe("atomic")


@pytest.fixture
def lock_folder(load_recipe):
    return load_recipe("locks").lock_folder


def writer(text):
    def write(folder):
        (folder / "inner").mkdir()
        (folder / "weights").write_text(text)
        (folder / "inner" / "settings").write_text(text)

    return write


def content_of(folder):
    return {path.name: path.read_text() for path in folder.rglob("*") if path.is_file()}


OLD, NEW = ({"weights": text, "settings": text} for text in ("old", "new"))


def fail_at(patch, number, error=FULL):
    """Lets the call of `os` with this number fail, and all after it: a disk that is full stays full."""
    made = []

    def counted(name, original):
        def call(*arguments, **keywords):
            made.append(name)
            if len(made) >= number:
                raise error
            return original(*arguments, **keywords)

        return call

    for name in CALLS:
        patch.setattr(os, name, counted(name, getattr(os, name)))
    return made


def test_a_folder_stays_whole_whichever_call_fails(atomic, tmp_path, monkeypatch):
    folder = tmp_path / "state"
    calls = ["mkdir"] * 2 + ["fsync"] * 4 + ["replace"] * 2 + ["fsync"]
    for number in range(1, len(calls) + 1):
        atomic.replace_folder(folder, writer("old"))
        with monkeypatch.context() as patch:
            made = fail_at(patch, number)
            with pytest.raises(OSError, match=MESSAGE):
                atomic.replace_folder(folder, writer("new"))
        assert made[:number] == calls[:number]
        assert content_of(folder if folder.exists() else atomic.beside(folder, "old")) in (OLD, NEW), number
        atomic.recover(folder)
        assert content_of(folder) in (OLD, NEW) and list(tmp_path.iterdir()) == [folder], number
    made = fail_at(monkeypatch, len(calls) + 1)
    atomic.replace_folder(folder, writer("new"))
    assert made == calls and content_of(folder) == NEW


@pytest.mark.parametrize("error", [FULL, RuntimeError("file write failed"), SafetensorError("I/O error")])
def test_a_write_that_fails_leaves_the_old_folder_and_nothing_else(atomic, tmp_path, error):
    folder = tmp_path / "best"
    atomic.replace_folder(folder, writer("old"))

    def write(fresh):
        (fresh / "weights").write_text("ne")
        raise error

    with pytest.raises(OSError, match="best cannot be written") as caught:
        atomic.replace_folder(folder, write)
    assert caught.value.__cause__ is error
    assert content_of(folder) == OLD and list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("left", [("new",), ("old",), ("new", "old")])
def test_what_an_interruption_leaves_is_taken_away(atomic, tmp_path, left):
    """Where only NAME.old is there, the power went between the renames."""
    folder = tmp_path / "state"
    for ending in left:
        atomic.replace_folder(atomic.beside(folder, ending), writer(ending))
    atomic.recover(folder)
    assert [path.name for path in tmp_path.iterdir()] == (["state"] if "old" in left else [])
    atomic.replace_folder(folder, writer("new"))
    assert content_of(folder) == NEW


def test_all_is_on_the_disk_before_it_is_renamed(atomic, tmp_path, monkeypatch):
    folder, events = tmp_path / "state", []
    atomic.replace_folder(folder, writer("old"))
    fsync, replace = os.fsync, os.replace

    def note_fsync(descriptor):
        events.append(os.path.relpath(os.readlink(f"/proc/self/fd/{descriptor}"), tmp_path))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", lambda *names: events.append(names) or replace(*names))
    atomic.replace_folder(folder, writer("new"))
    assert set(events[:4]) == {"state.new/weights", "state.new/inner/settings", "state.new/inner", "state.new"}
    new, old = tmp_path / "state.new", tmp_path / "state.old"
    assert events[4:] == [(folder, old), (new, folder), "."]
    events.clear()
    atomic.write_json(tmp_path / "results.json", {})
    assert events == ["results.json.new", (tmp_path / "results.json.new", tmp_path / "results.json"), "."]


def test_a_file_stays_whole_whichever_call_fails(atomic, tmp_path, monkeypatch):
    file = tmp_path / "results.json"
    for number in (1, 2, 3):
        atomic.write_json(file, {"run": "old"})
        with monkeypatch.context() as patch:
            fail_at(patch, number)
            with pytest.raises(OSError, match=r"results\.json cannot be written .*No space left"):
                atomic.write_json(file, {"run": "new"})
        assert atomic.read_json(file)["run"] in ("old", "new") and list(tmp_path.iterdir()) == [file], number
    made = fail_at(monkeypatch, 4)
    atomic.write_json(file, {"run": "new"})
    assert made == ["fsync", "replace", "fsync"] and atomic.read_json(file) == {"run": "new"}


@pytest.mark.parametrize("text", ["", '{"scores": {', "null", "\ufffd\x00"])
def test_a_damaged_file_is_named(atomic, tmp_path, text):
    file = tmp_path / "results.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"results\.json is damaged.*Delete it and give the command again"):
        atomic.read_json(file)


HOLD = """
import fcntl, sys
with open(sys.argv[1], "a") as stream:
    fcntl.lockf(stream, fcntl.LOCK_EX)
    stream.write("process 1234 on somewhere"); stream.flush()
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_run_is_refused_until_the_first_is_gone(lock_folder, tmp_path):
    folder = tmp_path / "run"
    with lock_folder(Accelerator(), folder):
        assert (folder / "lock").read_text().startswith(f"process {os.getpid()} on ")
    (folder / "lock").unlink()
    command = [sys.executable, "-c", HOLD, str(folder / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with (
            pytest.raises(BlockingIOError, match=r"run is in use by another run, process 1234 on somewhere\. Wait"),
            lock_folder(Accelerator(), folder),
        ):
            pass
        other.kill()
    with lock_folder(Accelerator(), folder):
        pass


def test_workers_of_a_killed_run_hold_no_lock(lock_folder, tmp_path):
    """They load pictures, and outlive their run by seconds."""
    accelerator, (ready, started), (wait, alive) = Accelerator(), os.pipe(), os.pipe()
    run = os.fork()
    if run == 0:
        with lock_folder(accelerator, tmp_path):
            os.close(alive)
            if os.fork() == 0:
                os.write(started, b".")
            os.read(wait, 1)
            os._exit(0)
    os.read(ready, 1)
    with pytest.raises(BlockingIOError), lock_folder(accelerator, tmp_path):
        pass
    os.kill(run, signal.SIGKILL)
    os.waitpid(run, 0)
    with lock_folder(accelerator, tmp_path):
        pass
    os.close(alive)  # ends the worker


def test_a_folder_that_cannot_be_locked_or_written_says_so(lock_folder, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "lockf", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOLCK, "No locks available")))
        with (
            pytest.warns(UserWarning, match="cannot be locked .*start no other run"),
            lock_folder(Accelerator(), tmp_path),
        ):
            pass
    (tmp_path / "file").touch()
    with (
        pytest.raises(OSError, match=r"lock cannot be written .*Not a directory.*another --output_dir"),
        lock_folder(Accelerator(), tmp_path / "file" / "run"),
    ):
        pass
