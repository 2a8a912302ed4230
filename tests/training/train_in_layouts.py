# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The training recipe, less what a model takes from the batch of a process: BatchNorm computes as in evaluation.

    python train_in_layouts.py ARGUMENTS OF train_pascal.py

Every process leaves its weights in its folder. With SPOIL=1 in the environment, the last picture of the second step is
not finite; only the last process sees it.
"""

import math
import os
import sys
from pathlib import Path

import torch
from torch import nn


sys.path.insert(0, str(Path(__file__).parents[2] / "recipes"))
import train_pascal


build_model, add_gradients, finish = train_pascal.build_model, train_pascal.add_gradients, train_pascal.finish
steps = []


def build_without_statistics(*arguments):
    model = build_model(*arguments)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
            module.train = lambda mode=True, module=module: module
    return model


def add_spoilt_gradients(model, batches, tasks, per_task, accelerator):
    steps.append(1)
    if os.environ.get("SPOIL") and len(steps) == 2 and accelerator.is_last_process:
        batches[-1]["pixel_values"][-1, 0, 5, 5] = math.nan
    return add_gradients(model, batches, tasks, per_task, accelerator)


def finish_with_weights(run, folder):
    trained = {name: p for name, p in run.accelerator.unwrap_model(run.model).named_parameters() if p.requires_grad}
    torch.save(trained, folder / f"process{run.accelerator.process_index}.pt")
    return finish(run, folder)


train_pascal.build_model = build_without_statistics
train_pascal.add_gradients = add_spoilt_gradients
train_pascal.finish = finish_with_weights
train_pascal.main(train_pascal.parse_settings(sys.argv[1:], ""))
train_pascal.PartialState().destroy_process_group()
