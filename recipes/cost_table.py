# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""What a whole run on PASCAL-Context costs: floating-point operations counted, hours on GPUs computed from them.

    python recipes/cost_table.py               # the paper's run: Swin-T, Polyhistor-Lite, 4 tasks, 512 px, 60 epochs

A step and a prediction of one picture run on this machine's processor, where their operations are counted and the
step is timed. Hours on a GPU are those operations over a share of the peak that its maker publishes for dense
bfloat16: computed, not measured. They leave out loading, which takes as many cores as the last columns say.
"""

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from contestants import Problem, make_adapted
from encoders import ENCODERS
from generated_archive import COUNTS
from settings import option
from torch.utils.flop_counter import FlopCounterMode
from transformers import HfArgumentParser

from peft_polyhistor import METHODS
from peft_polyhistor.config import PASCAL_TASKS
from peft_polyhistor.studies.tables import align


# 10^12 dense bfloat16 operations per second, as NVIDIA publishes them.
PEAKS = {"A100": 312, "H100 SXM": 989, "RTX 4090": 165}
LOADED = 28.1  # pictures per second and core at 512 px, augmented (recipes/results/speed.md)


@dataclass
class CostSettings:
    encoder: str = option("Swin-T", f"one of {list(ENCODERS)}; weights are random")
    method: str = option("polyhistor_lite", f"one of {list(METHODS)}")
    image_size: int = option(512, "side of the pictures, pixels")
    epochs: int = option(60, "passes over the training pictures, each followed by one over those of val")
    batch_size: int = option(12, "pictures of a step; those that fill none are left out of an epoch")
    utilization: list[int] = option([10, 30], "percent of the published peak that is assumed")

    def __post_init__(self):
        if self.encoder not in ENCODERS or self.method not in METHODS:
            raise ValueError(
                f"`encoder` must be one of {list(ENCODERS)} and `method` one of {list(METHODS)}, got {self.encoder!r} "
                f"and {self.method!r}."
            )
        if self.image_size < 32 or min(self.epochs, self.batch_size) < 1:
            raise ValueError(
                f"`image_size` must be at least 32, `epochs` and `batch_size` at least 1, got {self.image_size}, "
                f"{self.epochs} and {self.batch_size}."
            )
        if not self.utilization or not all(0 < share <= 100 for share in self.utilization):
            raise ValueError(f"`utilization` must be from 1 to 100 percent, got {self.utilization}.")


def count_flops(step: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def measure(settings: CostSettings) -> tuple[int, int, float]:
    """Of one picture: operations of a training step, those of a prediction, and seconds of a processor of a step."""
    size = (settings.image_size, 1, 256, torch.device("cpu"), torch.float32)
    problem = Problem(settings.encoder, list(PASCAL_TASKS), *size)
    pixels, labels = problem.pictures(), problem.labels()
    model = make_adapted(problem, settings.method).train()

    def train() -> None:
        model(pixels, labels, full_resolution=False).loss.backward()
        model.zero_grad()

    @torch.no_grad()
    def predict() -> None:
        model(pixels, full_resolution=False)

    train_flops = count_flops(train)
    start = time.process_time()
    train()
    seconds = time.process_time() - start
    model.eval()
    return train_flops, count_flops(predict), seconds


def main(settings: CostSettings) -> list[list[str]]:
    torch.set_num_threads(1)
    trained = COUNTS["train"] // settings.batch_size * settings.batch_size * settings.epochs
    predicted = COUNTS["val"] * settings.epochs
    train_flops, predict_flops, seconds = measure(settings)
    total = trained * train_flops + predicted * predict_flops
    rows = [["GPU", "published TFLOP/s", "assumed share", "hours", "pictures/s in training", "cores to load them"]]
    for name, peak in PEAKS.items():
        for share in settings.utilization:
            rate = peak * 1e12 * share / 100
            speed = rate / train_flops
            figures = [f"{total / rate / 3600:.1f}", f"{speed:.0f}", f"{math.ceil(speed / LOADED)}"]
            rows.append([name, f"{peak}", f"{share} %", *figures])
    print(
        f"{settings.encoder}, {settings.method}, {settings.image_size} px, {settings.epochs} epochs: "
        f"{trained:,} pictures in training, {train_flops / 1e9:.1f} GFLOP each, "
        f"{predicted:,} predicted, {predict_flops / 1e9:.1f} GFLOP each; {total / 1e15:.0f} PFLOP in all.",
        align(rows, left=(0,)),
        "Hours are computed, not measured: operations over the assumed share of the published peak.",
        f"Measured on one core of this machine, float32: {1 / seconds:.2f} pictures/s in training, so "
        f"{trained * seconds / 86400:.0f} days for them.",
        sep="\n",
    )
    return rows


if __name__ == "__main__":
    main(*HfArgumentParser(CostSettings, description=__doc__).parse_args_into_dataclasses(sys.argv[1:]))
