# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Measures the steps of a benchmark, and writes its table, goals and figure."""

import argparse
import json
import platform
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
import transformers
from problem import CAN_BAKE, ENCODERS, Contestant, Problem, Step, registered
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from peft_polyhistor.studies.figures import draw_lines, save_svg
from peft_polyhistor.studies.tables import align


GOALS_ARE_FOR = ("Swin-T", 4)  # encoder and number of tasks
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


aten = torch.ops.aten
# Operators that only allocate memory or return a view, besides those that PyTorch marks as views.
FREE = (aten._unsafe_view, aten.empty, aten.new_empty, aten.empty_like, aten.empty_strided, aten.new_empty_strided)


class OperationCounter(TorchDispatchMode):
    """Counts the calls of operators that compute or copy; views and allocations do not count."""

    calls = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls += not (function.is_view or function.overloadpacket in FREE)
        return function(*args, **(kwargs or {}))


class SavedBytes(torch.autograd.graph.saved_tensors_hooks):
    """Measures the peak of the bytes that autograd keeps; each storage counts once, and storages of `own` do not."""

    def __init__(self, own: list[Tensor]):
        self.peak = self._total = 0
        self._own = {tensor.untyped_storage().data_ptr() for tensor in own}
        self._times_held = Counter()  # by address of the storage
        super().__init__(partial(Held, self), lambda held: held.tensor)

    def hold(self, tensor: Tensor, times: int) -> None:
        storage = tensor.untyped_storage()
        address = storage.data_ptr()
        if address in self._own:
            return
        before = self._times_held[address]
        self._times_held[address] += times
        if not before or not self._times_held[address]:
            self._total += times * storage.nbytes()
            self.peak = max(self.peak, self._total)


class Held:
    """A saved tensor, which informs its counter when autograd releases it."""

    def __init__(self, counter: SavedBytes, tensor: Tensor):
        self.tensor, self._counter = tensor, counter
        counter.hold(tensor, 1)

    def __del__(self):
        self._counter.hold(self.tensor, -1)


def measure_cost(step: Step, model: nn.Module, device: torch.device) -> dict[str, int]:
    """Counts the operations and the memory of a step. The step runs four times, the first time to warm up."""
    step()
    with FlopCounterMode(display=False) as flops, OperationCounter() as operations:
        step()
    saved = SavedBytes([*model.parameters(), *model.buffers()])
    with saved:
        step()
    return {
        "flops": flops.get_total_flops(),  # matrix products, convolutions and attention
        "operations": operations.calls,
        "saved_bytes": saved.peak,  # tensors kept for the backward pass
        "peak_bytes": measure_peak(step, device),
    }


def measure_peak(step: Step, device: torch.device) -> int:
    """Measures the peak memory of a step in bytes, above the memory in use before it."""
    if device.type != "cpu":
        before = torch.accelerator.memory_allocated(device)
        torch.accelerator.reset_peak_memory_stats(device)
        step()
        return torch.accelerator.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = [event for event in json.loads(trace.read_text())["traceEvents"] if event["name"] == "[memory]"]
    events.sort(key=lambda event: event["args"]["Ev Idx"])
    return max(accumulate(event["args"]["Bytes"] for event in events), default=0)


def measure_times(steps: Mapping[str, Step], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Measures the seconds of every step once per round, so that other load on the machine affects all steps alike.

    The order of the steps alternates; the first round warms up. On a CPU, process time is measured, summed over all
    threads, which excludes other processes.
    """
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    wait = (lambda: None) if device.type == "cpu" else partial(torch.accelerator.synchronize, device)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 1):
        for name in steps if turn % 2 else reversed(steps):
            wait()
            start = clock()
            steps[name]()
            wait()
            times[name] += [clock() - start] if turn else []
    return times


class Goal(NamedTuple):
    """An upper limit for the ratio of a figure of one step to that of a reference."""

    text: str
    figure: str  # "seconds", or a figure of `measure_cost`
    step: str
    references: tuple[str, ...]  # the reference with the lowest figure is used
    limit: float

    def judge(self, figures: Mapping[str, dict]) -> dict:
        """Returns the goal with the measured ratio."""
        least = min(figures[name][self.figure] for name in self.references)
        ratio = figures[self.step][self.figure] / least
        return {**self._asdict(), "ratio": ratio, "reached": ratio <= self.limit}


def positive(text: str) -> int:
    """Parses an integer above 0; argparse turns the ValueError into a message."""
    if int(text) < 1:
        raise ValueError
    return int(text)


def parse_options(name: str, document: str, arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=document, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="Swin-T", choices=ENCODERS, help="Encoder, with random weights.")
    parser.add_argument("--method", default="polyhistor_lite", choices=CAN_BAKE, help="Adapter method.")
    parser.add_argument("--tasks", default=[4], type=positive, nargs="+", help="Numbers of tasks.")
    parser.add_argument("--image_sizes", default=[224, 512], type=positive, nargs="+", help="Sides in pixels.")
    parser.add_argument("--batch_size", default=1, type=positive, help="Images per step.")
    parser.add_argument("--decoder_width", default=256, type=positive, help="Channels inside the decoders.")
    parser.add_argument("--dtype", default="float32", choices=DTYPES, help="Precision of models and images.")
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    parser.add_argument("--device", default=str(accelerator or "cpu"), help="PyTorch device.")
    parser.add_argument("--rounds", default=5, type=positive, help="Number of timed runs of every step.")
    parser.add_argument("--threads", default=1, type=positive, help="Number of CPU threads.")
    parser.add_argument("--compile", action="store_true", help="Compile every model before its steps are timed.")
    parser.add_argument("--output_dir", default=f"runs/{name}", type=Path, help="Output folder.")
    options = parser.parse_args(arguments)
    if min(options.image_sizes) < 32:
        parser.error(
            f"--image_sizes: must be at least 32, the largest stride of the encoders, got {options.image_sizes}"
        )
    return options


def run_benchmark(
    name: str,
    document: str,
    make: Callable[[Problem, str], dict[str, Contestant]],
    reference: str,
    make_goals: Callable[[str], list[Goal]],
    arguments: Sequence[str],
) -> list[dict]:
    """Runs a benchmark from its command line, prints the figures relative to `reference`, and writes JSON and SVG."""
    options = parse_options(name, document, arguments)
    torch.set_num_threads(options.threads)
    device, results = torch.device(options.device), []
    for image_size in options.image_sizes:
        for count in options.tasks:
            with registered(count) as tasks:
                sizes = (image_size, options.batch_size, options.decoder_width)
                problem = Problem(options.encoder, tasks, *sizes, device, DTYPES[options.dtype])
                figures = measure(make(problem, options.method), options.rounds, device, options.compile)
            goals = make_goals(options.method) if (options.encoder, count) == GOALS_ARE_FOR else []
            judged = [goal.judge(figures) for goal in goals]
            results.append({"image_size": image_size, "tasks": count, "figures": figures, "goals": judged})
            print_result(results[-1], reference)
    write(name, options, results)
    return results


def measure(
    contestants: Mapping[str, Contestant], rounds: int, device: torch.device, compiles: bool = False
) -> dict[str, dict]:
    """Measures every contestant: the figures of `measure_cost`, and the median and range of its seconds."""
    costs = {name: measure_cost(step, model, device) for name, (step, model) in contestants.items()}
    if compiles:
        for model in {id(model): model for _, model in contestants.values()}.values():
            model.compile()
    times = measure_times({name: step for name, (step, _) in contestants.items()}, rounds, device)
    return {
        name: {"seconds": median(taken), "range": [min(taken), max(taken)], **costs[name]}
        for name, taken in times.items()
    }


def print_result(result: Mapping, reference: str) -> None:
    print(f"\n{result['image_size']} px, tasks: {result['tasks']}")
    rows = [["", "seconds", "range", "ratio", "GFLOP", "operations", "saved MB", "peak MB"]]
    unit = result["figures"][reference]["seconds"]
    for name, figures in result["figures"].items():
        low, high = figures["range"]
        times = [f"{figures['seconds']:.3f}", f"{low:.3f}-{high:.3f}", f"{figures['seconds'] / unit:.2f}"]
        sizes = [f"{figures[key] / 1e6:.0f}" for key in ("saved_bytes", "peak_bytes")]
        rows.append([name, *times, f"{figures['flops'] / 1e9:.1f}", str(figures["operations"]), *sizes])
    print(align(rows))
    print(f"seconds: on a CPU, summed over all threads; ratio: seconds relative to '{reference}'")
    for goal in result["goals"]:
        verdict = "reached" if goal["reached"] else "MISSED"
        print(f"{goal['ratio']:.3f}, goal {goal['limit']:.2f}: {verdict}. {goal['text']}")


def write(name: str, options: argparse.Namespace, results: list[dict]) -> None:
    is_cuda = options.device.startswith("cuda")
    device = torch.cuda.get_device_name(options.device) if is_cuda else platform.machine()
    machine = {"device": device, "torch": torch.__version__, "transformers": transformers.__version__}
    folder = options.output_dir
    folder.mkdir(parents=True, exist_ok=True)
    report = {"settings": vars(options), "machine": machine, "results": results}
    (folder / f"{name}.json").write_text(json.dumps(report, indent=2, default=str))
    lines: dict[str, list[tuple[float, float]]] = {}
    for result in results:
        for step, figures in result["figures"].items():
            name_of_line = f"{step}, {result['image_size']} px"
            lines.setdefault(name_of_line, []).append((result["tasks"], figures["seconds"]))
    save_svg(draw_lines(lines, "tasks", "seconds"), f"Seconds by tasks of {', '.join(lines)}", folder / f"{name}.svg")
    print(f"\nWrote {folder / name}.json and .svg.")
