# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Evaluation on two processes gives the figures of one, to the bit."""

import json
import os
import subprocess
import sys

import pytest


SCRIPT = """
import json, sys
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from peft_polyhistor import TASKS, MultiTaskDenseModel, load_encoder
from peft_polyhistor.data import JointTransform, collate
from peft_polyhistor.data.synthetic import synthetic_scenes
from peft_polyhistor.evaluation import evaluate_tasks

accelerator = Accelerator(cpu=True)
torch.manual_seed(0)
model = MultiTaskDenseModel.from_encoder(load_encoder("swin-micro"), list(TASKS), decoder_width=8)
with accelerator.main_process_first():
    scenes = synthetic_scenes(split="val", count=5, image_size=64, cache_dir=sys.argv[1])
loader = DataLoader(scenes.with_transform(JointTransform(64, train=False)), batch_size=1, collate_fn=collate)
loader = accelerator.prepare(loader)
scores = evaluate_tasks(model, loader, list(TASKS), accelerator)
if accelerator.is_main_process:
    print(json.dumps({"processes": accelerator.num_processes, "scores": scores}))
"""


@pytest.fixture
def run(tmp_path):
    script = tmp_path / "score.py"
    script.write_text(SCRIPT)

    def run(*launcher):
        environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
        command = [sys.executable, *launcher, str(script), str(tmp_path / "cache")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.strip().splitlines()[-1])

    return run


@pytest.mark.slow
def test_two_processes_score_like_one(run):
    one = run()
    two = run("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    assert (one["processes"], two["processes"]) == (1, 2)
    assert two["scores"] == one["scores"]  # 5 pictures on 2 processes: one is padding, and does not count
