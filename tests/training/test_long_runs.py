# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""A long run holds no more memory in its end than near its start."""

import gc
import re
from pathlib import Path

import pytest
import train_pascal as recipe

from peft_polyhistor.training import RunFolder


STEPS, EVERY = 1000, 100
NOISE = 4e6  # bytes; what an allocator keeps differs from moment to moment


def count_containers(value):
    """The dicts and lists in a nest of them."""
    if not isinstance(value, dict | list):
        return 0
    return 1 + sum(map(count_containers, value.values() if isinstance(value, dict) else value))


@pytest.mark.slow
def test_1000_steps_hold_no_more_memory_than_100(settings_of, tmp_path, monkeypatch):
    """With everything that a run does: losses, evaluations, checkpoints, a tracker, epochs, and workers that load."""
    save, seen = RunFolder.save, {}

    def save_and_measure(run, model, progress):
        save(run, model, progress)
        if progress.step % EVERY == 0:
            gc.collect()
            record = count_containers([progress.losses, progress.history])  # grows, as results.json has it
            resident = 1024 * int(re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])
            seen[progress.step] = resident, len(gc.get_objects()) - record

    monkeypatch.setattr(RunFolder, "save", save_and_measure)
    settings = f"--steps {STEPS} --eval_every 20 --log_every 10 --workers 1 --tracker tensorboard".split()
    recipe.train("polyhistor_lite", settings_of(tmp_path, *settings))
    assert list(seen) == list(range(EVERY, STEPS + 1, EVERY))
    for step, (resident, objects) in seen.items():
        print(f"step {step}: {resident / 1e6:.1f} MB, {objects} objects beside the record of the run")
    (memory, objects), (memory_in_the_end, objects_in_the_end) = seen[EVERY], seen[STEPS]
    assert memory_in_the_end <= 1.02 * memory + NOISE
    assert objects_in_the_end <= objects + STEPS // 10  # a leak of one object a step would be ten times that
