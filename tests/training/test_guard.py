# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Steps with numbers that are wrong are named by task and step, and end the run or are left out without a trace."""

import math
import warnings

import pytest
import torch
import train_pascal as recipe
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from peft_polyhistor.training import StepGuard


TASKS = ["semseg", "normals"]


class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        self.heads = nn.ModuleDict({task: nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1)) for task in TASKS})


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoders = nn.Linear(3, 3), Heads()

    def forward(self, x):
        """Losses `(tasks,)`."""
        return torch.stack([head(self.encoder(x)).square().mean() for head in self.decoders.heads.values()])


@pytest.fixture
def accelerator():
    AcceleratorState._reset_state()
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state()


@pytest.fixture
def guarding(accelerator):
    """`guarding(**options)`: a model and its guard."""

    def make(**options):
        torch.manual_seed(0)
        model = Model()
        model, optimizer = accelerator.prepare(model, torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=0.1))
        return model, StepGuard(model, optimizer, TASKS, accelerator, **options)

    return make


def take_steps(model, guard, numbers, spoil=lambda model, x: None):
    """Steps with these numbers, each on pictures of its own, after `spoil` where the number is below 0."""
    for number in numbers:
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(abs(number)))
        if number < 0:
            spoil(model, x)
        losses = model(x)
        guard.accelerator.backward(losses.sum())
        guard.step(abs(number), losses.detach())


def spoil_picture(model, x):
    x[1, 2] = math.nan


def spoil_gradient_of_a_head(model, x):
    weight = model.decoders.heads["normals"][1].weight
    hook = weight.register_hook(lambda gradient: hook.remove() or gradient * math.inf)


def everything(model, guard):
    return {"model": model.state_dict(), "optimizer": guard.optimizer.state_dict()["state"]}


def test_steps_are_those_of_the_optimiser_on_clipped_gradients(guarding):
    model, guard = guarding(max_grad_norm=0.5)
    expected, _ = guarding()
    optimizer, all_losses, was_clipped = torch.optim.Adam(expected.parameters(), lr=0.01, weight_decay=0.1), [], []
    for number in range(1, 6):
        all_losses.append(expected(torch.randn(4, 3, generator=torch.Generator().manual_seed(number))))
        all_losses[-1].sum().backward()
        was_clipped.append(nn.utils.clip_grad_norm_(expected.parameters(), 0.5) > 0.5)
        optimizer.step()
        optimizer.zero_grad()
    take_steps(model, guard, range(1, 6))
    torch.testing.assert_close(model.state_dict(), expected.state_dict(), rtol=0, atol=1e-6)  # norms of norms round
    assert any(was_clipped)
    means = torch.stack(all_losses).mean(dim=0).tolist()
    assert guard.take_means() == pytest.approx(dict(zip(TASKS, means, strict=True))) and guard.take_means() == {}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            spoil_picture,
            "loss of semseg nan, loss of normals nan, gradient of semseg nan, gradient of normals nan, "
            "gradient of the shared parameters nan",
        ),
        (spoil_gradient_of_a_head, "gradient of normals inf"),
    ],
)
def test_a_run_stops_at_the_next_look_and_names_step_and_tasks(guarding, spoil, message):
    model, guard = guarding()
    take_steps(model, guard, [1, 2, -3, 4], spoil)
    with pytest.raises(FloatingPointError, match=rf"Step 3 is bad: {message}\. Lower --learning_rate.*on_bad_step"):
        guard.take_means()


@pytest.mark.parametrize("spoil", [spoil_picture, spoil_gradient_of_a_head])
def test_a_skipped_step_leaves_no_trace(guarding, spoil):
    model, guard = guarding(on_bad_step="skip", max_grad_norm=1)
    with pytest.warns(RuntimeWarning, match="Step 3 is skipped: .*normals"):
        take_steps(model, guard, [1, 2, -3, 4], spoil)
    expected, without = guarding(max_grad_norm=1)
    take_steps(expected, without, [1, 2, 4])
    torch.testing.assert_close(everything(model, guard), everything(expected, without), rtol=0, atol=0)
    assert guard.take_means() == without.take_means()


def test_many_skipped_steps_in_a_row_end_the_run(guarding):
    model, guard = guarding(on_bad_step="skip")
    with pytest.warns(RuntimeWarning, match="is skipped"):
        take_steps(model, guard, [1, *range(-2, -22, -1), 22, *range(-23, -43, -1)], spoil_picture)
    with (
        pytest.warns(RuntimeWarning, match="Step 43 is skipped"),
        pytest.raises(FloatingPointError, match=r"Steps 23 to 43 were skipped one after the other.*Lower"),
    ):
        take_steps(model, guard, [-43], spoil_picture)


@pytest.fixture
def scaled(accelerator, monkeypatch):
    """The accelerator with what training in fp16 brings on a GPU, and a scale that takes three steps to find."""
    AcceleratorState._reset_state()
    accelerator = Accelerator(cpu=True, mixed_precision="fp16")
    monkeypatch.setattr(accelerator, "scaler", torch.amp.GradScaler("cpu", init_scale=2.0**25, growth_interval=1000))
    monkeypatch.setattr(accelerator, "native_amp", True)
    return accelerator


def test_a_scaler_that_finds_its_scale_is_no_fault(scaled):
    model = Model()
    model, optimizer = scaled.prepare(model, torch.optim.Adam(model.parameters()))
    guard = StepGuard(model, optimizer, TASKS, scaled)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        take_steps(model, guard, range(1, 20))
        guard.take_means()
    assert scaled.scaler.get_scale() < 2.0**22 and optimizer.state_dict()["state"][0]["step"] > 5
    hook = model.encoder.weight.register_hook(lambda gradient: gradient * math.nan)
    take_steps(model, guard, range(20, 40))
    with pytest.raises(FloatingPointError, match="Steps 20 to 40 were skipped"):
        take_steps(model, guard, [40])
    hook.remove()
    take_steps(model, guard, [41, -42], spoil_picture)
    with pytest.raises(FloatingPointError, match="Step 42 is bad: loss of semseg nan, loss of normals nan"):
        guard.take_means()


def test_half_precision_without_a_scaler_is_refused(scaled, monkeypatch):
    monkeypatch.setattr(scaled, "scaler", None)
    with pytest.raises(ValueError, match=r"mixed_precision='fp16' needs .* and this one is 'cpu'. Give .*bf16 or no"):
        StepGuard(Model(), None, TASKS, scaled)


def test_a_run_stops_before_it_saves_or_skips_the_step(settings_of, tmp_path, monkeypatch):
    add_gradients, calls = recipe.add_gradients, []

    def spoil_every_second(model, batches, *arguments):
        calls.append(1)
        if len(calls) % 2 == 0:
            batches[0]["pixel_values"][0, 0, 5, 5] = math.nan
        return add_gradients(model, batches, *arguments)

    monkeypatch.setattr(recipe, "add_gradients", spoil_every_second)
    short = ("--steps", "2", "--eval_every", "2")
    with pytest.raises(FloatingPointError, match="Step 2 is bad: loss of semseg nan"):
        recipe.train("decoders", settings_of(tmp_path, *short))
    assert {path.name for path in (tmp_path / "decoders").iterdir()} == {"lock", "process.txt"}
    with pytest.warns(RuntimeWarning, match="Step 2 is skipped: loss of semseg nan"):
        results = recipe.train("decoders", settings_of(tmp_path, *short, "--on_bad_step", "skip"))
    assert all(math.isfinite(score) for task in results["scores"].values() for score in task.values())


def test_a_model_may_have_more_tasks_than_are_trained(accelerator):
    model = Model()
    guard = StepGuard(model, torch.optim.SGD(model.parameters(), lr=0.1), TASKS[:1], accelerator)
    losses = model(torch.ones(4, 3))[:1]
    losses.sum().backward()
    guard.step(1, losses.detach())
    assert guard.take_means() == {TASKS[0]: losses.item()}
