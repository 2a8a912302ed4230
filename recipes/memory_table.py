# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""How many pictures a step may take on GPUs of some sizes, computed from the bytes that one picture and task takes.

    python recipes/memory_table.py                        # Swin-T and Swin-B at 512 px, Polyhistor-Lite, 4 tasks

The bytes are measured on this machine: what a second picture adds to what a step of one task keeps for the backward
pass. To a batch of them come the model, what a step keeps whatever its batch, gradients and Adam's two moments of
what trains, and a tenth of the memory for what libraries and temporary results need. Autocast is that of a processor;
that of a GPU keeps some results, such as those of norms, in float32, and takes more.
"""

import math
import sys
from dataclasses import dataclass, replace

import torch
from contestants import Problem, make_adapted
from encoders import ENCODERS
from measurement import SavedBytes
from settings import option
from torch import nn
from transformers import HfArgumentParser

from peft_polyhistor import METHODS
from peft_polyhistor.config import PASCAL_TASKS
from peft_polyhistor.studies.tables import align


SPARE = 0.1  # of the memory
GIGABYTE = 10**9
ADAM = 3  # tensors of the size of a trainable parameter: its gradient and two moments


@dataclass
class MemorySettings:
    encoders: list[str] = option(["Swin-T", "Swin-B"], f"of {list(ENCODERS)}")
    method: str = option("polyhistor_lite", f"one of {list(METHODS)}")
    image_size: int = option(512, "side of the pictures, pixels")
    memory: list[int] = option([8, 16, 24, 80], "of the GPUs, in units of 10^9 bytes")

    def __post_init__(self):
        unknown = [name for name in self.encoders if name not in ENCODERS]
        if unknown or self.method not in METHODS:
            raise ValueError(
                f"`encoders` must be of {list(ENCODERS)} and `method` one of {list(METHODS)}, got {self.encoders} and "
                f"{self.method!r}."
            )
        if self.image_size < 32 or min(self.memory) < 1:
            raise ValueError(
                f"`image_size` must be at least 32 and `memory` at least 1, got {self.image_size} and {self.memory}."
            )


def measure_bytes(problem: Problem, method: str, precision: torch.dtype | None) -> tuple[int, int]:
    """Bytes that a step of one task keeps for the backward pass: of every picture, and whatever their number.

    Args:
        problem: Its batch size does not matter.
        method: Name of the method.
        precision: Of autocast; None for none.
    """
    one, two = (_measure_bytes(replace(problem, batch_size=size), method, precision) for size in (1, 2))
    return two - one, 2 * one - two


def _measure_bytes(problem: Problem, method: str, precision: torch.dtype | None) -> int:
    model = make_adapted(problem, method).train()
    counter = SavedBytes([*model.parameters(), *model.buffers()])
    with counter, torch.autocast("cpu", precision, enabled=precision is not None):
        model(problem.pictures(), problem.labels(), full_resolution=False)
    return counter.peak


def constant_bytes(model: nn.Module) -> int:
    """Bytes of the parameters, and of the gradients and Adam's moments of those that train."""
    sizes = [(p.numel() * p.element_size(), p.requires_grad) for p in model.parameters()]
    return sum(size * (1 + ADAM * trains) for size, trains in sizes)


def main(settings: MemorySettings) -> list[list[str]]:
    rows = [
        ["encoder", "precision", "MB per picture and task", "backward", *(f"{size} GB" for size in settings.memory)]
    ]
    cpu, tasks = torch.device("cpu"), list(PASCAL_TASKS)
    for encoder in settings.encoders:
        problem = Problem(encoder, tasks, settings.image_size, 1, 256, cpu, torch.float32)
        constant = constant_bytes(make_adapted(problem, settings.method))
        for name, precision in (("float32", None), ("bfloat16 autocast", torch.bfloat16)):
            per_picture, rest = measure_bytes(replace(problem, tasks=tasks[:1]), settings.method, precision)
            for backward, times in (("of all tasks", len(tasks)), ("per task", 1)):
                free = [size * GIGABYTE * (1 - SPARE) - constant - len(tasks) * rest for size in settings.memory]
                batches = [max(0, math.floor(left / (times * per_picture))) for left in free]
                rows.append([encoder, name, f"{per_picture / 1e6:.0f}", backward, *map(str, batches)])
    print(align(rows, left=(0, 1, 3)))
    print(
        f"Largest batch of pictures of {settings.image_size} px and {len(tasks)} tasks, computed; {settings.method}."
    )
    return rows


if __name__ == "__main__":
    main(*HfArgumentParser(MemorySettings, description=__doc__).parse_args_into_dataclasses(sys.argv[1:]))
