# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Time, memory and operations of a training step for several tasks, compared with references in the same run.

    python recipes/benchmarks/training.py                                       # Swin-T, 4 tasks, 224 and 512 px
    python recipes/benchmarks/training.py --tasks 1 2 4 8 16 --image_sizes 224  # over the number of tasks
    python recipes/benchmarks/training.py --device cuda                         # in 6 minutes, on one GPU

On a GPU, the defaults are Swin-T and Swin-B, 12 images of 512 px and bfloat16, each step as it is and compiled.

A step is a forward and a backward pass on random images and labels, without an optimiser. The steps take turns, so
other load on the machine affects all of them alike. On a CPU, process time is measured, summed over all threads.
Operations and bytes are counted exactly. The script prints tables, with ratios to the references, and writes
benchmark_training.md, .json and .svg after every setting.
"""

import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext

import torch
from common import Benchmark, run_benchmark
from problem import Contestant, Problem, Step, make_adapted, make_dense, make_lora
from report import Reference, References
from torch import Tensor, nn

from peft_polyhistor.models.blocks import find_blocks


BOUND, BOUND_TOGETHER = "frozen encoder, a pass per task", "frozen encoder, all tasks in a batch"
LORA, LORA_OURS = "PEFT LoRA, the paper's decoders", "PEFT LoRA"
LORA_PER_TASK = "PEFT LoRA, the paper's decoders, a backward pass per task"
FULL, FULL_OURS = "full fine-tuning, the paper's decoders", "full fine-tuning"
PLAIN = "plain plugin"
VMT, VMT_ENCODER, VMT_ENCODER_ONE = "vmt_adapter", "vmt_adapter, encoder alone", "vmt_adapter, encoder alone, 1 task"
TOGETHER, IN_TURN, PER_TASK = ", all tasks in a batch", ", one task after the other", ", a backward pass per task"
GENERATION = ", generation alone"


def training_steps(problem: Problem, method: str) -> Mapping[str, Callable[[], Contestant]]:
    """Returns what makes the contestants, by name; a step runs all tasks forward and backward."""
    pixels, labels = problem.images(), problem.labels()

    def loss_of(model: nn.Module, tasks: list[str] = problem.tasks) -> Tensor:
        return model(pixels, labels, tasks=tasks, full_resolution=False).loss

    def train(model: nn.Module, tasks_per_pass: int | None = None) -> Contestant:
        def backward() -> None:
            if hasattr(model, "peft_config"):
                model.peft_config["default"].tasks_per_pass = tasks_per_pass
            loss_of(model).backward()

        return make_contestant(model, backward)

    def train_per_task(model: nn.Module) -> Contestant:
        def backward() -> None:
            with getattr(model, "generate_once", nullcontext)():
                for task in problem.tasks:
                    loss_of(model, [task]).backward()

        return make_contestant(model, backward)

    def train_plainly(model: nn.Module) -> Contestant:
        return make_contestant(model, lambda: sum(loss_of(model, [task]) for task in problem.tasks).backward())

    ours = make_adapted(problem, method)
    return {
        BOUND: lambda: bound(problem, [pixels] * len(problem.tasks)),
        BOUND_TOGETHER: lambda: bound(problem, [pixels.repeat(len(problem.tasks), 1, 1, 1)]),
        method: lambda: train(ours),
        method + TOGETHER: lambda: train(ours, len(problem.tasks)),
        method + IN_TURN: lambda: train(ours, 1),
        method + PER_TASK: lambda: train_per_task(ours),
        PLAIN: lambda: train_plainly(make_adapted(problem, method, papers_decoders=True)),
        LORA: lambda: train(make_lora(problem, papers_decoders=True)),
        LORA_PER_TASK: lambda: train_per_task(make_lora(problem, papers_decoders=True)),
        LORA_OURS: lambda: train(make_lora(problem, papers_decoders=False)),
        FULL: lambda: train(make_dense(problem, papers_decoders=True)),
        FULL_OURS: lambda: train(make_dense(problem)),
        method + GENERATION: lambda: generate(ours, problem),
        VMT: lambda: train(make_adapted(problem, VMT)),
        VMT_ENCODER: lambda: encode(make_adapted(problem, VMT), pixels, problem.tasks),
        VMT_ENCODER_ONE: lambda: encode(make_adapted(problem, VMT), pixels, problem.tasks[:1]),
    }


def bound(problem: Problem, batches: list[Tensor]) -> Contestant:
    """A lower bound of every step: the frozen encoder on each batch, with gradients from its maps to block 1."""
    encoder = make_dense(problem).encoder.requires_grad_(False).train()
    first_block = encoder.get_submodule(find_blocks(encoder)[0].name)
    with torch.no_grad():
        gradients = [torch.ones_like(stage_map) for stage_map in encoder(batches[0])]
    start = torch.zeros((), device=problem.device, dtype=problem.dtype, requires_grad=True)

    def start_gradient(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return args[0] + start, *args[1:]  # `requires_grad_` would break the graph of torch.compile

    first_block.register_forward_pre_hook(start_gradient)

    def step() -> None:
        for pixels in batches:
            torch.autograd.backward(encoder(pixels), gradients)

    return Contestant(step, encoder)


def make_contestant(model: nn.Module, backward: Step) -> Contestant:
    """A step in training mode that computes gradients and clears them."""
    model.train()

    def step() -> None:
        backward()
        model.zero_grad()

    return Contestant(step, model)


def generate(model: nn.Module, problem: Problem) -> Contestant:
    """Generation of all adapter weights, and the gradient from the weights to the generator's parameters."""
    adapters = model.base_model.router
    gradients = []

    def backward() -> None:
        sites = adapters.weights_of(["default"], tasks=problem.tasks)
        weights = [tensor for parts in sites.values() for part, _ in parts for tensor in part if tensor.requires_grad]
        if not gradients:  # in the first step, which warms up
            gradients.extend(map(torch.ones_like, weights))
        torch.autograd.backward(weights, gradients)

    return make_contestant(model, backward)


def encode(model: nn.Module, pixels: Tensor, tasks: list[str]) -> Contestant:
    """The adapted encoder alone, forward and backward."""
    encoder = model.base_model.model.encoder

    def backward() -> None:
        maps = [stage_map for of_task in encoder(pixels, tasks=tasks).values() for stage_map in of_task]
        torch.autograd.backward(maps, [torch.ones_like(stage_map) for stage_map in maps])

    return make_contestant(model, backward)


def make_references(method: str) -> References:
    return {
        "seconds to the frozen encoder": Reference("seconds", (BOUND, BOUND_TOGETHER)),
        f"seconds to {LORA_OURS}": Reference("seconds", (LORA_OURS,)),
        f"seconds to {FULL_OURS}": Reference("seconds", (FULL_OURS,)),
        f"seconds to {LORA}": Reference("seconds", (LORA,)),
        f"seconds to {FULL}": Reference("seconds", (FULL,)),
        f"seconds to {method}": Reference("seconds", (method,)),
        f"operations to {method}{IN_TURN}": Reference("operations", (method + IN_TURN,)),
        f"saved MB to {PLAIN}": Reference("saved_bytes", (PLAIN,)),
        f"peak MB to {method}{TOGETHER}": Reference("peak_bytes", (method + TOGETHER,)),
        f"peak MB to {LORA_PER_TASK}": Reference("peak_bytes", (LORA_PER_TASK,)),
    }


def choose_compiled(method: str) -> tuple[str, ...]:
    return BOUND, method, FULL_OURS, LORA_OURS  # the one that compiles longest comes last


BENCHMARK = Benchmark("benchmark_training", __doc__, training_steps, make_references, choose_compiled)


def main(arguments: list[str]) -> None:
    run_benchmark(BENCHMARK, arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
