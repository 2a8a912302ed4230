# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Many tasks, and the largest encoder."""

import gc
import re
import time
from ctypes import CDLL
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from torch.utils.flop_counter import FlopCounterMode

from peft_polyhistor import PolyhistorLiteConfig
from peft_polyhistor.evaluation import count_trainable
from peft_polyhistor.tuner.passes import choose_tasks_per_pass


def train_step(model, pixels, labels):
    """Seconds of a processor and the output of a step with Adam."""
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    start = time.process_time()
    output = model(pixels, labels, full_resolution=False)
    output.loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    assert output.loss.isfinite()
    return time.process_time() - start, output


def test_64_tasks_train_and_predict(contestants, make_problem, make_swin, make_dense):
    with contestants.registered(64) as tasks:
        problem = make_problem(tasks, image_size=96, batch_size=1)
        pixels, labels = problem.images(), problem.labels()
        assert choose_tasks_per_pass(pixels, len(tasks)) == 32
        dense = make_dense(tasks, make_swin(depths=[1, 1, 1, 1]), decoder_width=4)
        model = get_peft_model(dense, PolyhistorLiteConfig(tasks=tasks)).train()
        [embeddings] = [p for name, p in model.named_parameters() if name.endswith("task_embedding")]
        before = embeddings.detach().clone()
        for _ in range(2):  # in the first, adapters that start as the identity leave the embeddings no gradient
            _, output = train_step(model, pixels, labels)
        assert list(output.losses) == tasks
        assert (embeddings != before).any(dim=1).all()
        with torch.no_grad():
            logits = model.eval()(pixels, tasks=tasks[-2:]).logits
        assert list(logits) == tasks[-2:] and all(tensor.isfinite().all() for tensor in logits.values())


@pytest.mark.slow
def test_parameters_and_work_grow_with_the_tasks_and_no_faster(contestants, make_problem):
    """From 4 to 64 tasks, Polyhistor-Lite's parameters and, but for the generation, FLOPs lie exactly on a line."""
    parameters, flops = {}, {}
    for count in (4, 16, 28, 64):
        with contestants.registered(count) as tasks:
            problem = make_problem(tasks, image_size=128, batch_size=1, decoder_width=64)
            pixels, labels = problem.images(), problem.labels()
            model = contestants.make_adapted(problem, "polyhistor_lite").train()
            parameters[count] = count_trainable(model)["all"]
            train_step(model, pixels, labels)
            seconds, _ = train_step(model, pixels, labels)
            with FlopCounterMode(display=False) as counter:
                train_step(model, pixels, labels)
            flops[count] = counter.get_total_flops()
        print(f"{count} tasks: {parameters[count]:,} trainable, {seconds:.2f} s, {flops[count] / 1e9:.1f} GFLOP")
    for figures in (parameters, flops):
        assert figures[28] - figures[16] == figures[16] - figures[4]
        assert figures[64] - figures[28] == 3 * (figures[28] - figures[16])


def bytes_of_status(name):
    return 1024 * int(re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


@pytest.fixture
def resident_peak():
    """`resident_peak()`: bytes in memory at the most since the test began, above those at its begin; Linux."""
    gc.collect()
    CDLL("libc.so.6").malloc_trim(0)  # what earlier tests had would hide what this one takes
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = bytes_of_status("VmRSS")
    return lambda: bytes_of_status("VmHWM") - before


SWIN_L = [(192 * 2**stage, 2**stage) for stage, depth in enumerate((2, 2, 18, 2)) for _ in range(depth)]


def polyhistor(width, scale):
    n, r = width // 16, max(1, width // 16 // 4)
    return 74_048 + 65 * (2 * r * (width + n) + n + 3 * width)


def hyperformer(width, scale):
    n = width // 16
    return 73_920 + 65 * (2 * width * n + n + 3 * width)


def polyhistor_lite(width, scale):
    return 512 * scale + (scale**3 + 2 * scale**2 if scale > 1 else 0)


def vmt_adapter(width, scale):
    n = width // 4
    return 2 * width * n + n + 3 * width + 2 * n * 4


# Embeddings of four tasks; and the one hypernetwork of Polyhistor-Lite, of width 192, bottleneck 96 and rank 24.
EMBEDDINGS = 4 * 512
HYPERNETWORK = 1024 * 128 + 128 + 128 * 64 + 64 + 2 * 64 + 65 * (2 * 24 * (192 + 96) + 96 + 3 * 192)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "per_layer", "shared"),
    [
        ("polyhistor", polyhistor, EMBEDDINGS),
        ("polyhistor_lite", polyhistor_lite, EMBEDDINGS + HYPERNETWORK),
        ("hyperformer", hyperformer, EMBEDDINGS),
        ("vmt_adapter", vmt_adapter, 0),
    ],
)
def test_swin_l_trains(contestants, make_problem, resident_peak, method, per_layer, shared):
    sizes = {"encoder": "Swin-L", "image_size": 224, "batch_size": 1, "decoder_width": 256}
    problem = make_problem(list(contestants.PASCAL_TASKS), **sizes)
    model = contestants.make_adapted(problem, method).train()
    parameters = count_trainable(model)
    assert parameters["encoder"] == shared + sum(per_layer(*layer) for layer in SWIN_L)
    seconds, _ = train_step(model, problem.images(), problem.labels())
    print(f"{method}: {parameters} trainable, {seconds:.1f} s, {resident_peak() / 1e9:.2f} GB at the most")
