# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Half precision trains to the scores of float32."""

import pytest
import torch
import train_pascal
from accelerate.state import AcceleratorState


@pytest.fixture
def recipe(monkeypatch):
    """The recipe with an accelerator that scales gradients in fp16 on a processor, as it does on a GPU."""

    class Accelerator(train_pascal.Accelerator):
        def __init__(self, **settings):
            AcceleratorState._reset_state()  # which would keep to the precision of the run before
            super().__init__(**settings)
            if self.mixed_precision == "fp16":
                # A scale that is found already: steps that are skipped for it are too many among these few.
                self.scaler, self.native_amp = torch.amp.GradScaler("cpu", init_scale=2.0**10), True

    monkeypatch.setattr(train_pascal, "Accelerator", Accelerator)
    yield train_pascal
    AcceleratorState._reset_state()


@pytest.mark.slow
def test_half_precisions_train_to_the_same_losses(recipe, settings_of, tmp_path, monkeypatch):
    """The means of the last 20 of 60 steps, at a rate where rounding changes little; scores are noise so early."""
    losses = {}
    for precision in ("no", "bf16", "fp16"):
        found = losses[precision] = {}
        monkeypatch.setattr(recipe.Accelerator, "log", lambda self, values, step, found=found: found.update(values))
        rates = "--learning_rate 3e-4 --decoder_learning_rate 3e-4"
        more = f"--steps 60 --eval_every 60 --log_every 20 {rates} --mixed_precision {precision}".split()
        recipe.train("polyhistor_lite", settings_of(tmp_path / precision, *more))
        losses[precision] = {name: value for name, value in found.items() if name.startswith("loss/")}
    assert losses["bf16"] == pytest.approx(losses["no"], rel=0.02)
    assert losses["fp16"] == pytest.approx(losses["no"], rel=0.02)
