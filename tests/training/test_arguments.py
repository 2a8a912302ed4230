# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Settings from YAML and arguments, and the errors that bad ones give."""

import re
from pathlib import Path

import pytest
import torch
import train_pascal as recipe
from transformers import get_scheduler

from peft_polyhistor.training import parse_settings, run_recipe
from peft_polyhistor.training.arguments import read_loss_weights
from peft_polyhistor.training.settings import CURVES


CONFIGS = Path(__file__).parents[2] / "recipes" / "configs"


def parse_file(file, *arguments):
    [settings] = parse_settings([str(file), *arguments], "", recipe.DEFAULT_CONFIG, recipe.Settings)
    return settings


@pytest.fixture
def parse(tmp_path):
    """`parse(text, *arguments)`: the settings of a YAML file with this text."""

    def parse_text(text, *arguments):
        (tmp_path / "settings.yaml").write_text(text)
        return parse_file(tmp_path / "settings.yaml", *arguments)

    return parse_text


def test_the_command_line_names_tasks_that_the_file_describes_and_empties_its_lists(parse):
    text = "tasks: [semseg, {lanes: {kind: segmentation, classes: [road, lane]}}]\nlayout: {image: photos}"
    settings = parse(text, "--tasks", "lanes", "--layout")
    assert settings.tasks == [{"lanes": {"kind": "segmentation", "classes": ["road", "lane"]}}]
    assert settings.layout == []


def test_help_shows_the_values_of_the_file(tmp_path, capsys):
    file = tmp_path / "settings.yaml"
    file.write_text("steps: 7")
    with pytest.raises(SystemExit):
        parse_file(file, "--help")
    text = " ".join(capsys.readouterr().out.split())
    assert (
        "0 uses --epochs; at least 0 (default: 7)" in text
        and "images per process and batch; at least 1 (default: 12)" in text
    )


@pytest.mark.parametrize("argv", [["--image_size", "16"], ["nowhere.yaml"]])
def test_a_recipe_ends_with_the_message_of_a_bad_setting(monkeypatch, argv):
    monkeypatch.setattr("sys.argv", ["train_pascal.py", *argv])
    with pytest.raises(SystemExit, match=r"`image_size` must be at least 32, got 16|nowhere\.yaml: no such file"):
        run_recipe(None, "", recipe.DEFAULT_CONFIG, recipe.Settings)


def test_settings_come_from_yaml_and_arguments_win(parse):
    settings = parse("steps: 7\nimage_size: 96\n", "--steps", "9", "--resume", "--mixed_precision", "no")
    assert (settings.steps, settings.image_size, settings.learning_rate) == (9, 96, 1e-4)
    assert settings.resume is True and settings.mixed_precision == "no"


def test_yaml_is_read_as_it_was_meant(parse):
    settings = parse(
        "mixed_precision: no\nepochs: 3\nlearning_rate: 1e-3\ntasks: [semseg, normals]\nloss_weights: {normals: 0.5}\n"
        "methods: [decoders, phm: {reduction_factor: 12, dropout: 1e-1}]\n"
    )
    assert settings.mixed_precision == "no"
    assert settings.epochs == 3.0 and isinstance(settings.epochs, float) and settings.learning_rate == 1e-3
    assert settings.methods == ["decoders", {"phm": {"reduction_factor": 12, "dropout": 0.1}}]
    assert parse("methods: polyhistor").methods == ["polyhistor"]


def test_methods_on_the_command_line_are_those_of_a_file(parse):
    from_file = parse("methods: [decoders, phm: {reduction_factor: 12}]")
    assert parse("steps: 1", "--methods", "decoders", "phm: {reduction_factor: 12}").methods == from_file.methods


@pytest.mark.parametrize("config", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_configs_are_complete_but_for_data_and_open_with_what_was_measured(config):
    parse_file(config, "--data", "scenes")
    header = config.read_text().split("\n\n")[0]
    assert "accelerate launch recipes/" in header
    assert "not measured" in header or all(word in header for word in ("wall time", "peak memory", "scores"))


def test_loss_weights():
    assert read_loss_weights(["uniform"], ["semseg", "normals"]) == {"semseg": 1, "normals": 1}
    assert read_loss_weights(["semseg=1e-1"], ["semseg"]) == {"semseg": 0.1}
    assert read_loss_weights([{"semseg": 2, "normals": 0.5}], ["semseg", "normals"]) == {"semseg": 2, "normals": 0.5}


def test_every_schedule_needs_nothing_but_steps():
    for name in CURVES:
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        scheduler = get_scheduler(name, optimizer, 1, 4)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("colour: red", r"settings.yaml: unknown settings \['colour'\]\. Known are"),
        ("learning_rte: 1", r"unknown settings \['learning_rte'\]\. Did you mean learning_rate\? Known are"),
        ("tasks: [{d: {kind: regression}}, {d: {kind: binary}}]", "The task 'd' is given twice"),
        ("- steps", r"settings.yaml must hold one `name: value` a line, got \['steps'\]"),
        ("steps: [", "settings.yaml: 'steps: .' is not valid YAML"),
        ("steps: 2020-99-99", "is not valid YAML: month must be in 1..12"),
        ("[" * 5000, "is not valid YAML: "),
        ("steps: !!python/name:os.system", "is not valid YAML: could not determine a constructor"),
        (r'methods: "\x1f"', r"`methods`: '\\x1f' is not valid YAML: unacceptable character"),
        ("loss_weights: ['semseg=[']", r"`loss_weights`: '\[' is not valid YAML"),
        ("methods: [lora2]", r"`methods` must be among \['full', 'single_task'"),
        ("methods: [full, full]", "each once"),
        ("tasks: [1]", r"Unknown tasks \[1\]"),
        ("tasks: [depth]", r"Unknown tasks \['depth'\]"),
        ("steps: 1.5", r"`steps` must be an integer, got 1\.5"),
        ("steps: true", "`steps` must be an integer, got True"),
        ("learning_rate: fast", "`learning_rate` must be a number, got 'fast'"),
        ("learning_rate: yes", "`learning_rate` must be a number, got True"),
        ("gradient_checkpointing: 1", "`gradient_checkpointing` must be true or false, got 1"),
        ("tracker: 3", "`tracker` must be a string, got 3"),
        ("tracker: paper", r"`tracker` must be one of \['none'"),
        ("mixed_precision: fp64", "`mixed_precision` must be one of"),
        ("schedule: reduce_lr_on_plateau", r"`schedule` must be one of \['linear'"),
        ("schedule: constant\nwarmup_steps: 3", r"`warmup_steps` 3 needs a --schedule with a warm-up, got 'constant'"),
        ("steps: 5\nwarmup_steps: 5", "must be below the optimiser steps of the run, 5, got 5"),
        ("batch_size: 0", "`batch_size` must be at least 1, got 0"),
        ("image_size: 31", "`image_size` must be at least 32, got 31"),
        ("learning_rate: 0", "`learning_rate` must be at least 1e-12, got 0"),
        ("learning_rate: .nan", "`learning_rate` must be at least 1e-12, got nan"),
        ("epochs: .inf", "`epochs` must be below inf, got inf"),
        ("epochs: 0", "Nothing to train"),
        ("holdout: 1", "`holdout` must be below 1, got 1"),
        ('data: ""', "`data` is empty; give --data VALUE"),
        ("loss_weights: [semseg]", "items task=weight .* got semseg=None"),
        ("loss_weights: [depth=1]", "got depth=1"),
        ("loss_weights: [semseg=0]", "a weight above 0, got semseg=0"),
    ],
)
def test_bad_settings_say_what_is_allowed(parse, text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)


def test_the_output_folder_may_start_with_a_tilde(monkeypatch):
    monkeypatch.setenv("HOME", "/homes/ann")
    assert recipe.Settings(output_dir="~/runs").output_dir == "/homes/ann/runs"


def test_a_copy_of_a_recipe_needs_no_config():
    [settings] = parse_settings(["--steps", "3"], "", Path("nowhere.yaml"), recipe.Settings)
    assert settings == recipe.Settings(steps=3)


def test_a_copy_of_the_recipe_needs_no_other_recipe():
    """Nor does `publish`, so that it does not import the training."""
    recipes = {file.stem for file in CONFIGS.parent.glob("*.py")}
    for name in ("train_pascal", "publish"):
        imported = re.findall(r"^(?:from|import) (\w+)", (CONFIGS.parent / f"{name}.py").read_text(), re.MULTILINE)
        assert "peft_polyhistor" in imported and not recipes & set(imported)


def test_missing_file_is_named():
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml: no such file"):
        parse_file("nowhere.yaml")
