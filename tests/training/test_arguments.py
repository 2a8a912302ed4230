# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Settings from YAML and arguments, and what is said about bad ones."""

from pathlib import Path

import pytest
import torch
from transformers import get_scheduler


CONFIGS = Path(__file__).parents[2] / "recipes" / "configs"


@pytest.fixture
def recipe(load_recipe):
    return load_recipe("settings")


@pytest.fixture
def parse(recipe, tmp_path):
    """`parse(text, *arguments)`: the settings of a YAML file with this text."""

    def parse_text(text, *arguments):
        file = tmp_path / "settings.yaml"
        file.write_text(text)
        return recipe.parse_settings([str(file), *arguments], "")

    return parse_text


def test_settings_come_from_yaml_and_arguments_win(parse):
    settings = parse("steps: 7\nimage_size: 96\n", "--steps", "9")
    assert (settings.steps, settings.image_size, settings.learning_rate) == (9, 96, 1e-4)


@pytest.mark.parametrize("config", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_configs_are_complete_but_for_data_and_open_with_what_was_measured(recipe, config):
    recipe.parse_settings([str(config), "--data", "scenes"], "")
    header = config.read_text().split("\n\n")[0]
    assert "accelerate launch recipes/" in header
    assert "not measured" in header or all(word in header for word in ("wall time", "peak memory", "scores"))


def test_yaml_is_read_as_it_was_meant(parse):
    settings = parse(
        "mixed_precision: no\nepochs: 3\nlearning_rate: 1e-3\nmethods: polyhistor\ntasks: [semseg, normals]\n"
        "method_settings: {rank: 4, target_modules: [a, b]}\nloss_weights: {semseg: 2, normals: 0.5}\n"
    )
    assert settings.mixed_precision == "no"
    assert settings.epochs == 3.0 and isinstance(settings.epochs, float) and settings.learning_rate == 1e-3
    assert settings.methods == ["polyhistor"]
    assert settings.method_settings == ["rank=4", 'target_modules=["a", "b"]']
    assert settings.loss_weights == ["semseg=2", "normals=0.5"]


def test_method_settings_are_for_all_methods_or_for_one(recipe, parse):
    settings = parse(
        "methods: [polyhistor, polyhistor_lite]\nmethod_settings: [polyhistor.rank=4, rank=2, dropout=1e-1]"
    )
    configs = [recipe.method_config(method, settings) for method in settings.methods]
    assert [config.rank for config in configs] == [4, 2]
    assert [config.dropout for config in configs] == [0.1, 0.1]


def test_methods_of_peft_take_settings_too(recipe, parse):
    settings = parse("methods: [peft_lora, peft_ia3]\nmethod_settings: [peft_lora.r=3, 'target_modules=[q_proj]']")
    configs = [recipe.method_config(method, settings) for method in settings.methods]
    assert configs[0].r == 3 and all(config.target_modules == {"q_proj"} for config in configs)


def test_loss_weights(recipe, parse):
    assert recipe.loss_weights(parse("tasks: [semseg]\nloss_weights: [uniform]")) == {"semseg": 1.0}
    assert recipe.loss_weights(parse("loss_weights: semseg=1e-1")) == {"semseg": 0.1}


def test_every_schedule_needs_nothing_but_steps(load_recipe):
    for name in load_recipe("optimization").SCHEDULES:
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        scheduler = get_scheduler(name, optimizer, 1, 4)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("colour: red", r"settings.yaml: unknown settings \['colour'\]; known are"),
        ("- steps", r"settings.yaml must hold one `name: value` a line, got \['steps'\]"),
        ("steps: [", "settings.yaml is no YAML"),
        ("steps: 2020-99-99", "settings.yaml is no YAML: month must be in 1..12"),
        ("tasks: &a [semseg]\nmethods: *a", r"settings.yaml is no YAML: it has an alias \(\*name\)"),
        ("[" * 5000, "settings.yaml is no YAML: it is nested deeper than 16"),
        ("steps: !!python/name:os.system", "settings.yaml is no YAML: could not determine a constructor"),
        ("methods: [full]\nmethod_settings: [rank=3]", r"none of the methods \['full'\] has settings, got 'rank'"),
        ("method_settings: [rank=3, rank=4]", "must give each name once"),
        ("schedule: constant\nwarmup_steps: 3", "'constant' has no warm-up"),
        ("steps: 5\nwarmup_steps: 5", "training goes on after it"),
        ("methods: [lora2]", r"`methods` must be among \['full', 'single_task'"),
        ("methods: [full, full]", "each once"),
        ("methods: {polyhistor: 1}", r"settings.yaml: `methods` must be a list of texts, got \{'polyhistor': 1\}"),
        ("tasks: [1]", "`tasks` must be a list of texts"),
        ("tasks: [depth]", r"Unknown tasks \['depth'\]"),
        ("steps: 1.5", r"settings.yaml: `steps` must be a whole number, got 1\.5"),
        ("steps: true", "`steps` must be a whole number, got True"),
        ("learning_rate: fast", "`learning_rate` must be a number, got 'fast'"),
        ("learning_rate: yes", "`learning_rate` must be a number, got True"),
        ("gradient_checkpointing: 1", "`gradient_checkpointing` must be true or false, got 1"),
        ("tracker: no", "`tracker` must be a text, got False"),
        ("tracker: paper", r"`tracker` must be among \['none', 'tensorboard'"),
        ("mixed_precision: fp64", "`mixed_precision` must be among"),
        ("schedule: reduce_lr_on_plateau", r"`schedule` must be among \['linear'"),
        ("optimizer: lion", "`optimizer` must be among"),
        ("batch_size: 0", "`batch_size` must be at least 1, got 0"),
        ("image_size: 31", "`image_size` must be at least 32, got 31"),
        ("workers: -1", "`workers` must be at least 0, got -1"),
        ("eval_every: -1", "`eval_every` must be at least 0"),
        ("warmup_steps: -1", "`warmup_steps` must be at least 0"),
        ("learning_rate: 0", "`learning_rate` must be above 0, got 0"),
        ("learning_rate: .nan", "`learning_rate` must be finite, got nan"),
        ("epochs: .inf", "`epochs` must be finite, got inf"),
        ("epochs: 0", "Nothing to train"),
        ("holdout: 1", "`holdout` must be below 1, got 1"),
        ("holdout: -0.1", "`holdout` must be at least 0, got -0.1"),
        ('data: ""', "`data` is empty; give --data FOLDER"),
        ("loss_weights: [semseg]", "`loss_weights` must be items of the form name=value"),
        ("loss_weights: [depth=1]", "got depth=1"),
        ("loss_weights: [semseg=0]", "a weight above 0, got semseg=0"),
        ("method_settings: [ranks=4]", r"'polyhistor_lite' has no field \['ranks'\]; it has \[.*'rank'"),
        ("method_settings: [polyhistr.rank=4]", "is for 'polyhistr'; methods with settings are"),
        ("methods: peft_lora\nmethod_settings: [ranks=4]", r"'peft_lora' has no field \['ranks'\]; it has \[.*'r'"),
        ("method_settings: [rank=0]", "of method 'polyhistor_lite', .*`rank` must be an integer of at least 1"),
        ("method_settings: ['rank=[']", "the value of 'rank=\\[' is no YAML"),
    ],
)
def test_bad_settings_say_what_is_allowed(parse, text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)


def test_missing_file_is_named(recipe):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml: no such file"):
        recipe.parse_settings(["nowhere.yaml"], "")
