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

import torch
import train_pascal
from torch import nn

from peft_polyhistor.training import RunFolder, parse_settings


adapt, add_gradients, save = train_pascal.adapt, train_pascal.add_gradients, RunFolder.save
steps = []


def adapt_without_statistics(*arguments):
    model = adapt(*arguments)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
            module.train = lambda mode=True, module=module: module
    return model


def add_spoilt_gradients(model, batches, tasks, accelerator, per_task):
    steps.append(1)
    if os.environ.get("SPOIL") and len(steps) == 2 and accelerator.is_last_process:
        batches[-1]["pixel_values"][-1, 0, 5, 5] = math.nan
    return add_gradients(model, batches, tasks, accelerator, per_task)


def save_weights(run, model, progress):
    save(run, model, progress)
    trained = {name: p for name, p in run.accelerator.unwrap_model(model).named_parameters() if p.requires_grad}
    torch.save(trained, run.folder / f"process{run.accelerator.process_index}.pt")


train_pascal.adapt = adapt_without_statistics
train_pascal.add_gradients = add_spoilt_gradients
RunFolder.save = save_weights
[settings] = parse_settings(sys.argv[1:], "", train_pascal.DEFAULT_CONFIG, train_pascal.Settings)
train_pascal.main(settings)
train_pascal.PartialState().destroy_process_group()
