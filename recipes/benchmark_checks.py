# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""What it costs that train_pascal.py looks at the losses and gradients of every step.

    python recipes/benchmark_checks.py --methods polyhistor_lite full

Measures what follows the backward pass of four tasks on Swin-T: the optimiser step alone, and watched. The steps take
turns; the times are medians, on a processor those of the process.
"""

import argparse
from collections.abc import Callable
from statistics import median

import torch
from accelerate import Accelerator
from measurement import measure_times
from methods import build_model
from optimization import make_optimizer
from settings import Settings
from transformers import SwinConfig, SwinModel
from watch import ON_BAD_STEP, Watch

from peft_polyhistor.studies.tables import align


def make_steps(accelerator: Accelerator, method: str) -> dict[str, Callable[[], None]]:
    """The steps that are compared, by name, on one model with gradients that are random and stay the same."""
    settings = {way: Settings(methods=[method], on_bad_step=way) for way in ON_BAD_STEP}
    model = build_model(method, settings["stop"], {}, SwinModel(SwinConfig()))
    model, optimizer = accelerator.prepare(model, make_optimizer(model, settings["stop"]))
    gradients = {p: torch.randn_like(p) for p in model.parameters() if p.requires_grad}
    tasks = settings["stop"].tasks
    losses = torch.ones(len(tasks), device=accelerator.device)

    def fill() -> None:
        for parameter, gradient in gradients.items():
            parameter.grad = gradient

    def step_alone() -> None:
        fill()
        optimizer.step()
        optimizer.zero_grad()

    def make_watched(watch: Watch) -> Callable[[], None]:
        def step_watched() -> None:
            fill()
            watch.step(1, losses)

        return step_watched

    watched = {
        f"watched, on_bad_step={way}": make_watched(Watch(model, optimizer, tasks, settings[way], accelerator))
        for way in ON_BAD_STEP
    }
    return {"optimiser step alone": step_alone, **watched}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["polyhistor_lite", "full"])
    parser.add_argument("--rounds", type=int, default=50)
    options = parser.parse_args()
    accelerator, rows = Accelerator(), [["method", "step", "milliseconds"]]
    torch.set_num_threads(1)
    for method in options.methods:
        times = measure_times(make_steps(accelerator, method), options.rounds, accelerator.device)
        rows += [[method, name, f"{1000 * median(seconds):.2f}"] for name, seconds in times.items()]
    print(align(rows, left=(0, 1)))


if __name__ == "__main__":
    main()
