# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Exact counts of the steps that the benchmarks compare, runs of the benchmarks, and their reports."""

import json
import signal
from functools import partial
from xml.etree import ElementTree

import pytest
import torch
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch.utils.flop_counter import FlopCounterMode


@pytest.fixture
def steps(load_recipe):
    return load_recipe("training")


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


@pytest.mark.slow
def test_a_step_of_tasks_costs_as_many_steps_of_one(contestants, steps, make_problem):
    with contestants.registered(2) as tasks:
        together, *ones = (
            steps.training_steps(make_problem(chosen), "polyhistor_lite")["polyhistor_lite"]().step
            for chosen in (tasks, *([task] for task in tasks))
        )
        assert count_flops(together) <= sum(count_flops(one) for one in ones)


@pytest.mark.slow
def test_operations_do_not_grow_with_the_tasks_as_passes_do(contestants, steps, make_problem, load_recipe):
    def count(number, how):
        with contestants.registered(number) as tasks:
            problem = make_problem(tasks, encoder="Swin-T", image_size=96, batch_size=1)
            step = steps.training_steps(problem, "polyhistor_lite")[f"polyhistor_lite{how}"]().step
            with load_recipe("meters").OperationCounter() as counter:
                step()
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


SMALL = ["--encoders", "swin-mini", "--image_sizes", "32", "--decoder_width", "8", "--rounds", "1", "--device", "cpu"]


@pytest.fixture(autouse=True)
def small_product(load_recipe, monkeypatch):
    """The product of two matrices that gives the peak takes no time."""
    monkeypatch.setattr(load_recipe("meters"), "SIDE_ON_CPU", 64)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["training", "inference"])
def test_benchmarks_write_figures_and_a_plot(name, load_recipe, tmp_path, capsys):
    load_recipe(name).main([*SMALL, "--tasks", "2", "--output_dir", str(tmp_path)])
    report = json.loads((tmp_path / f"benchmark_{name}.json").read_text())
    [result] = report["results"]
    for figures in result["figures"].values():
        assert all(figures[key] > 0 for key in ("seconds", "flops", "operations", "peak_bytes"))
    assert result["failures"] == {}
    assert "tasks: 2" in capsys.readouterr().out
    plot = ElementTree.parse(tmp_path / f"benchmark_{name}.svg").getroot()
    assert result["figures"].keys() <= {element.text for element in plot.iter()}
    table = (tmp_path / f"benchmark_{name}.md").read_text().splitlines()
    assert {f"| {step}" for step in result["figures"]} <= {line.partition(" | ")[0] for line in table}


@pytest.fixture
def run(load_recipe, tmp_path):
    """`run(steps, *arguments)`: a benchmark of two layers and of `steps`, which may replace them.

    It returns the results that the JSON holds, and keeps them and the Markdown if the run breaks off.
    """
    common, problem, report = map(load_recipe, ("common", "problem", "report"))

    def layer(size):
        model = torch.nn.Linear(size, size)
        return lambda: problem.Contestant(lambda: model(torch.ones(size, size)).sum().backward(), model)

    def start(steps=None, *arguments):
        makers = {"small": layer(8), "large": layer(16), **(steps or {})}
        benchmark = common.Benchmark(
            name="benchmark",
            document="",
            make=lambda problem, method: makers,
            make_references=lambda method: {"seconds to small": report.Reference("seconds", ("small",))},
            choose_compiled=lambda method: makers.keys(),
        )
        try:
            common.run_benchmark(benchmark, [*SMALL, "--output_dir", str(tmp_path), *arguments])
        finally:
            start.results = json.loads((tmp_path / "benchmark.json").read_text())["results"]
            start.tables = (tmp_path / "benchmark.md").read_text()
        return start.results

    return start


def test_a_run_covers_every_combination(run):
    found = run(None, "--encoders", "swin-mini", "Swin-T", "--tasks", "1", "3")
    assert [(result["encoder"], result["tasks"]) for result in found] == [
        ("swin-mini", 1),
        ("swin-mini", 3),
        ("Swin-T", 1),
        ("Swin-T", 3),
    ]
    assert run.tables.count("by number of tasks") == 2 * 2  # a heading and the table's title, for each encoder


def test_a_compiled_step_has_no_counts_of_its_operators(run, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    eager, compiled = run(None, "--modes", "eager", "compiled")
    assert (eager["mode"], compiled["mode"]) == ("eager", "compiled")
    for name in ("small", "large"):
        own, other = eager["figures"][name], compiled["figures"][name]
        assert own.keys() - other.keys() == {"operations", "saved_bytes"}
        assert own["flops"] == other["flops"] and other["peak_bytes"] > 0


def test_a_compiler_that_gives_up_is_a_failure(run):
    def give_up():
        raise FailOnRecompileLimitHit("Hit the limit")

    with pytest.raises(SystemExit, match=r"^1 steps failed"):
        run({"small": give_up})
    [result] = run.results
    assert result["failures"] == {"small": "FailOnRecompileLimitHit: Hit the limit"}


def out_of_memory():
    raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 1 GiB.")


def test_a_step_that_fails_leaves_the_others_their_rows(run):
    with pytest.raises(SystemExit, match=r"^1 steps failed"):
        run({"small": out_of_memory})
    [result] = run.results
    assert result["failures"] == {"small": "OutOfMemoryError: CUDA out of memory."}
    assert result["figures"].keys() == {"product of two matrices", "large"}
    assert "- not measured: small: OutOfMemoryError: CUDA out of memory." in run.tables


def test_a_run_that_breaks_off_keeps_the_settings_before(run):
    calls = []

    def interrupt():
        calls.append(None)
        if len(calls) == 2:
            raise KeyboardInterrupt
        out_of_memory()

    with pytest.raises(KeyboardInterrupt):
        run({"more": interrupt}, "--tasks", "1", "2", "4")
    [result] = run.results
    assert result["tasks"] == 1 and {"small", "large"} <= result["figures"].keys()


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="Windows has no alarm, so a step is not interrupted")
def test_a_step_that_is_not_ready_in_time_is_given_up(run):
    def never_ends():
        while True:
            pass

    [result] = run({"endless": never_ends}, "--minutes", "0.02")
    assert result["failures"]["endless"] == "the time was up"
    assert "- not measured: endless: the time was up" in run.tables


def test_rows_compare_with_the_peak_and_the_faster_reference(load_recipe):
    report = load_recipe("report")
    costs = {"range": [1, 3], "flops": 12e9, "peak_bytes": 3e6}
    titles = ["", "seconds", "range", "of the peak", "GFLOP", "operations", "saved MB", "peak MB"]
    figures = {
        report.PEAK: {**costs, "seconds": 2, "flops": 48e9},
        "ours": {**costs, "seconds": 3, "operations": 1000, "saved_bytes": 2e6},
        "theirs": {**costs, "seconds": 1.5},
    }
    references = {
        "to theirs": report.Reference("seconds", ("theirs", "gone", "ours")),
        "to none": report.Reference("seconds", ("gone",)),
        "operations to ours": report.Reference("operations", ("theirs", "ours")),
    }
    assert report.make_rows(figures) == [
        titles,
        [report.PEAK, "2", "1 to 3", "100 %", "48.0", "-", "-", "3"],
        ["ours", "3", "1 to 3", "17 %", "12.0", "1,000", "2", "3"],
        ["theirs", "1.5", "1 to 3", "33 %", "12.0", "-", "-", "3"],
    ]
    assert report.make_ratios(figures, references) == [
        ["", "to theirs", "to none", "operations to ours"],
        [report.PEAK, "-", "-", "-"],
        ["ours", "2.000", "-", "1.000"],
        ["theirs", "1.000", "-", "-"],
    ]


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("cpu", (["Swin-T"], [224, 512], 1, "float32", ["eager"], None)),
        ("cuda", (["Swin-T", "Swin-B"], [512], 12, "bfloat16", ["eager", "compiled"], 4)),
    ],
)
def test_defaults_depend_on_the_device(device, expected, load_recipe):
    options = load_recipe("common").parse_options("training", "", ["--device", device])
    names = ("encoders", "image_sizes", "batch_size", "dtype", "modes", "minutes")
    assert tuple(getattr(options, name) for name in names) == expected


def test_a_device_that_is_missing_is_an_error(load_recipe):
    with pytest.raises(SystemExit, match=r"^--device: this machine has \['cpu'.*\], got 'hpu'"):
        load_recipe("training").main(["--device", "hpu"])


@pytest.mark.slow
def test_the_frozen_passes_compile_into_one_graph(contestants, steps, make_problem):
    torch.compiler.reset()
    with contestants.registered(1) as tasks:
        step, encoder = steps.training_steps(make_problem(tasks), "polyhistor_lite")[steps.BOUND]()
    encoder.compile(backend="eager", fullgraph=True)
    step()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--encoders", "Swin-X"], "--encoders: invalid choice: 'Swin-X'"),
        (["--method", "vmt_adapter"], "--method: invalid choice: 'vmt_adapter'"),
        (["--method", "bitfit"], "--method: invalid choice: 'bitfit'"),
        (["--dtype", "float64"], "--dtype: invalid choice: 'float64'"),
        (["--tasks", "0"], "--tasks: invalid positive value: '0'"),
        (["--image_sizes", "16"], "--image_sizes: must be at least 32"),
        (["--rounds", "0"], "--rounds: invalid positive value: '0'"),
        (["--minutes", "0"], "--minutes: invalid minutes value: '0'"),
        (["--device", "gpu"], "--device: Expected one of cpu, cuda"),
    ],
)
def test_wrong_settings_are_errors(arguments, message, load_recipe, capsys):
    with pytest.raises(SystemExit):
        load_recipe("training").main(arguments)
    assert message in capsys.readouterr().err


def test_saved_bytes_count_each_storage_once_and_no_parameters(load_recipe):
    saved = load_recipe("meters").SavedBytes
    weight, x = torch.ones(5, 5, requires_grad=True), torch.ones(3, 5, requires_grad=True)
    counter = saved([weight])
    with counter:
        hidden = (x @ weight).sigmoid()  # x for the weight, and the sigmoid's output
        (hidden * hidden).sum().backward()  # which is kept already
    assert counter.peak == 2 * 3 * 5 * 4


@pytest.mark.parametrize("name", ["training", "inference"])
def test_references_are_steps_and_figures_that_there_are(name, contestants, make_problem, load_recipe):
    recipe = load_recipe(name)
    with contestants.registered(1) as tasks:
        make = recipe.training_steps if name == "training" else recipe.predictions
        makers = make(make_problem(tasks), "polyhistor_lite")
        step = next(iter(makers.values()))()
        figures = {"seconds", *load_recipe("meters").measure_cost(step, False, torch.device("cpu"))}
    for figure, steps in recipe.make_references("polyhistor_lite").values():
        assert figure in figures and makers.keys() >= set(steps)
