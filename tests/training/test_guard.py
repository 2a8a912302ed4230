# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Steps with numbers that are wrong are named by task and step, and end the run or are left out without a trace."""

import math
import warnings

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn


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
def watching(load_recipe, accelerator):
    """`watching(**settings)`: a model and its watch."""
    settings, watch = load_recipe("settings").Settings, load_recipe("watch").Watch

    def make(**given):
        torch.manual_seed(0)
        model = Model()
        model, optimizer = accelerator.prepare(model, torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=0.1))
        return model, watch(model, optimizer, TASKS, settings(**given), accelerator)

    return make


def take_steps(model, watch, numbers, spoil=lambda model, x: None):
    """Steps with these numbers, each on pictures of its own, after `spoil` where the number is below 0."""
    for number in numbers:
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(abs(number)))
        if number < 0:
            spoil(model, x)
        losses = model(x)
        watch.accelerator.backward(losses.sum())
        watch.step(abs(number), losses.detach())


def spoil_picture(model, x):
    x[1, 2] = math.nan


def spoil_gradient_of_a_head(model, x):
    weight = model.decoders.heads["normals"][1].weight
    hook = weight.register_hook(lambda gradient: hook.remove() or gradient * math.inf)


def everything(model, watch):
    return {"model": model.state_dict(), "optimizer": watch.optimizer.state_dict()["state"]}


def test_steps_are_those_of_the_optimiser_on_clipped_gradients(watching):
    model, watch = watching(max_grad_norm=0.5)
    expected, _ = watching()
    optimizer, all_losses, was_clipped = torch.optim.Adam(expected.parameters(), lr=0.01, weight_decay=0.1), [], []
    for number in range(1, 6):
        all_losses.append(expected(torch.randn(4, 3, generator=torch.Generator().manual_seed(number))))
        all_losses[-1].sum().backward()
        was_clipped.append(nn.utils.clip_grad_norm_(expected.parameters(), 0.5) > 0.5)
        optimizer.step()
        optimizer.zero_grad()
    take_steps(model, watch, range(1, 6))
    torch.testing.assert_close(model.state_dict(), expected.state_dict(), rtol=0, atol=1e-6)  # norms of norms round
    assert any(was_clipped)
    means = torch.stack(all_losses).mean(dim=0).tolist()
    assert watch.take_means() == pytest.approx(dict(zip(TASKS, means, strict=True))) and watch.take_means() == {}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            spoil_picture,
            "loss of semseg nan, loss of normals nan, gradient of semseg nan, gradient of normals nan, "
            "gradient of what the tasks share nan",
        ),
        (spoil_gradient_of_a_head, "gradient of normals inf"),
    ],
)
def test_a_run_stops_at_the_next_look_and_names_step_and_tasks(watching, spoil, message):
    model, watch = watching()
    take_steps(model, watch, [1, 2, -3, 4], spoil)
    with pytest.raises(FloatingPointError, match=rf"Step 3 is bad: {message}\. Lower --learning_rate.*on_bad_step"):
        watch.take_means()


@pytest.mark.parametrize("spoil", [spoil_picture, spoil_gradient_of_a_head])
def test_a_skipped_step_leaves_no_trace(watching, spoil):
    model, watch = watching(on_bad_step="skip", max_grad_norm=1)
    with pytest.warns(RuntimeWarning, match="Step 3 is skipped: .*normals"):
        take_steps(model, watch, [1, 2, -3, 4], spoil)
    expected, without = watching(max_grad_norm=1)
    take_steps(expected, without, [1, 2, 4])
    torch.testing.assert_close(everything(model, watch), everything(expected, without), rtol=0, atol=0)
    assert watch.take_means() == without.take_means()


def test_many_skipped_steps_in_a_row_end_the_run(watching):
    model, watch = watching(on_bad_step="skip")
    with pytest.warns(RuntimeWarning, match="is skipped"):
        take_steps(model, watch, [1, *range(-2, -22, -1), 22, *range(-23, -43, -1)], spoil_picture)
    with (
        pytest.warns(RuntimeWarning, match="Step 43 is skipped"),
        pytest.raises(FloatingPointError, match=r"Steps 23 to 43 were skipped one after the other.*Lower"),
    ):
        take_steps(model, watch, [-43], spoil_picture)


def test_a_run_that_is_to_go_on_warns_once(watching):
    model, watch = watching(on_bad_step="warn")
    take_steps(model, watch, [1, -2, 3, 4], spoil_picture)
    with pytest.warns(
        RuntimeWarning, match="Step 2 is bad, and so are likely to be those after it: loss of"
    ) as caught:
        assert len(watch.take_means()) == 2
    assert len(caught) == 1 and model.encoder.weight.isnan().all()


def show(watch, task, losses, first=1):
    for number, loss in enumerate(losses, first):
        watch.step(number, torch.tensor([loss if name == task else 1.0 for name in TASKS]))
    watch.look()


def test_a_loss_far_above_the_usual_is_warned_of(watching):
    _, watch = watching()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        show(watch, "normals", [100.0, 2.0, 0.0, 1.0, 3.0, 0.0, 2.0, 2.0, 1.0, 2.0, 2.0])  # too few to tell, and zeros
        show(watch, "normals", [1.0, 2.0, 19.0], first=12)
    message = r"Step 15: the loss of normals is 21, and the median of the 12 before is 2\. If this goes on, lower"
    with pytest.warns(RuntimeWarning, match=message) as caught:
        show(watch, "normals", [21.0, 2.0], first=15)
    assert len(caught) == 1


@pytest.fixture
def scaled(accelerator, monkeypatch):
    """The accelerator with what training in fp16 brings on a GPU, and a scale that takes three steps to find."""
    AcceleratorState._reset_state()
    accelerator = Accelerator(cpu=True, mixed_precision="fp16")
    monkeypatch.setattr(accelerator, "scaler", torch.amp.GradScaler("cpu", init_scale=2.0**25, growth_interval=1000))
    monkeypatch.setattr(accelerator, "native_amp", True)
    return accelerator


def test_a_scaler_that_finds_its_scale_is_no_fault(load_recipe, scaled):
    model = Model()
    model, optimizer = scaled.prepare(model, torch.optim.Adam(model.parameters()))
    settings, watch = load_recipe("settings").Settings(), load_recipe("watch").Watch
    watch = watch(model, optimizer, TASKS, settings, scaled)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        take_steps(model, watch, range(1, 20))
        watch.look()
    assert scaled.scaler.get_scale() < 2.0**22 and optimizer.state_dict()["state"][0]["step"] > 5
    hook = model.encoder.weight.register_hook(lambda gradient: gradient * math.nan)
    take_steps(model, watch, range(20, 40))
    with pytest.raises(FloatingPointError, match="Steps 20 to 40 were skipped"):
        take_steps(model, watch, [40])
    hook.remove()
    take_steps(model, watch, [41, -42], spoil_picture)
    with pytest.raises(FloatingPointError, match="Step 42 is bad: loss of semseg nan, loss of normals nan"):
        watch.look()


def test_half_precision_without_a_scaler_is_refused(load_recipe, scaled, monkeypatch):
    monkeypatch.setattr(scaled, "scaler", None)
    with pytest.raises(ValueError, match=r"mixed_precision='fp16' needs .* and this one is 'cpu'. Give .*bf16 or no"):
        load_recipe("watch").Watch(Model(), None, TASKS, load_recipe("settings").Settings(), scaled)


def test_a_run_stops_before_it_saves_or_skips_the_step(load_recipe, small_run, tmp_path, monkeypatch):
    recipe = load_recipe("train_pascal")
    add_gradients, calls = recipe.add_gradients, []

    def spoil_every_second(model, batches, *arguments):
        calls.append(1)
        if len(calls) % 2 == 0:
            batches[0]["pixel_values"][0, 0, 5, 5] = math.nan
        return add_gradients(model, batches, *arguments)

    monkeypatch.setattr(recipe, "add_gradients", spoil_every_second)
    arguments = small_run(tmp_path, "--methods", "decoders", "--steps", "2", "--eval_every", "2")
    with pytest.raises(FloatingPointError, match="Step 2 is bad: loss of semseg nan"):
        recipe.main(recipe.parse_settings(arguments, ""))
    assert [path.name for path in (tmp_path / "decoders").iterdir()] == ["lock"]
    with pytest.warns(RuntimeWarning, match="Step 2 is skipped: loss of semseg nan"):
        [results] = recipe.main(recipe.parse_settings([*arguments, "--on_bad_step", "skip"], ""))
    assert all(math.isfinite(score) for task in results["scores"].values() for score in task.values())
