# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Accelerate's configs, processes that share out the pictures, and two launchers that act as two machines."""

import json
import os
import socket
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType

from peft_polyhistor.data import JointTransform, synthetic_scenes


RECIPES = Path(__file__).parents[2] / "recipes"
CONFIGS = RECIPES / "configs" / "accelerate"
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
LAYOUTS = {"one_node_8_gpus": (1, 8), "two_nodes_8_gpus": (2, 16), "cpu_2_processes": (1, 2)}

PASS_BY = """
import json, sys
from pathlib import Path
import torch
import train_pascal
from peft_polyhistor.training import parse_settings

folder, *arguments = sys.argv[1:]
epochs, augments, JointTransform = [], [], train_pascal.JointTransform

def keep(*given, **named):
    augments.append(JointTransform(*given, **named))
    return augments[-1]

def pass_by(model, optimizer, tasks, accelerator, *_):
    loader = accelerator._dataloaders[0]
    for epoch in range(2):
        augments[0].set_epoch(epoch)
        loader.set_epoch(epoch)
        images = (image for batch in loader for image in batch["pixel_values"].double())
        epochs.append([image.sum().item() for image in images])
    with open(f"{folder}/{accelerator.process_index}.json", "w") as file:
        json.dump([accelerator.num_processes, epochs, torch.rand(1).item()], file)
    accelerator.end_training()
    sys.exit()

train_pascal.JointTransform, train_pascal.StepGuard = keep, pass_by
[settings] = parse_settings(arguments, "", train_pascal.DEFAULT_CONFIG, train_pascal.Settings)
train_pascal.train("decoders", settings)
"""


@pytest.fixture
def environment():
    paths = os.pathsep.join([str(RECIPES), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": paths}


def wait(*processes):
    for process in processes:
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0, output[-3000:]


def start(environment, *command):
    command = list(map(str, command))
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_accelerate_reads_every_config():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == set(LAYOUTS)
    for name, layout in LAYOUTS.items():
        config = load_config_from_file(str(CONFIGS / f"{name}.yaml"))
        assert (config.num_machines, config.num_processes) == layout
        assert config.distributed_type is DistributedType.MULTI_GPU
        assert config.use_cpu == name.startswith("cpu")
        assert f"{name}.yaml" in (CONFIGS / f"{name}.yaml").read_text()  # the command


@pytest.mark.slow
@pytest.mark.parametrize(("count", "batch_size", "workers"), [(12, 3, 0), (12, 3, 1), (13, 2, 0)])
def test_two_processes_share_out_the_pictures(environment, tmp_path, count, batch_size, workers):
    """Each picture goes by once an epoch, but for a rest that fills no step, with the draws of a single process."""
    (tmp_path / "pass_by.py").write_text(PASS_BY)
    scenes = synthetic_scenes(["normals"], count=count, image_size=32, cache_dir=str(tmp_path / "cache"))
    for split in ("train", "val"):
        scenes.to_parquet(tmp_path / f"{split}.parquet")
    settings = f"--data {tmp_path} --tasks normals --image_size 32 --augmentation 1 --seed 3 --decoder_width 8"
    layout = ["--batch_size", batch_size, "--workers", workers]
    command = [tmp_path / "pass_by.py", tmp_path, *settings.split(), *layout, "--output_dir", tmp_path / "run"]
    wait(start(environment, *LAUNCH, CONFIGS / "cpu_2_processes.yaml", *command))
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    (processes, first, drawn), (_, second, drawn_too) = ranks
    assert processes == 2 and drawn != drawn_too
    transform, orders = JointTransform(32, train=True, seed=3), []
    for epoch, seen in enumerate(zip(first, second, strict=True)):
        transform.set_epoch(epoch)
        rows = scenes.with_transform(transform)
        ids = {row["pixel_values"].double().sum().item(): row["image_id"] for row in rows}  # as one process draws them
        orders.append([[ids[picture] for picture in part] for part in seen])
        assert len(ids) == count
        assert len(orders[epoch][0]) == len(orders[epoch][1]) == count // (2 * batch_size) * batch_size
        assert len(set(chain(*orders[epoch]))) == count // (2 * batch_size) * 2 * batch_size
    assert orders[0] != orders[1]
    assert not set(first[0] + second[0]) & set(first[1] + second[1])  # other draws


@pytest.mark.slow
def test_two_machines_train_as_one_run(environment, small_run, tmp_path):
    """Two launchers with a process each, on this machine."""
    config = (CONFIGS / "two_nodes_8_gpus.yaml").read_text().replace("num_processes: 16", "num_processes: 2")
    (tmp_path / "two.yaml").write_text(config)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    rest = [RECIPES / "train_pascal.py", *small_run(tmp_path / "run", "--methods", "decoders", "--steps", "2")]
    address = ["--main_process_ip", "127.0.0.1", "--main_process_port", port]
    wait(
        *(
            start(environment, *LAUNCH, tmp_path / "two.yaml", "--machine_rank", rank, *address, *rest)
            for rank in (0, 1)
        )
    )
    folder = tmp_path / "run" / "decoders"
    assert json.loads((folder / "results.json").read_text())["settings"]["processes"] == 2
    states = {path.name for path in (folder / "checkpoints/step-2/state").glob("random_states_*")}
    assert states == {"random_states_0.pkl", "random_states_1.pkl"}
