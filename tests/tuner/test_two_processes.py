# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Several processes score as one does, to the bit, and train as one does, up to rounding."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch


SCRIPT = """
import json, sys
from types import SimpleNamespace
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader
from peft_polyhistor import TASKS, MultiTaskDenseModel, load_encoder
from peft_polyhistor.data import JointTransform, collate
from peft_polyhistor.data.synthetic import synthetic_scenes
from peft_polyhistor.evaluation import collect_statistics, score_images, score_tasks

class PerPixel(nn.Module):  # does not round by the size of a batch, as a product of matrices may
    def forward(self, pixels, tasks, full_resolution):
        torch.manual_seed(0)
        mix = {task: torch.randn(1, TASKS[task].channels, 3, 1, 1) for task in tasks}
        parts = {task: [factor * pixels[:, i, None] for i, factor in enumerate(mix[task].unbind(2))] for task in tasks}
        return SimpleNamespace(logits={task: x + y + z for task, (x, y, z) in parts.items()})

accelerator = Accelerator(cpu=True)
torch.manual_seed(0)
dense = MultiTaskDenseModel.from_encoder(load_encoder("swin-mini"), list(TASKS), decoder_width=8)
with accelerator.main_process_first():
    scenes = synthetic_scenes(split="val", count=5, image_size=64, cache_dir=sys.argv[1])
scenes = scenes.with_transform(JointTransform(64, train=False))
layouts = [(1, 0), (2, 0), (3, 0), (4, 0), (5, 0), (7, 0), (2, 1), (2, 4)]
for model, batch_size, workers in [(dense, 1, 0), *((PerPixel(), *layout) for layout in layouts)]:
    loader = DataLoader(scenes, batch_size=batch_size, num_workers=workers, collate_fn=collate)
    rows = collect_statistics(model, accelerator.prepare(loader), list(TASKS), accelerator)
    scores = {"all": score_tasks(rows), "pictures": str(score_images(rows))}  # text, as NaN is not itself
    if accelerator.is_main_process:
        print(json.dumps([type(model).__name__, batch_size, workers, scores]))
accelerator.end_training()
"""


def on_processes(count):
    return ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)] if count > 1 else []


def run(*command):
    tools = str(Path(__file__).parents[1] / "tools")
    path = os.pathsep.join(filter(None, [tools, os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": path}
    command = [sys.executable, *map(str, command)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_scores_are_the_same_in_every_layout(tmp_path):
    """Five images: batches of one, one left over, fewer batches than processes, and padding that must not count."""
    script, found = tmp_path / "score.py", {}
    script.write_text(SCRIPT)
    for processes in (1, 2, 3):
        for line in run(*on_processes(processes), script, tmp_path / "cache").strip().splitlines():
            model, *layout, scores = json.loads(line)
            found.setdefault(model, {})[(processes, *layout)] = scores
    assert {model: len(layouts) for model, layouts in found.items()} == {"MultiTaskDenseModel": 3, "PerPixel": 24}
    for layouts in found.values():
        first, *others = layouts.values()
        assert all(other == first for other in others), layouts  # to the bit


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
    two = train(layout, *on_processes(2))
    assert (on_one_process["processes"], two["processes"]) == (1, 2)
    torch.testing.assert_close(two["trained"], on_one_process["trained"], rtol=0, atol=1e-5)
