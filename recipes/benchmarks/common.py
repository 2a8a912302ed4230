# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Runs a benchmark: reads its command line, measures its steps in turn, and reports after every setting."""

import argparse
import math
import signal
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from meters import measure_cost, measure_times, multiply
from problem import CAN_BAKE, ENCODERS, Contestant, Problem, registered
from report import NOTE, PEAK, References, print_result, write_report
from torch._dynamo.exc import FailOnRecompileLimitHit


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
MODES = ("eager", "compiled")
ON_CPU = {
    **{"encoders": ["Swin-T"], "image_sizes": [224, 512], "batch_size": 1, "dtype": "float32"},
    **{"modes": ["eager"], "rounds": 5},
}
# After 4 minutes no step is prepared, so that a run ends within 6.
ON_ACCELERATOR = {
    **{"encoders": ["Swin-T", "Swin-B"], "image_sizes": [512], "batch_size": 12, "dtype": "bfloat16"},
    **{"modes": ["eager", "compiled"], "rounds": 10, "minutes": 4.0},
}
TIME_IS_UP = "the time was up"


class TimeIsUp(BaseException):  # no error: a compiler would catch and wrap an Exception
    """The deadline has passed."""


class Benchmark(NamedTuple):
    """Steps to compare."""

    name: str  # of the files of its report
    document: str  # the help
    make: Callable[[Problem, str], Mapping[str, Callable[[], Contestant]]]  # by name of the step, for a method
    make_references: Callable[[str], References]  # the figures of all steps are given relative to these
    choose_compiled: Callable[[str], Collection[str]]  # names of the steps that are compiled too, which takes minutes


class Setting(NamedTuple):
    """One table of a benchmark."""

    mode: str
    encoder: str
    image_size: int  # pixels
    tasks: int


def positive(text: str) -> int:
    """Parses an integer above 0; argparse turns the ValueError into a message."""
    if int(text) < 1:
        raise ValueError
    return int(text)


def minutes(text: str) -> float:
    if not float(text) > 0:
        raise ValueError
    return float(text)


def device(text: str) -> torch.device:
    try:
        return torch.device(text)
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(error) from error


def parse_options(name: str, document: str, arguments: Sequence[str]) -> argparse.Namespace:
    """Parses the command line; the defaults depend on the device."""
    first = argparse.ArgumentParser(add_help=False)
    best = "cuda" if torch.cuda.is_available() else "cpu"
    first.add_argument("--device", default=best, type=device, help="PyTorch device.")
    is_cpu = first.parse_known_args(arguments)[0].device.type == "cpu"

    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=document, formatter_class=style, parents=[first])
    add = parser.add_argument
    add("--encoders", choices=ENCODERS, nargs="+", help="Encoders, with random weights.")
    add("--method", default="polyhistor_lite", choices=CAN_BAKE, help="Adapter method.")
    add("--tasks", default=[4], type=positive, nargs="+", help="Numbers of tasks.")
    add("--image_sizes", type=positive, nargs="+", help="Sides in pixels.")
    add("--batch_size", type=positive, help="Images per step.")
    add("--decoder_width", default=256, type=positive, help="Channels inside the decoders.")
    add("--dtype", choices=DTYPES, help="Precision of models and images.")
    add("--modes", choices=MODES, nargs="+", help="Steps as they are, and compiled by torch.compile.")
    add("--rounds", type=positive, help="Number of timed runs of every step.")
    add("--threads", default=1, type=positive, help="Number of CPU threads.")
    add("--minutes", type=minutes, help="Time to prepare steps, 4 on a GPU; those that are ready are timed.")
    add("--output_dir", default=f"runs/{name}", type=Path, help="Output folder.")
    parser.set_defaults(**(ON_CPU if is_cpu else ON_ACCELERATOR))
    options = parser.parse_args(arguments)
    if min(options.image_sizes) < 32:
        parser.error(
            f"--image_sizes: must be at least 32, the largest stride of the encoders, got {options.image_sizes}"
        )
    return options


def run_benchmark(benchmark: Benchmark, arguments: Sequence[str]) -> list[dict]:
    """Runs a benchmark from its command line, prints its tables, and writes the files of its report.

    The files are complete after every setting, so a run that breaks off keeps the settings before.

    Raises:
        SystemExit: The device is not available, or a step failed.
    """
    options = parse_options(benchmark.name, benchmark.document, arguments)
    check_available(options.device)
    torch.set_num_threads(options.threads)
    deadline = time.monotonic() + 60 * options.minutes if options.minutes else math.inf
    results: list[dict] = []
    references = benchmark.make_references(options.method)
    print(NOTE)
    for setting in map(Setting._make, product(options.modes, options.encoders, options.image_sizes, options.tasks)):
        results.append(measure_setting(benchmark, setting, options, deadline))
        print_result(results[-1], references)
        write_report(benchmark.name, options, results, references)
    failed = sum(reason != TIME_IS_UP for result in results for reason in result["failures"].values())
    if failed:
        raise SystemExit(f"{failed} steps failed. Their errors are above; the tables hold all others.")
    return results


def check_available(device: torch.device) -> None:
    """Raises SystemExit if the machine lacks the device."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    known = ["cpu", *([accelerator.type] if accelerator else [])]
    if device.type not in known:
        raise SystemExit(f"--device: this machine has {known}, got '{device}'.")


def measure_setting(
    benchmark: Benchmark, setting: Setting, options: argparse.Namespace, deadline: float
) -> dict[str, Any]:
    """Returns the setting with the figures and failures of its steps."""
    is_compiled = setting.mode == "compiled"
    with registered(setting.tasks) as tasks:
        sizes = (setting.image_size, options.batch_size, options.decoder_width)
        problem = Problem(setting.encoder, tasks, *sizes, options.device, DTYPES[options.dtype])
        makers = benchmark.make(problem, options.method)
        if is_compiled:
            makers = {name: makers[name] for name in benchmark.choose_compiled(options.method)}
        figures, failures = measure(makers, problem, options.rounds, is_compiled, deadline)
    return {**setting._asdict(), "figures": figures, "failures": failures}


def measure(
    makers: Mapping[str, Callable[[], Contestant]],
    problem: Problem,
    rounds: int,
    is_compiled: bool = False,
    deadline: float = math.inf,
) -> tuple[dict[str, dict], dict[str, str]]:
    """Measures steps, and the product of two matrices among them.

    Returns the figures of `measure_cost` and the median and range of the seconds by name, and the reasons why others
    have no figures: the deadline on the monotonic clock, no memory, or an error of the compiler.
    """
    torch.compiler.reset()  # graphs of earlier settings count towards the limit of recompilations
    device, contestants, costs, failures = problem.device, {}, {}, {}
    for name, make in {PEAK: lambda: multiply(device, problem.dtype), **makers}.items():
        try:
            with time_limit(deadline):
                contestant = make()
                costs[name] = measure_cost(contestant, is_compiled, device)
                contestants[name] = contestant
        except TimeIsUp:
            failures[name] = TIME_IS_UP
        except (RuntimeError, FailOnRecompileLimitHit) as error:
            traceback.print_exc()
            failures[name] = f"{type(error).__name__}: {error}".partition("\n")[0]
    times = measure_times({name: step for name, (step, _) in contestants.items()}, rounds, device)
    figures = {
        name: {"seconds": median(taken), "range": [min(taken), max(taken)], **costs[name]}
        for name, taken in times.items()
    }
    return figures, failures


@contextmanager
def time_limit(deadline: float) -> Iterator[None]:
    """Breaks the block off with `TimeIsUp` at the deadline on the monotonic clock.

    The block must run in the main thread. Compilation takes minutes and looks at no clock, so an alarm of the system
    interrupts it; a backward pass on an accelerator ends first. Windows has no alarm: there the deadline counts
    before the block alone.
    """

    def stop(*_: object) -> None:
        raise TimeIsUp

    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeIsUp
    if math.isinf(left) or not hasattr(signal, "SIGALRM"):
        yield
        return
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, left)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
