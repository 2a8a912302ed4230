# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The same training, however a step is cut up: over processes, batches, tasks and layers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import SwinModel

from peft_polyhistor import load_encoder


SCRIPT = Path(__file__).with_name("train_in_layouts.py")
ON_TWO = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
METHOD = "polyhistor_lite"
LAYOUTS = {
    "batches in turn": "--batch_size 2 --gradient_accumulation 4",
    "tasks in turn": "--batch_size 4 --gradient_accumulation 2 --backward_per_task True",
    "layers recomputed": "--batch_size 8 --gradient_checkpointing True",
    "two processes": "--batch_size 4",
    "two processes, batches in turn": "--batch_size 2 --gradient_accumulation 2",
    "two processes, tasks and batches in turn": "--batch_size 2 --gradient_accumulation 2 --backward_per_task True",
}


@pytest.fixture(scope="module")
def train(write_scenes):
    """`train(name, arguments, processes)`: weights of each process after three steps on 8 of 16 pictures."""
    folder = write_scenes(train=16, val=2)
    config = load_encoder("swin-mini").config
    config.drop_path_rate = 0.0  # nothing is left to chance
    torch.manual_seed(0)
    SwinModel(config).save_pretrained(folder / "encoder")
    # Adam would make much of rounding where gradient is small.
    alike = f"--methods {METHOD} --data {folder} --encoder {folder / 'encoder'} --image_size 64 --decoder_width 8 "
    alike += "--decoder_dropout 0 --optimizer sgd --learning_rate 0.03 --max_grad_norm 5 --steps 3 --workers 0"

    def train(name, arguments, processes, **environment):
        output, launcher = folder / name.replace(" ", "_"), ON_TWO if processes == 2 else []
        command = [sys.executable, *launcher, str(SCRIPT), *alike.split(), *arguments.split(), "--output_dir", output]
        given = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": os.pathsep.join(sys.path)}
        environment = os.environ | given | environment
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return [torch.load(output / METHOD / f"process{number}.pt") for number in range(processes)], done.stderr

    return train


@pytest.fixture(scope="module")
def whole(train):
    [weights], _ = train("whole", "--batch_size 8", 1)
    return weights


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_step_trains_the_same_however_it_is_cut_up(train, whole, name):
    trained, _ = train(name, LAYOUTS[name], 2 if name.startswith("two") else 1)
    for weights in trained:
        torch.testing.assert_close(weights, whole, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_processes_skip_a_step_together(train):
    """Only the second process has the bad picture."""
    [expected], said = train("spoilt", "--batch_size 8 --on_bad_step skip", 1, SPOIL="1")
    assert "Step 2 is skipped: loss of semseg nan" in said
    trained, said = train("spoilt on two", "--batch_size 4 --on_bad_step skip", 2, SPOIL="1")
    assert said.count("Step 2 is skipped: loss of semseg nan") == 1
    for weights in trained:
        torch.testing.assert_close(weights, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(*trained, rtol=0, atol=0)
