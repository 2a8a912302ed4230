# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Meters of a step: floating-point operations, calls of operators, bytes and seconds."""

import json
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from functools import partial
from itertools import accumulate
from pathlib import Path

import torch
from problem import Contestant, Step
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode


aten = torch.ops.aten
# Operators that only allocate memory or return a view, besides those that PyTorch marks as views.
FREE = (aten._unsafe_view, aten.empty, aten.new_empty, aten.empty_like, aten.empty_strided, aten.new_empty_strided)
SIDE_ON_CPU, SIDE_ON_ACCELERATOR = 2048, 8192  # rows of matrices that are large enough for the device's best rate


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


def multiply(device: torch.device, dtype: torch.dtype) -> Contestant:
    """A product of two large square matrices, whose rate is the peak that the shares of other steps refer to."""
    side = SIDE_ON_CPU if device.type == "cpu" else SIDE_ON_ACCELERATOR
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return Contestant(partial(torch.mm, left, right), nn.Module())


def measure_cost(contestant: Contestant, is_compiled: bool, device: torch.device) -> dict[str, int]:
    """Counts the operations and the memory of a step; compiles its model if `is_compiled`.

    A compiled step has the FLOPs and the peak memory alone: its operators are fused, and it saves other tensors.
    """
    step, model = contestant
    step()  # warms up
    with FlopCounterMode(display=False) as flops, OperationCounter() as operations:
        step()
    cost = {"flops": flops.get_total_flops()}  # matrix products, convolutions and attention
    if is_compiled:
        for part in model if isinstance(model, nn.ModuleList) else [model]:
            part.compile()
        # Beyond the limit, torch.compile would run the step uncompiled, with a warning.
        with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
            step()
            return cost | {"peak_bytes": measure_peak(step, device)}
    saved = SavedBytes([*model.parameters(), *model.buffers()])
    with saved:
        step()
    return {
        **cost,
        "operations": operations.calls,
        "saved_bytes": saved.peak,  # tensors kept for the backward pass
        "peak_bytes": measure_peak(step, device),
    }


def measure_peak(step: Step, device: torch.device) -> int:
    """Measures the peak memory of a step in bytes, above the memory in use before it."""
    if device.type != "cpu":
        memory = torch.get_device_module(device)
        memory.reset_peak_memory_stats(device)
        before = memory.memory_allocated(device)
        step()
        return memory.max_memory_allocated(device) - before
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
