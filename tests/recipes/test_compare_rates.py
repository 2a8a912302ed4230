# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The grid of learning rates for variants of hypernetworks."""

import json
import math

import pytest
import torch
from tiny_models import make_sites

from peft_polyhistor import HyperformerConfig, PolyhistorConfig, PolyhistorLiteConfig
from peft_polyhistor.layers.factors import PacedLinear, Projector
from peft_polyhistor.training import parse_settings


@pytest.fixture
def recipe(load_recipe, registry):
    return load_recipe("compare_rates")


@pytest.fixture
def compare(recipe):
    """`compare(arguments)`: the changes by method and learning rate."""

    def compare(arguments):
        classes = recipe.Settings, recipe.RateGrid
        rows = recipe.main(*parse_settings(arguments, "", recipe.DEFAULT_CONFIG, *classes))
        return {label: row.changes for label, row in rows.items()}

    return compare


def make_generator(config_class):
    torch.manual_seed(0)
    config = config_class(tasks=["semseg", "normals"], reduction_factor=2, init_weights=False)
    return config.make_generator(make_sites(8, 16))


@pytest.mark.parametrize("config_class", [HyperformerConfig, PolyhistorConfig, PolyhistorLiteConfig])
def test_the_start_of_the_paper_is_random_with_gains_of_one(recipe, registry, config_class):
    recipe.register_with_paper_start(config_class)
    method = config_class.method.lower()
    ours, papers = (make_generator(registry[name]) for name in (method, f"{method}_paper"))
    gains = [{float(m.gain) for m in g.modules() if isinstance(m, PacedLinear)} for g in (ours, papers)]
    assert max(gains[0]) < 1 and gains[1] == {1.0}
    assert [p.shape for p in ours.parameters()] == [p.shape for p in papers.parameters()]
    first, second = papers.task_embedding
    assert 1.2 < (first - second).std() < 1.6  # sqrt(2), of 512 entries
    [projector, *_] = (module for module in papers.modules() if isinstance(module, Projector))
    assert 0.11 < projector[2].weight.std() < 0.14  # sqrt(2 / 128)
    assert not any(m.bias.any() for m in papers.modules() if isinstance(m, torch.nn.LayerNorm))
    outputs = [tensor for site in papers(torch.arange(2)) for tensor in (site.down, site.up)]
    assert all(0.01 < tensor.std() < 1 for tensor in outputs)


def test_the_table_has_the_change_of_each_method_and_rate(compare, recipe, small_run, tmp_path, monkeypatch, capsys):
    calls = []

    def train(method, run):
        calls.append((method, run.learning_rate, run.decoder_learning_rate, run.seed, run.output_dir))
        if run.learning_rate == 1 and "polyhistor_lite_paper" in method and run.seed:
            raise FloatingPointError("Step 3 is bad")
        return {
            "parameters": {"encoder": 1234},
            "scores": {"semseg": {"mIoU": 50.0 if method == "decoders" else 50 + 50 * run.learning_rate}},
        }

    monkeypatch.setattr(recipe, "train", train)
    methods = ("--methods", "decoders", "polyhistor_lite", "adapter", "--paper_start", "--tasks", "semseg")
    rates = ("--learning_rate", "2", "--decoder_learning_rate", "0", "--learning_rates", "0.1", "1")
    changes = compare(small_run(tmp_path, *methods, *rates))
    assert changes["adapter"] == {"0.1": pytest.approx([10, 10]), "1.0": pytest.approx([100, 100])}
    assert changes["polyhistor_lite_paper"]["1.0"] == [100, pytest.approx(math.nan, nan_ok=True)]
    assert calls[:2] == [
        ("decoders", 2, 2, 0, str(tmp_path / "seed0")),
        ("polyhistor_lite", 0.1, 2, 0, str(tmp_path / "seed0" / "0.1")),
    ]
    assert len(calls) == 2 * (1 + 6)
    assert ({"polyhistor_lite_paper": {}}, 1, 2, 1, str(tmp_path / "seed1" / "1.0")) in calls
    table = (tmp_path / "rates.md").read_text()
    assert (
        "| polyhistor_lite_paper | 1,234 | +10.00 (+10.00 to +10.00) | not measured in 1 of 2 runs | +10.00 |" in table
    )
    assert "order of Table 1" not in table  # which has four tasks
    assert ">polyhistor_lite_paper</text>" in (tmp_path / "rates.svg").read_text()
    assert json.loads((tmp_path / "rates.json").read_text())["adapter"]["changes"]["1.0"] == [100, 100]
    printed = capsys.readouterr()
    assert "relative change of the scores" in printed.out and "Step 3 is bad" in printed.err


def test_the_order_of_table_1_is_that_of_one_kind_of_hypernetworks(compare, small_run, recipe, tmp_path, monkeypatch):
    # Table 1: decoders -11.02, adapter -2.71, Polyhistor-Lite 1.74, full 2.23.
    gains = {"adapter": 10, "full": 20, "peft_lora": 7, "polyhistor_lite": 5, "polyhistor_lite_paper": 15}

    def train(method, run):
        method = method if isinstance(method, str) else "polyhistor_lite_paper"
        gain = 0 if method == "decoders" else gains[method] if run.learning_rate == 0.1 else 21 - gains[method]
        units = {"semseg": "mIoU", "human_parts": "mIoU", "saliency": "mIoU", "normals": "mErr"}
        return {
            "parameters": {"encoder": 1234},
            "scores": {t: {unit: 50 - gain if unit == "mErr" else 50 + gain} for t, unit in units.items()},
        }

    monkeypatch.setattr(recipe, "train", train)
    methods = ("--methods", "decoders", "adapter", "full", "peft_lora", "polyhistor_lite", "--paper_start")
    compare(small_run(tmp_path, *methods, "--learning_rates", "0.1", "1", "--seeds", "0"))
    table = (tmp_path / "rates.md").read_text()
    assert "| order of Table 1 |  | 0.80 (4 methods) | 0.40 (4 methods) | 1.00 (4 methods) |" in table
    assert "| order of Table 1, paper |  | 1.00 (4 methods) | 0.20 (4 methods) | 1.00 (4 methods) |" in table


def test_a_reference_of_zero_leaves_the_other_seeds_in_the_table(compare, recipe, small_run, tmp_path, monkeypatch):
    def train(method, run):
        return {
            "parameters": {"encoder": 1234},
            "scores": {"semseg": {"mIoU": 50.0 * (run.seed + (method != "decoders"))}},
        }

    monkeypatch.setattr(recipe, "train", train)
    methods = ("--methods", "decoders", "adapter", "--tasks", "semseg", "--learning_rates", "0.1")
    [first, second] = compare(small_run(tmp_path, *methods))["adapter"]["0.1"]
    assert math.isnan(first) and second == 100
    table = (tmp_path / "rates.md").read_text()
    assert "| adapter | 1,234 | not measured in 1 of 2 runs |" in table and "a score of the decoders is 0." in table


@pytest.mark.slow
def test_the_start_of_the_paper_trains(compare, small_run, tmp_path):
    lite = "polyhistor_lite: {rank: 2, label: lite}"
    methods = ("--methods", "decoders", lite, "--paper_start", "--seeds", "0", "--learning_rates", "1e-3")
    changes = compare(small_run(tmp_path, *methods, "--steps", "1"))
    assert changes.keys() == {"lite", "lite_paper"} and math.isfinite(changes["lite_paper"]["0.001"][0])
    assert (tmp_path / "seed0" / "0.001" / "lite_paper" / "results.json").exists()


def test_reference_is_needed(compare, small_run, tmp_path):
    for method in ("adapter", "decoders"):
        with pytest.raises(ValueError, match="`methods` must be 'decoders', the reference, and others"):
            compare(small_run(tmp_path, "--methods", method))


def test_grid_needs_a_rate(recipe):
    with pytest.raises(ValueError, match="`learning_rates` is empty"):
        recipe.RateGrid(learning_rates=[])


def test_one_seed_is_refused(compare, small_run, tmp_path):
    with pytest.raises(ValueError, match=r"`seed` has no effect here, got 7\. Give --seeds 7\."):
        compare(small_run(tmp_path, "--seed", "7"))


@pytest.mark.parametrize("arguments", ["--learning_rates 0", "--learning_rates nan", "--seeds -1", "--seeds 1 1"])
def test_bad_grid(compare, small_run, tmp_path, arguments):
    with pytest.raises(ValueError, match=r"`(learning_rates|seeds)` must be"):
        compare(small_run(tmp_path, *arguments.split()))
