# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""What a step costs: time, taken in turns with the steps it is compared with, and what can be counted exactly."""

import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode


Step = Callable[[], Any]


@dataclass
class Cost:
    """What a step takes, but for time.

    Args:
        flops: Floating-point operations of matrix products, convolutions and attention.
        operations: Calls of PyTorch's operators, but for views and fresh memory.
        saved_bytes: Kept for the backward pass at once at the most, the parameters of the model left out.
        peak_bytes: Memory at the most, above what was there before the step.
    """

    flops: int
    operations: int
    saved_bytes: int
    peak_bytes: int


aten = torch.ops.aten
FREE = (aten._unsafe_view, aten.empty, aten.new_empty, aten.empty_like, aten.empty_strided, aten.new_empty_strided)


class OperationCounter(TorchDispatchMode):
    """Counts the calls of operators that compute or copy, which views and fresh memory do not."""

    calls = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls += not (function.is_view or function.overloadpacket in FREE)
        return function(*args, **(kwargs or {}))


class SavedBytes(torch.autograd.graph.saved_tensors_hooks):
    """Counts the bytes that autograd keeps, each storage once.

    Args:
        own: Tensors that are there anyway.
    """

    def __init__(self, own: list[torch.Tensor]):
        self.peak = self._total = 0
        self._own = {tensor.untyped_storage().data_ptr() for tensor in own}
        self._times_held = Counter()  # by address
        super().__init__(self._pack, lambda held: held.tensor)

    def _pack(self, tensor: torch.Tensor) -> "Held":
        return Held(tensor, self)

    def hold(self, tensor: torch.Tensor, times: int) -> None:
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
    """A saved tensor, which tells its counter when it is let go of."""

    def __init__(self, tensor: torch.Tensor, counter: SavedBytes):
        self.tensor, self._counter = tensor, counter
        counter.hold(tensor, 1)

    def __del__(self):
        self._counter.hold(self.tensor, -1)


def measure_cost(step: Step, model: torch.nn.Module, device: torch.device) -> Cost:
    """The cost of a step of a model; the step runs four times, the first to warm up."""
    step()
    with FlopCounterMode(display=False) as flops, OperationCounter() as operations:
        step()
    saved = SavedBytes([*model.parameters(), *model.buffers()])
    with saved:
        step()
    return Cost(flops.get_total_flops(), operations.calls, saved.peak, measure_peak(step, device))


def measure_peak(step: Step, device: torch.device) -> int:
    """Bytes that a step takes at the most, above those taken before it."""
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
    """Seconds of every step, once a round: what slows the machine down for a while slows all of them down.

    The order turns around from round to round, after a first one that does not count. On a processor it is the time
    that the process was given, summed over its threads: other work on the machine does not count.
    """
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    times = {name: [] for name in steps}
    for turn in range(rounds + 1):
        for name in steps if turn % 2 else reversed(steps):
            synchronize(device)
            start = clock()
            steps[name]()
            synchronize(device)
            if turn:
                times[name].append(clock() - start)
    return times


def synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
