# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Time, memory and operations of predicting several tasks, against references in the same run.

    python recipes/benchmarks/inference.py                                       # Swin-T, 4 tasks, 224 and 512 px
    python recipes/benchmarks/inference.py --tasks 1 2 4 8 16 --image_sizes 224  # over the number of tasks

The references are plain models, one per task, each with a whole encoder. training.py says how time is taken. Prints a
table with the goals, and writes benchmark_inference.json and benchmark_inference.svg.
"""

import sys

import torch
from common import Goal, run_benchmark
from problem import Contestant, Problem, make_adapted, make_dense, make_lora
from torch import nn


BAKED, GENERATED = ", baked", ", generated in every call"
PASSES, PASSES_OURS = "a model per task, the paper's decoders", "a model per task"
LORA, VMT = "PEFT LoRA", "vmt_adapter"


def predictions(problem: Problem, method: str) -> dict[str, Contestant]:
    """Logits of all tasks, by name."""
    pixels = problem.images()

    def predict(model: nn.Module) -> Contestant:
        model.eval()
        return Contestant(lambda: model(pixels, tasks=problem.tasks, full_resolution=False), model)

    def predict_in_turn(model: nn.Module) -> Contestant:
        model.eval()

        def step() -> None:
            for task in problem.tasks:
                model(pixels, tasks=[task], full_resolution=False)

        return Contestant(step, model)

    ours = make_adapted(problem, method)
    return {
        PASSES: predict_in_turn(make_dense(problem, papers_decoders=True)),
        PASSES_OURS: predict_in_turn(make_dense(problem)),
        method + GENERATED: predict(ours),
        method + BAKED: predict(ours.bake()),
        VMT: predict(make_adapted(problem, VMT)),
        LORA: predict(make_lora(problem, papers_decoders=False)),
    }


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
