# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""What the two benchmarks share: their settings, the table with its goals, and what they write."""

import json
import platform
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
import transformers
from contestants import Problem, registered
from encoders import ENCODERS
from line_plot import draw_lines
from measurement import measure_cost, measure_times
from settings import option
from steps import Contestant
from transformers import HfArgumentParser

from peft_polyhistor import METHODS
from peft_polyhistor.config import BottleneckConfig
from peft_polyhistor.studies.tables import align


GOALS_ARE_FOR = ("Swin-T", 4)  # encoder and number of tasks
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass
class BenchmarkSettings:
    """Settings of a benchmark.

    Raises:
        ValueError: A setting is not among the allowed ones.
    """

    encoder: str = option("Swin-T", f"one of {list(ENCODERS)}; weights are random")
    method: str = option("polyhistor_lite", "a method of bottleneck adapters with a pass of the encoder per task")
    tasks: list[int] = option([4], "numbers of tasks; beyond four, those of PASCAL-Context over again")
    image_sizes: list[int] = option([224, 512], "sides of the pictures, pixels")
    batch_size: int = option(1, "pictures")
    decoder_width: int = option(256, "channels inside the decoders")
    dtype: str = option("float32", f"one of {list(DTYPES)}")
    device: str = option("", "as PyTorch names it; empty: the accelerator if there is one, else the processor")
    rounds: int = option(5, "times that every step is timed")
    threads: int = option(1, "of the processor")
    compile: bool = option(False, "compile every model before it is timed; what is counted is not compiled")
    output_dir: str = option("", "where results go; empty: runs/ and the name of the benchmark")

    def __post_init__(self):
        allowed = {"encoder": list(ENCODERS), "dtype": list(DTYPES), "method": _methods()}
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise ValueError(f"`{name}` must be one of {values}, got {getattr(self, name)!r}.")
        for name in ("tasks", "image_sizes", "batch_size", "decoder_width", "rounds", "threads"):
            values = getattr(self, name)
            for value in values if isinstance(values, list) else [values]:
                if value < (32 if name == "image_sizes" else 1):
                    raise ValueError(f"`{name}` must be at least {32 if name == 'image_sizes' else 1}, got {value}.")
        if not self.device:
            self.device = str(torch.accelerator.current_accelerator(check_available=True) or "cpu")


class Goal(NamedTuple):
    """A ratio that is to be reached: of a figure of one step to that of another."""

    text: str
    figure: str  # "seconds", or a field of Cost
    step: str
    references: tuple[str, ...]  # the one with the least counts
    limit: float


def _methods() -> list[str]:
    """Those that can be baked."""
    return [
        name for name, config in METHODS.items() if issubclass(config, BottleneckConfig) and not config.shares_pass
    ]


def run_benchmark(
    name: str,
    document: str,
    make: Callable[[Problem, str], dict[str, Contestant]],
    reference: str,
    make_goals: Callable[[str], list[Goal]],
    arguments: list[str],
) -> list[dict]:
    """Measures everything that the settings ask for, prints it, and writes it as JSON and as a plot.

    Args:
        name: Of the benchmark.
        document: What it is, for `--help`.
        make: Makes the contestants by name.
        reference: The one that the others are compared with.
        make_goals: Goals for a method.
        arguments: Of the command line.
    """
    parser = HfArgumentParser(BenchmarkSettings, description=document)
    [settings] = parser.parse_args_into_dataclasses(arguments)
    torch.set_num_threads(settings.threads)
    results = []
    for image_size in settings.image_sizes:
        for count in settings.tasks:
            with registered(count) as tasks:
                problem = Problem(
                    settings.encoder,
                    tasks,
                    image_size,
                    settings.batch_size,
                    settings.decoder_width,
                    torch.device(settings.device),
                    DTYPES[settings.dtype],
                )
                figures = measure(make(problem, settings.method), settings)
            result = {"image_size": image_size, "tasks": count, "figures": figures}
            is_at_goals = (settings.encoder, count) == GOALS_ARE_FOR
            result["goals"] = [judge(goal, figures) for goal in make_goals(settings.method) if is_at_goals]
            print_result(result, reference)
            results.append(result)
    write(name, settings, results)
    return results


def measure(contestants: Mapping[str, Contestant], settings: BenchmarkSettings) -> dict[str, dict]:
    """Figures of every contestant: those of `Cost`, `seconds` in the median, and `range` of these."""
    device = torch.device(settings.device)
    costs = {name: measure_cost(step, model, device) for name, (step, model) in contestants.items()}
    if settings.compile:
        for model in {id(model): model for _, model in contestants.values()}.values():
            model.compile()
    times = measure_times({name: step for name, (step, _) in contestants.items()}, settings.rounds, device)
    return {
        name: {"seconds": median(taken), "range": [min(taken), max(taken)], **asdict(costs[name])}
        for name, taken in times.items()
    }


def judge(goal: Goal, figures: Mapping[str, dict]) -> dict:
    """A goal with the ratio that was measured."""
    ratio = figures[goal.step][goal.figure] / min(figures[name][goal.figure] for name in goal.references)
    return {**goal._asdict(), "ratio": ratio, "reached": ratio <= goal.limit}


def print_result(result: Mapping, reference: str) -> None:
    print(f"\n{result['image_size']} px, tasks: {result['tasks']}")
    rows = [["", "seconds", "range", "ratio", "GFLOP", "operations", "saved MB", "peak MB"]]
    unit = result["figures"][reference]["seconds"]
    for name, figures in result["figures"].items():
        low, high = figures["range"]
        times = [f"{figures['seconds']:.3f}", f"{low:.3f}-{high:.3f}", f"{figures['seconds'] / unit:.2f}"]
        sizes = [f"{figures['saved_bytes'] / 1e6:.0f}", f"{figures['peak_bytes'] / 1e6:.0f}"]
        rows.append([name, *times, f"{figures['flops'] / 1e9:.1f}", str(figures["operations"]), *sizes])
    print(align(rows, left=(0,)))
    print(f"seconds: on a processor those of all its threads; ratio: of seconds, to '{reference}'")
    for goal in result["goals"]:
        verdict = "reached" if goal["reached"] else "MISSED"
        print(f"{goal['ratio']:.3f}, goal {goal['limit']:.2f}: {verdict}. {goal['text']}")


def write(name: str, settings: BenchmarkSettings, results: list[dict]) -> None:
    folder = Path(settings.output_dir or f"runs/{name}")
    folder.mkdir(parents=True, exist_ok=True)
    machine = {
        "device": torch.cuda.get_device_name(settings.device)
        if settings.device.startswith("cuda")
        else platform.machine(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    report = {"settings": asdict(settings), "machine": machine, "results": results}
    (folder / f"{name}.json").write_text(json.dumps(report, indent=2))
    lines: dict[str, list[tuple[float, float]]] = {}
    for result in results:
        for step, figures in result["figures"].items():
            line = lines.setdefault(f"{step}, {result['image_size']} px", [])
            line.append((result["tasks"], figures["seconds"]))
    draw_lines(lines, "tasks", "seconds").save(folder / f"{name}.png")
    print(f"\nAll of it is in {folder}.", file=sys.stderr)
