# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""What can be counted exactly of the steps that the benchmarks compare, and that the benchmarks run."""

import json

import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode


@pytest.fixture
def contestants(load_recipe):
    return load_recipe("contestants")


@pytest.fixture
def steps(load_recipe):
    return load_recipe("steps")


@pytest.fixture
def make_problem(contestants):
    """`make_problem(tasks)`: few pixels, and the smallest encoder."""

    def make(tasks, **changes):
        sizes = {"encoder": "swin-micro", "image_size": 64, "batch_size": 2, "decoder_width": 16}
        device = {"device": torch.device("cpu"), "dtype": torch.float32}
        return contestants.Problem(tasks=tasks, **{**sizes, **device, **changes})

    return make


def count_flops(step):
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def test_decoder_computes_what_the_paper_writes_in_a_fifth_of_its_flops(contestants):
    """With the widths of Swin-T and pictures of 512 px, forward and backward; shapes are enough to count."""
    widths, flops = [96, 192, 384, 768], {}
    for cls in (contestants.PaperDecoder, contestants.DenseDecoder):
        with torch.device("meta"):
            decoder = cls(widths, 21, 256, 0.0, True)
            maps = [torch.randn(1, c, 128 >> i, 128 >> i, requires_grad=True) for i, c in enumerate(widths)]
        flops[cls] = count_flops(lambda decoder=decoder, maps=maps: decoder(maps).sum().backward())
    assert flops[contestants.DenseDecoder] <= 0.2 * flops[contestants.PaperDecoder]


def test_decoder_is_the_papers(contestants):
    widths = [8, 16, 24, 32]
    decoder = contestants.DenseDecoder(widths, 5, 12, 0.0, True).double()
    maps = [torch.randn(2, c, 16 >> i, 24 >> i).double() for i, c in enumerate(widths)]
    found = decoder(maps)
    decoder.__class__ = contestants.PaperDecoder
    torch.testing.assert_close(found, decoder(maps), rtol=0, atol=1e-10)


def test_a_step_of_tasks_costs_as_many_steps_of_one(contestants, steps, make_problem):
    with contestants.registered(2) as tasks:
        four = steps.training_steps(make_problem(tasks), "polyhistor_lite")["polyhistor_lite"].step
        ones = [steps.training_steps(make_problem([t]), "polyhistor_lite")["polyhistor_lite"].step for t in tasks]
        assert count_flops(four) <= sum(count_flops(one) for one in ones)


def test_operations_do_not_grow_with_the_tasks_as_passes_do(contestants, steps, make_problem, load_recipe):
    def count(number, how):
        with contestants.registered(number) as tasks:
            problem = make_problem(tasks, encoder="Swin-T", image_size=96, batch_size=1)
            [step] = steps.training_steps(problem, "polyhistor_lite", [f"polyhistor_lite{how}"]).values()
            with load_recipe("measurement").OperationCounter() as counter:
                step.step()
        return counter.calls

    together = count(4, steps.TOGETHER)
    assert count(8, steps.TOGETHER) <= 1.26 * together
    assert together <= 0.35 * count(4, steps.IN_TURN)


def test_tasks_beyond_four_are_known_for_as_long_as_they_are_needed(contestants):
    before = list(contestants.TASKS)
    with contestants.registered(6) as tasks:
        assert tasks == ["semseg", "human_parts", "saliency", "normals", "semseg__2", "human_parts__2"]
        assert set(tasks) <= set(contestants.TASKS)
    assert list(contestants.TASKS) == before


@pytest.mark.parametrize("name", [pytest.param("benchmark_training", marks=pytest.mark.slow), "benchmark_inference"])
def test_benchmarks_write_figures_goals_and_a_plot(name, load_recipe, tmp_path, capsys):
    small = ["--encoder", "swin-micro", "--image_sizes", "32", "--tasks", "2", "--decoder_width", "8"]
    load_recipe(name).main([*small, "--rounds", "1", "--device", "cpu", "--output_dir", str(tmp_path)])
    report = json.loads((tmp_path / f"{name}.json").read_text())
    [result] = report["results"]
    for figures in result["figures"].values():
        assert all(figures[key] > 0 for key in ("seconds", "flops", "operations", "peak_bytes"))
    assert result["goals"] == []  # which are for another encoder and four tasks
    assert "tasks: 2" in capsys.readouterr().out
    assert Image.open(tmp_path / f"{name}.png").size


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--encoder", "Swin-X"], "`encoder` must be one of"),
        (["--method", "vmt_adapter"], "`method` must be one of"),
        (["--method", "bitfit"], "`method` must be one of"),
        (["--dtype", "float64"], "`dtype` must be one of"),
        (["--tasks", "0"], "`tasks` must be at least 1, got 0"),
        (["--image_sizes", "16"], "`image_sizes` must be at least 32, got 16"),
        (["--rounds", "0"], "`rounds` must be at least 1"),
    ],
)
def test_wrong_settings_are_errors(arguments, message, load_recipe):
    with pytest.raises(ValueError, match=message):
        load_recipe("benchmark_training").main(arguments)


def test_saved_bytes_count_each_storage_once_and_no_parameters(load_recipe):
    saved = load_recipe("measurement").SavedBytes
    weight, x = torch.ones(5, 5, requires_grad=True), torch.ones(3, 5, requires_grad=True)
    counter = saved([weight])
    with counter:
        hidden = (x @ weight).sigmoid()  # x for the weight, and the sigmoid's output
        (hidden * hidden).sum().backward()  # which is kept already
    assert counter.peak == 2 * 3 * 5 * 4


def test_memory_table_counts_what_fits(load_recipe):
    recipe = load_recipe("memory_table")
    header, *rows = recipe.main(recipe.MemorySettings(encoders=["swin-micro"], image_size=64, memory=[1, 2]))
    assert header[-2:] == ["1 GB", "2 GB"]
    together, per_task = ([int(cell) for cell in row[-2:]] for row in rows[:2])
    assert 0 < together[0] < together[1] < per_task[1]
    assert per_task[0] == pytest.approx(4 * together[0], abs=4)


def test_a_goal_is_a_ratio_to_the_best_of_its_references(load_recipe):
    recipe = load_recipe("benchmark")
    figures = {"ours": {"seconds": 3.0}, "one": {"seconds": 4.0}, "other": {"seconds": 2.0}}
    judged = recipe.judge(recipe.Goal("time", "seconds", "ours", ("one", "other"), 1.08), figures)
    assert (judged["ratio"], judged["reached"]) == (1.5, False)


@pytest.mark.parametrize("name", ["benchmark_training", "benchmark_inference"])
def test_goals_are_about_steps_that_there_are(name, contestants, steps, make_problem, load_recipe):
    with contestants.registered(1) as tasks:
        make = steps.training_steps if name == "benchmark_training" else steps.predictions
        names = make(make_problem(tasks), "polyhistor_lite").keys()
    for goal in load_recipe(name).make_goals("polyhistor_lite"):
        assert {goal.step, *goal.references} <= names


def test_the_start_is_measured(load_recipe, capsys, monkeypatch):
    recipe = load_recipe("benchmark_startup")
    monkeypatch.setattr(recipe, "BEFORE", "json")
    monkeypatch.setattr(recipe, "PACKAGE", "decimal")
    monkeypatch.setitem(recipe.ENCODERS, "Swin-B", recipe.ENCODERS["swin-micro"])
    assert min(recipe.main(rounds=1)) > 0
    assert "import peft_polyhistor" in capsys.readouterr().out
