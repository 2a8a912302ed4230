# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Time, memory and operations of predictions for several tasks, compared with references in the same run.

    python recipes/benchmarks/inference.py                                       # Swin-T, 4 tasks, 224 and 512 px
    python recipes/benchmarks/inference.py --tasks 1 2 4 8 16 --image_sizes 224  # over the number of tasks

The references are plain models, one per task, each with its own encoder. Time is measured, and defaults depend on the
device, as in training.py. The script prints tables, with ratios to the references, and writes
benchmark_inference.md, .json and .svg after every setting.
"""

import sys
from collections.abc import Callable, Mapping

import torch
from common import Benchmark, run_benchmark
from problem import Contestant, Problem, make_adapted, make_dense, make_lora
from report import Reference, References
from torch import nn

from peft_polyhistor.registry import METHODS


BAKED, GENERATED, MERGED = ", baked", ", generated in every call", ", merged"
PASSES, PASSES_OURS = "a model per task, the paper's decoders", "a model per task"
LORA, VMT = "PEFT LoRA", "vmt_adapter"


def predictions(problem: Problem, method: str) -> Mapping[str, Callable[[], Contestant]]:
    """Returns what makes the contestants, by name; a step computes the logits of all tasks."""
    pixels = problem.images()

    def predict(model: nn.Module) -> Contestant:
        model.eval()
        return Contestant(lambda: model(pixels, tasks=problem.tasks, full_resolution=False), model)

    def predict_in_turn(models: dict[str, nn.Module]) -> Contestant:
        parts = nn.ModuleList(models.values()).eval()

        def step() -> None:
            for task, model in models.items():
                model(pixels, tasks=[task], full_resolution=False)

        return Contestant(step, parts)

    def predict_with_plain_models(papers_decoders: bool) -> Contestant:
        return predict_in_turn(dict.fromkeys(problem.tasks, make_dense(problem, papers_decoders)))

    ours = make_adapted(problem, method)
    merged = {method + MERGED: lambda: predict_in_turn(ours.merge_and_unload(tasks=problem.tasks))}
    return {
        PASSES: lambda: predict_with_plain_models(papers_decoders=True),
        PASSES_OURS: lambda: predict_with_plain_models(papers_decoders=False),
        method + GENERATED: lambda: predict(ours),
        method + BAKED: lambda: predict(ours.bake()),
        **(merged if can_merge(method) else {}),
        VMT: lambda: predict(make_adapted(problem, VMT)),
        LORA: lambda: predict(make_lora(problem, papers_decoders=False)),
    }


def can_merge(method: str) -> bool:
    return "attention" not in METHODS[method]().sublayers


def make_references(method: str) -> References:
    return {f"seconds to {step}": Reference("seconds", (step,)) for step in (PASSES_OURS, PASSES, LORA)}


def choose_compiled(method: str) -> tuple[str, ...]:
    return PASSES_OURS, method + GENERATED, method + BAKED, VMT, LORA


BENCHMARK = Benchmark("benchmark_inference", __doc__, predictions, make_references, choose_compiled)


@torch.no_grad()
def main(arguments: list[str]) -> None:
    run_benchmark(BENCHMARK, arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
