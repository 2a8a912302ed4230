# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""What can be counted exactly of the steps that the benchmarks compare, and that the benchmarks run."""

import json
from xml.etree import ElementTree

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode


@pytest.fixture
def contestants(load_recipe):
    return load_recipe("problem")


@pytest.fixture
def steps(load_recipe):
    return load_recipe("training")


@pytest.fixture
def make_problem(contestants):
    """`make_problem(tasks)`: few pixels, and the smallest encoder."""

    def make(tasks, **changes):
        sizes = {"encoder": "swin-mini", "image_size": 64, "batch_size": 2, "decoder_width": 16}
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
            with load_recipe("common").OperationCounter() as counter:
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


@pytest.mark.parametrize("name", [pytest.param("training", marks=pytest.mark.slow), "inference"])
def test_benchmarks_write_figures_goals_and_a_plot(name, load_recipe, tmp_path, capsys):
    small = "--encoder swin-mini --image_sizes 32 --tasks 2 --decoder_width 8 --rounds 1 --device cpu"
    load_recipe(name).main([*small.split(), "--output_dir", str(tmp_path)])
    report = json.loads((tmp_path / f"benchmark_{name}.json").read_text())
    [result] = report["results"]
    for figures in result["figures"].values():
        assert all(figures[key] > 0 for key in ("seconds", "flops", "operations", "peak_bytes"))
    assert result["goals"] == []  # which are for another encoder and four tasks
    assert "tasks: 2" in capsys.readouterr().out
    plot = ElementTree.parse(tmp_path / f"benchmark_{name}.svg").getroot()
    assert {f"{step}, 32 px" for step in result["figures"]} <= {element.text for element in plot.iter()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--encoder", "Swin-X"], "--encoder: invalid choice: 'Swin-X'"),
        (["--method", "vmt_adapter"], "--method: invalid choice: 'vmt_adapter'"),
        (["--method", "bitfit"], "--method: invalid choice: 'bitfit'"),
        (["--dtype", "float64"], "--dtype: invalid choice: 'float64'"),
        (["--tasks", "0"], "--tasks: invalid positive value: '0'"),
        (["--image_sizes", "16"], "--image_sizes: must be at least 32"),
        (["--rounds", "0"], "--rounds: invalid positive value: '0'"),
    ],
)
def test_wrong_settings_are_errors(arguments, message, load_recipe, capsys):
    with pytest.raises(SystemExit):
        load_recipe("training").main(arguments)
    assert message in capsys.readouterr().err


def test_saved_bytes_count_each_storage_once_and_no_parameters(load_recipe):
    saved = load_recipe("common").SavedBytes
    weight, x = torch.ones(5, 5, requires_grad=True), torch.ones(3, 5, requires_grad=True)
    counter = saved([weight])
    with counter:
        hidden = (x @ weight).sigmoid()  # x for the weight, and the sigmoid's output
        (hidden * hidden).sum().backward()  # which is kept already
    assert counter.peak == 2 * 3 * 5 * 4


def test_a_goal_is_a_ratio_to_the_best_of_its_references(load_recipe):
    goal = load_recipe("common").Goal("time", "seconds", "ours", ("one", "other"), 1.08)
    figures = {"ours": {"seconds": 3.0}, "one": {"seconds": 4.0}, "other": {"seconds": 2.0}}
    judged = goal.judge(figures)
    assert (judged["ratio"], judged["reached"]) == (1.5, False)


@pytest.mark.parametrize("name", ["training", "inference"])
def test_goals_are_about_steps_that_there_are(name, contestants, make_problem, load_recipe):
    with contestants.registered(1) as tasks:
        recipe = load_recipe(name)
        make = recipe.training_steps if name == "training" else recipe.predictions
        names = make(make_problem(tasks), "polyhistor_lite").keys()
    for goal in recipe.make_goals("polyhistor_lite"):
        assert {goal.step, *goal.references} <= names
