# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""A run that is killed again and again, and started again with the same command, ends like one that was not."""

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
import torch
import train_pascal
from safetensors.torch import load_file

from peft_polyhistor.training import parse_settings


KILLS = 50
METHOD = "polyhistor_lite"


@pytest.fixture
def arguments(small_run):
    """`arguments(folder)`: in which epochs end within an accumulation, every step is scored, and workers load."""

    def arguments(folder):
        settings = "--steps 5 --eval_every 1 --gradient_accumulation 2 --workers 2 --max_grad_norm 1 --resume True"
        return small_run(folder, *settings.split(), "--methods", METHOD)

    return arguments


@pytest.fixture
def start(monkeypatch, arguments, tmp_path):
    """`start(folder)`: the recipe in a process, forked from one that has imported what it needs, to save time."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))  # so that preparing is interrupted too
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["train_pascal"])

    def start(folder):
        process = context.Process(target=train, args=(arguments(folder),))
        process.start()
        return process

    return start


def train(arguments):
    multiprocessing.set_start_method("fork", force=True)  # of the workers, as in a command
    torch.set_num_threads(1)
    replace = os.replace
    os.replace = lambda *names: replace(*names) or time.sleep(0.03)  # so that kills fall between two
    [settings] = parse_settings(arguments, "", train_pascal.DEFAULT_CONFIG, train_pascal.Settings)
    train_pascal.main(settings)


def wait_for(process, path, seconds):
    """Waits until `path` is there, then for seconds, or for the end of the process."""
    while not path.exists() and process.is_alive():
        time.sleep(1e-4)
    process.join(seconds)


def draw_moment(chance, seconds):
    """Anywhere in a run of so many seconds, or while it writes or renames."""
    if chance.random() < 0.3:
        return "", chance.uniform(0, seconds)
    step = chance.randint(1, 5)
    names = [f"checkpoints/step-{step}.tmp", f"checkpoints/step-{step}", f"checkpoints/step-{step}.old.tmp"]
    return chance.choice([*names, "last.tmp", "best.tmp"]), chance.uniform(0, 0.03)


def check_whole(folder):
    """Loads all checkpoints that a killed run left, and says where it was killed."""
    checkpoints = folder / "checkpoints"
    for path in checkpoints.glob("step-*[0-9]"):
        for file in path.rglob("*.*"):
            if file.suffix == ".safetensors":
                load_file(file)
            elif file.suffix in (".bin", ".pkl"):
                torch.load(file, weights_only=False)
            elif file.suffix == ".json":
                json.loads(file.read_text())
    for name in ("last", "best"):
        assert not (folder / name).is_symlink() or (folder / name / "adapter_model.safetensors").is_file()
    steps = [int(path.name[5:]) for path in checkpoints.glob("step-*[0-9]")]
    is_behind = steps and os.path.basename(os.path.realpath(folder / "last")) != f"step-{max(steps)}"
    return ["in a write"] * bool(list(checkpoints.glob("*.tmp"))) + ["between two renames"] * bool(is_behind)


def check_same(folder, whole):
    """Weights and optimiser to the bit, and all scores."""
    for file in ("last/adapter_model", "best/adapter_model", "last/state/model"):
        first, second = (load_file(run / METHOD / f"{file}.safetensors") for run in (folder, whole))
        assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    first, second = (torch.load(run / METHOD / "last/state/optimizer.bin")["state"] for run in (folder, whole))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    first, second = (json.loads((run / METHOD / "results.json").read_text()) for run in (folder, whole))
    assert first["history"] == second["history"]


@pytest.mark.slow
def test_a_run_killed_at_50_moments_ends_like_one_that_was_not(start, tmp_path):
    chance, where, kills, runs = random.Random(0), Counter(), 0, 0
    process, started = start(tmp_path / "whole"), time.monotonic()
    process.join()
    assert process.exitcode == 0
    seconds = time.monotonic() - started
    while kills < KILLS:
        folder = tmp_path / f"killed{runs}"
        while kills < KILLS:
            process = start(folder)
            name, delay = draw_moment(chance, seconds)
            wait_for(process, folder / METHOD / name, delay)
            process.kill()
            process.join()
            if process.exitcode != -signal.SIGKILL:
                break
            kills += 1
            where.update(check_whole(folder / METHOD) or ["elsewhere"])
        else:
            process = start(folder)
            process.join()
        assert process.exitcode == 0
        check_same(folder, tmp_path / "whole")
        runs += 1
    print(f"{kills} kills of {runs} runs of {seconds:.1f} s: {dict(where)}")
    assert where["in a write"] and where["between two renames"]


@pytest.mark.slow
def test_two_processes_go_on_after_one_is_killed(arguments, tmp_path):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", train_pascal.__file__]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)

    def start(folder):
        command = [sys.executable, *launcher, *arguments(folder)]
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    assert start(tmp_path / "whole").wait(timeout=600) == 0
    folder = tmp_path / "killed" / METHOD
    for name in ("step-3.tmp", "step-4"):
        launched = start(tmp_path / "killed")
        while not (folder / "checkpoints" / name).exists() and launched.poll() is None:
            time.sleep(1e-4)
        main = (folder / "process.txt").read_text().split()[1]
        os.kill(int(main), signal.SIGKILL)
        assert launched.wait(timeout=600) != 0
    assert start(tmp_path / "killed").wait(timeout=600) == 0
    check_same(tmp_path / "killed", tmp_path / "whole")
