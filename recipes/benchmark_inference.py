# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Time, memory and operations of predicting several tasks, against references in the same run.

    python recipes/benchmark_inference.py                                       # Swin-T, 4 tasks, 224 and 512 px
    python recipes/benchmark_inference.py --tasks 1 2 4 8 16 --image_sizes 224  # over the number of tasks

The references are plain models, one per task, each with a whole encoder. How time is taken: see
benchmark_training.py. Prints a table with the goals, and writes benchmark_inference.json and .png.
"""

import sys

import torch
from benchmark import Goal, run_benchmark
from steps import BAKED, PASSES, PASSES_OURS, predictions


def make_goals(method: str) -> list[Goal]:
    return [
        Goal("baked, against a model per task with the paper's decoders", "seconds", method + BAKED, (PASSES,), 0.72),
        Goal("baked, against a model per task with our decoders", "seconds", method + BAKED, (PASSES_OURS,), 1.05),
    ]


@torch.no_grad()
def main(arguments: list[str]) -> None:
    run_benchmark("benchmark_inference", __doc__, predictions, PASSES, make_goals, arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
