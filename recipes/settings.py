# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The settings of train_pascal.py, from a YAML file and arguments."""

from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
import yaml
from transformers import HfArgumentParser

from peft_polyhistor import METHODS, TASKS, get_tasks


DEFAULT_CONFIG = Path(__file__).parent / "configs" / "scenes_swin_micro_polyhistor_lite.yaml"
OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}


def option(default, text: str):
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": text})
    return field(default=default, metadata={"help": text})


@dataclass
class Settings:
    """Everything a run depends on; optimiser and schedule default to the paper's (arXiv:2210.03265, Sec. 5.1)."""

    data: str = option(
        "scenes", "'scenes' (embedded), a PASCAL_MT folder, a folder of parquet files, or a Hub dataset"
    )
    encoder: str = option("swin-micro", "'swin-micro' (embedded), or a folder or Hub id of transformers")
    methods: list[str] = option(["polyhistor_lite"], f"'decoders', 'full' (fine-tuning) or any of {list(METHODS)}")
    method_settings: list[str] = option([], "fields of the method's config, as name=value")
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
    schedule: str = option("linear", "a schedule of transformers, e.g. linear, cosine, constant_with_warmup")
    warmup_steps: int = option(0, "optimiser steps")
    max_grad_norm: float = option(0.0, "clip gradients to this norm; 0 leaves them")
    mixed_precision: str = option("no", "no, bf16 or fp16")
    gradient_checkpointing: bool = option(False, "recompute the encoder in the backward pass to save memory")
    workers: int = option(4, "processes that load pictures")
    seed: int = option(0, "of weights, order and augmentation")
    eval_every: int = option(0, "optimiser steps between evaluations and checkpoints; 0: once per epoch")
    resume: bool = option(False, "go on from the last state in the output folder, where there is one")
    tracker: str = option("none", "none, tensorboard or another tracker of accelerate")
    output_dir: str = option("runs/train_pascal", "where results go")

    def __post_init__(self):
        get_tasks(self.tasks)
        _require("methods", self.methods, ["decoders", "full", *METHODS])
        _require("optimizer", [self.optimizer], list(OPTIMIZERS))
        _require("mixed_precision", [self.mixed_precision], ["no", "bf16", "fp16"])
        for name in ("image_size", "decoder_width", "batch_size", "gradient_accumulation"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.steps < 1 and self.epochs <= 0:
            raise ValueError(
                f"Nothing to train: epochs={self.epochs} and steps={self.steps}. Set one of them above 0."
            )


def _require(name: str, given: list[str], allowed: list[str]) -> None:
    wrong = [value for value in given if value not in allowed]
    if wrong or not given:
        raise ValueError(f"`{name}` must be among {allowed}, got {wrong or given}.")


def parse_settings(argv: list[str], description: str) -> Settings:
    """Settings from an optional YAML file, which comes first, and arguments, which win."""
    file, argv = (Path(argv[0]), argv[1:]) if argv and not argv[0].startswith("-") else (DEFAULT_CONFIG, argv)
    parser = HfArgumentParser(Settings, description=description)
    values = yaml.safe_load(file.read_text()) or {}
    known = [field.name for field in fields(Settings)]
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ValueError(f"{file}: unknown settings {unknown}; known are {known}.")
    parser.set_defaults(**values)
    return parser.parse_args_into_dataclasses(argv)[0]


def read_pairs(items: list[str]) -> dict:
    """`["rank=4"]` to `{"rank": 4}`; values are read as YAML."""
    if any("=" not in item for item in items):
        raise ValueError(f"Expected items of the form name=value, got {items}.")
    return {name: yaml.safe_load(value) for name, value in (item.split("=", 1) for item in items)}
