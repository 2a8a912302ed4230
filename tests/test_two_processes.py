# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Two processes score as one does, to the bit, and train as one does, up to rounding."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch


SCRIPT = """
import json, sys
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from peft_polyhistor import TASKS, MultiTaskDenseModel, load_encoder
from peft_polyhistor.data import JointTransform, collate
from peft_polyhistor.data.synthetic import synthetic_scenes
from peft_polyhistor.evaluation import collect_statistics, score_pictures, score_tasks

accelerator = Accelerator(cpu=True)
torch.manual_seed(0)
model = MultiTaskDenseModel.from_encoder(load_encoder("swin-micro"), list(TASKS), decoder_width=8)
with accelerator.main_process_first():
    scenes = synthetic_scenes(split="val", count=5, image_size=64, cache_dir=sys.argv[1])
loader = DataLoader(scenes.with_transform(JointTransform(64, train=False)), batch_size=1, collate_fn=collate)
loader = accelerator.prepare(loader)
rows = collect_statistics(model, loader, list(TASKS), accelerator)
scores = {"all": score_tasks(rows), "pictures": str(score_pictures(rows))}  # text, as NaN is not itself
if accelerator.is_main_process:
    print(json.dumps({"processes": accelerator.num_processes, "scores": scores}))
accelerator.end_training()
"""


TWO_PROCESSES = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def run(*command):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, *map(str, command)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_two_processes_score_like_one(tmp_path):
    script = tmp_path / "score.py"
    script.write_text(SCRIPT)
    one, two = (
        json.loads(run(*launcher, script, tmp_path / "cache").strip().splitlines()[-1])
        for launcher in ([], TWO_PROCESSES)
    )
    assert (one["processes"], two["processes"]) == (1, 2)
    assert two["scores"] == one["scores"]  # 5 pictures on 2 processes: one is padding, and does not count


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """`train(layout, *launcher)`: the number of processes, and of every method the trained parameters."""

    def train(layout, *launcher):
        file = tmp_path_factory.mktemp(layout) / "trained.pt"
        run(*launcher, Path(__file__).with_name("train_in_processes.py"), layout, file)
        return torch.load(file)

    return train


@pytest.fixture(scope="module")
def on_one_process(train):
    return train("one")


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["ddp", "fsdp2"])
def test_two_processes_train_like_one(train, on_one_process, layout):
    """With steps that leave out tasks; in double precision, where rounding is no matter."""
    two = train(layout, *TWO_PROCESSES)
    assert (on_one_process["processes"], two["processes"]) == (1, 2)
    torch.testing.assert_close(two["trained"], on_one_process["trained"], rtol=0, atol=1e-5)
