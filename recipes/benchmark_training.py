# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Time, memory and operations of a training step of several tasks, against references in the same run.

    python recipes/benchmark_training.py                                       # Swin-T, 4 tasks, 224 and 512 px
    python recipes/benchmark_training.py --tasks 1 2 4 8 16 --image_sizes 224  # over the number of tasks

A step is forward and backward, without an optimiser, on random pictures and labels. Steps take turns, so that what
slows the machine down slows them all down; on a processor the time is that of the process, summed over its threads.
What can be counted is counted exactly. Prints a table with the goals, and writes benchmark_training.json and .png.
"""

import sys

from benchmark import Goal, run_benchmark
from steps import (
    BOUND,
    BOUND_TOGETHER,
    FULL,
    GENERATION,
    IN_TURN,
    LORA,
    LORA_OURS,
    LORA_PER_TASK,
    PER_TASK,
    PLAIN,
    TOGETHER,
    VMT,
    VMT_ENCODER,
    VMT_ENCODER_ONE,
    training_steps,
)


def make_goals(method: str) -> list[Goal]:
    together, in_turn, per_task = method + TOGETHER, method + IN_TURN, method + PER_TASK
    styles = (together, in_turn)
    return [
        Goal("operations, all tasks in a batch against in turn", "operations", together, (in_turn,), 0.33),
        Goal("bytes saved for the backward pass, against the plain plugin", "saved_bytes", method, (PLAIN,), 0.60),
        Goal(
            "peak memory, a backward pass per task, against PEFT LoRA with one",
            "peak_bytes",
            per_task,
            (LORA_PER_TASK,),
            0.75,
        ),
        Goal(
            "peak memory, a backward pass per task, against all tasks in a batch",
            "peak_bytes",
            per_task,
            (together,),
            0.38,
        ),
        Goal(
            "time against the encoder's passes alone, the faster way", "seconds", method, (BOUND, BOUND_TOGETHER), 1.08
        ),
        Goal("time against PEFT LoRA, the paper's decoders", "seconds", method, (LORA,), 0.65),
        Goal("time against PEFT LoRA with our decoders", "seconds", method, (LORA_OURS,), 0.90),
        Goal("time, the chosen tasks per pass against the faster of the others", "seconds", method, styles, 1.03),
        Goal("time of the generation, share of a step (of 512 px)", "seconds", method + GENERATION, (method,), 0.012),
        Goal("time, VMT-Adapter's encoder, 4 tasks against 1", "seconds", VMT_ENCODER, (VMT_ENCODER_ONE,), 1.10),
        Goal("time, VMT-Adapter against full fine-tuning with the paper's decoders", "seconds", VMT, (FULL,), 0.80),
    ]


def main(arguments: list[str]) -> None:
    run_benchmark("benchmark_training", __doc__, training_steps, BOUND, make_goals, arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
