# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Runs of the training recipe that are stopped, and what they leave."""

import pytest
import train_pascal
from safetensors.torch import load_file

from peft_polyhistor.training import parse_settings


class StopError(Exception):
    """Stands for a power cut."""


@pytest.fixture
def settings_of(small_run):
    """`settings_of(output_dir, *more)`: settings of six steps on the small scenes, scored after every third."""

    def parse(output_dir, *more):
        [settings] = parse_settings(
            small_run(output_dir, *more), "", train_pascal.DEFAULT_CONFIG, train_pascal.Settings
        )
        return settings

    return parse


@pytest.fixture
def stop_after(monkeypatch):
    """`stop_after(owner, name, call, run)`: runs, and cuts the power right after the given call of a function."""

    def stop(owner, name, call, run):
        original, calls = getattr(owner, name), []

        def stopping(*arguments, **named):
            result = original(*arguments, **named)
            calls.append(1)
            if len(calls) == call:
                raise StopError
            return result

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, stopping)
            with pytest.raises(StopError):
                run()

    return stop


@pytest.fixture
def assert_same_weights():
    """`assert_same_weights(first, second)`: two runs of Polyhistor-Lite ended with the same weights, bit for bit."""

    def compare(first, second):
        first, second = (load_file(run / "polyhistor_lite/last/adapter_model.safetensors") for run in (first, second))
        assert first.keys() == second.keys()
        assert [name for name in first if not first[name].equal(second[name])] == []

    return compare
