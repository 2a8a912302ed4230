# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Trains every method for a few steps, some of them on some of the tasks, as one process or as one of several.

    python train_in_processes.py LAYOUT FILE

The trained parameters of all methods go to the file. test_two_processes.py compares those of the layouts.
"""

import sys

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from methods_table import BASES, METHODS_UNDER_TEST, TASKS, tensors_of, trainable
from peft import get_peft_model
from tiny_models import perturb
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from peft_polyhistor import MultiTaskDenseModel


STEPS = [TASKS, TASKS[:1], TASKS[1:], TASKS]  # the tasks of each
BATCH = 4


def shard(accelerator: Accelerator, model: nn.Module) -> nn.Module:
    # `Accelerator.prepare` does the same on GPUs; on CPUs it takes DDP whatever it is told.
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", cpu_ram_efficient_loading=False
    )
    return fsdp2_prepare_model(accelerator, model)


def replicate(accelerator: Accelerator, model: nn.Module) -> nn.Module:
    # Adapters of an encoder get gradient for whichever tasks a step trains; the decoders of other tasks get none.
    return DistributedDataParallel(
        model, find_unused_parameters=isinstance(model.base_model.model, MultiTaskDenseModel)
    )


LAYOUTS = {"one": lambda accelerator, model: model, "ddp": replicate, "fsdp2": shard}


def train(accelerator: Accelerator, model: nn.Module) -> None:
    """The loss is a mean over pictures, of which each process has its part."""
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=0.1)
    size = BATCH // accelerator.num_processes
    part = slice(accelerator.process_index * size, (accelerator.process_index + 1) * size)
    for step, tasks in enumerate(STEPS):
        torch.manual_seed(step)
        pixels = torch.randn(BATCH, 3, 96, 96).double()
        outputs = tensors_of(model(pixels[part], tasks=tasks)).values()
        sum((output * torch.randn(BATCH, *output.shape[1:])[part]).mean() for output in outputs).backward()
        optimizer.step()
        optimizer.zero_grad()


def main(layout: str, file: str) -> None:
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    trained = {}
    for row in METHODS_UNDER_TEST:
        for base in row.bases:
            torch.manual_seed(0)
            model = perturb(get_peft_model(BASES[base](), row.config_class(tasks=TASKS, **row.kwargs))).eval().double()
            train(accelerator, LAYOUTS[layout](accelerator, model))
            whole = (p.full_tensor() if isinstance(p, DTensor) else p for p in trainable(model).values())
            trained[row.name, base.__name__] = dict(zip(trainable(model), map(torch.clone, whole), strict=True))
    if accelerator.is_main_process:
        torch.save({"processes": accelerator.num_processes, "trained": trained}, file)
    accelerator.end_training()


if __name__ == "__main__":
    main(*sys.argv[1:])
