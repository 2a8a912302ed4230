# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The settings of train_pascal.py, from a YAML file and arguments, checked before anything is loaded."""

import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from accelerate.tracking import get_available_trackers
from methods import CONFIGS, NAMES, check_items, method_config
from optimization import OPTIMIZERS, SCHEDULES
from transformers import HfArgumentParser
from watch import ON_BAD_STEP
from yaml_values import convert, read_pairs, read_yaml

from peft_polyhistor import TASKS, get_tasks


DEFAULT_CONFIG = Path(__file__).parent / "configs" / "scenes_swin_micro_polyhistor_lite.yaml"
PRECISIONS = ["no", "bf16", "fp16"]
AT_LEAST = {
    "image_size": 32,  # the coarsest stride of the encoders
    **dict.fromkeys(("decoder_width", "batch_size", "gradient_accumulation", "preparation_workers", "log_every"), 1),
    **dict.fromkeys(("epochs", "steps", "warmup_steps", "eval_every", "workers", "seed"), 0),
    **dict.fromkeys(("decoder_dropout", "decoder_learning_rate", "weight_decay", "max_grad_norm", "holdout"), 0),
}


def option(default, text: str):
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": text})
    return field(default=default, metadata={"help": text})


@dataclass
class Settings:
    """Everything a run depends on; optimiser and schedule default to the paper's (arXiv:2210.03265, Sec. 5.1).

    Raises:
        ValueError: A setting is not among the allowed ones; the message says which those are.
    """

    data: str = option(
        "scenes", "'scenes' (embedded), a PASCAL_MT folder, a folder of parquet files, or a Hub dataset"
    )
    encoder: str = option("swin-micro", "'swin-micro' (embedded), or a folder or Hub id of transformers")
    methods: list[str] = option(["polyhistor_lite"], f"any of {NAMES}")
    method_settings: list[str] = option(
        [], "fields of the methods' configs: name=value for every method of the run, method.name=value for one"
    )
    tasks: list[str] = option(list(TASKS), "names of tasks")
    loss_weights: list[str] = option([], "task=weight; others keep their own. 'uniform' weighs all tasks 1")
    image_size: int = option(512, "side of the pictures, pixels")
    decoder_width: int = option(256, "channels inside the decoders")
    decoder_dropout: float = option(0.1, "probability of zeroing a channel in front of the classifier")
    epochs: float = option(60.0, "passes over the training pictures")
    steps: int = option(0, "optimiser steps; above 0 it replaces --epochs")
    batch_size: int = option(12, "pictures per process and step")
    gradient_accumulation: int = option(1, "batches per optimiser step")
    optimizer: str = option("adam", f"one of {list(OPTIMIZERS)}")
    learning_rate: float = option(1e-4, "at the start, after the warm-up")
    decoder_learning_rate: float = option(0.0, "of the decoders; 0: the same. Hypernetworks want a smaller one")
    weight_decay: float = option(1e-4, "as the optimiser understands it")
    schedule: str = option("linear", f"one of {SCHEDULES}, as in transformers")
    warmup_steps: int = option(0, "optimiser steps")
    max_grad_norm: float = option(0.0, "clip gradients to this norm; 0 leaves them")
    on_bad_step: str = option("stop", f"one of {ON_BAD_STEP}: at a step whose loss or gradient is not finite")
    mixed_precision: str = option("no", f"one of {PRECISIONS}")
    gradient_checkpointing: bool = option(False, "recompute the encoder in the backward pass to save memory")
    backward_per_task: bool = option(False, "free what a task keeps before the next: memory of one task, same result")
    workers: int = option(4, "processes that load pictures")
    preparation_workers: int = option(2, "processes that prepare the data before the first run on it")
    holdout: float = option(0.0, "part of the training pictures to score instead of the val split; 0: that split")
    seed: int = option(0, "of weights, order and augmentation")
    eval_every: int = option(0, "optimiser steps between evaluations and checkpoints; 0: once per epoch")
    log_every: int = option(10, "optimiser steps between recorded losses")
    resume: bool = option(False, "go on from the last state in the output folder, where there is one")
    tracker: str = option("none", "none, tensorboard or another installed tracker of accelerate")
    output_dir: str = option("runs/train_pascal", "where results go")

    def __post_init__(self):
        for name, hint in (("data", "FOLDER"), ("encoder", "NAME"), ("output_dir", "FOLDER")):
            if not getattr(self, name):
                raise ValueError(f"`{name}` is empty; give --{name} {hint}.")
        get_tasks(self.tasks)
        _require("methods", self.methods, NAMES)
        _require("optimizer", [self.optimizer], list(OPTIMIZERS))
        _require("schedule", [self.schedule], SCHEDULES)
        _require("on_bad_step", [self.on_bad_step], ON_BAD_STEP)
        _require("mixed_precision", [self.mixed_precision], PRECISIONS)
        # Of the trackers that are not installed accelerate makes none, and says nothing.
        _require("tracker", [self.tracker], ["none", *map(str, get_available_trackers())])
        self._check_numbers()
        loss_weights(self)
        check_items(self)
        for method in self.methods:
            if method in CONFIGS:
                method_config(method, self)

    def _check_numbers(self) -> None:
        for setting in fields(self):
            name, value = setting.name, getattr(self, setting.name)
            if setting.type is float and not math.isfinite(value):
                raise ValueError(f"`{name}` must be finite, got {value}.")
            if name in AT_LEAST and value < AT_LEAST[name]:
                raise ValueError(f"`{name}` must be at least {AT_LEAST[name]}, got {value}.")
        if self.learning_rate <= 0:
            raise ValueError(f"`learning_rate` must be above 0, got {self.learning_rate}.")
        for name in ("decoder_dropout", "holdout"):
            if getattr(self, name) >= 1:
                raise ValueError(f"`{name}` must be below 1, got {getattr(self, name)}.")
        if self.steps == 0 and self.epochs == 0:
            raise ValueError("Nothing to train: epochs=0 and steps=0. Set one of them above 0.")
        if self.warmup_steps and (self.schedule == "constant" or 0 < self.steps <= self.warmup_steps):
            raise ValueError(
                f"`warmup_steps` {self.warmup_steps} does not go with schedule='{self.schedule}' and steps="
                f"{self.steps}: 'constant' has no warm-up ('constant_with_warmup' has), and training goes on after it."
            )


def _require(name: str, given: list[str], allowed: list[str]) -> None:
    wrong = [value for value in given if value not in allowed]
    if wrong or not given or len(set(given)) < len(given):
        raise ValueError(f"`{name}` must be among {allowed}, each once, got {wrong or given}.")


def loss_weights(settings: Settings) -> dict[str, float]:
    """Weight of each task's loss by task; tasks that are not in it keep the weight of their row.

    Raises:
        ValueError: An item names no task of the run, or its weight is no positive number.
    """
    if settings.loss_weights == ["uniform"]:
        return dict.fromkeys(settings.tasks, 1.0)
    weights = read_pairs("loss_weights", settings.loss_weights)
    for task, weight in weights.items():
        is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if task not in settings.tasks or not is_number or not (math.isfinite(weight) and weight > 0):
            raise ValueError(
                f"`loss_weights` must be 'uniform' or items task=weight with a task of {settings.tasks} and a weight "
                f"above 0, got {task}={weight}."
            )
    return weights


def parse_settings(argv: list[str], description: str) -> Settings:
    """Settings from an optional YAML file, which comes first, and arguments, which win.

    Raises: Those of `parse_with`.
    """
    return parse_with(argv, description)[0]


def parse_with(argv: list[str], description: str, *others: type) -> tuple:
    """The settings, and an instance of each other dataclass of options, which only arguments give.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A setting is unknown, of another type than its field, or not allowed.
    """
    file, argv = (Path(argv[0]), argv[1:]) if argv and not argv[0].startswith("-") else (DEFAULT_CONFIG, argv)
    # No abbreviations: one option may begin like another.
    parser = HfArgumentParser([Settings, *others], description=description, allow_abbrev=False)
    parser.set_defaults(**_read_file(file))
    return parser.parse_args_into_dataclasses(argv)


def _read_file(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file. Give a YAML file of settings first, or only --name value.")
    try:
        values = read_yaml(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is no YAML: {error}. Write one `name: value` a line.") from error
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise ValueError(f"{file} must hold one `name: value` a line, got {values!r}.")
    types = {field.name: field.type for field in fields(Settings)}
    unknown = sorted(map(str, set(values) - set(types)))
    if unknown:
        raise ValueError(f"{file}: unknown settings {unknown}; known are {list(types)}.")
    try:
        return {name: convert(name, value, types[name]) for name, value in values.items()}
    except TypeError as error:
        raise ValueError(f"{file}: {error}") from error
