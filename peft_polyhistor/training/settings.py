# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The settings of a run of recipes/train_pascal.py, and their checks."""

import math
import os
from dataclasses import dataclass

import torch
from accelerate.tracking import get_available_trackers

from ..tasks import PASCAL_TASKS, declare_tasks
from . import arguments
from .arguments import option
from .guard import ON_BAD_STEP
from .methods import parse_methods


OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
CURVES = "linear", "cosine", "constant", "constant_with_warmup", "inverse_sqrt"
# A resumed run may change these settings, because they do not affect the result.
NEUTRAL = ("workers", "preparation_workers", "log_every", "resume", "tracker", "output_dir", "on_bad_step")


@dataclass
class Settings:
    """The settings of a run. Optimiser and schedule default to those of Polyhistor (arXiv:2210.03265, Sec. 5.1).

    Raises:
        ValueError: A setting is not allowed, or contradicts another.
    """

    data: str = option("scenes", "'scenes' (embedded), a folder (PASCAL_MT, image files or parquet), or a Hub id")
    encoder: str = option("swin-mini", "'swin-mini' (embedded), or a folder or Hub id of transformers or timm")
    methods: list[str] = option(["polyhistor_lite"], "names, or mappings such as 'phm: {reduction_factor: 12}'")
    layout: list[str] = option([], "ours=theirs: names in the data of image, image_id, tasks and splits")
    tasks: list[str] = option(list(PASCAL_TASKS), "names, or mappings such as 'depth: {kind: regression, unit: m}'")
    loss_weights: list[str] = option([], "task=weight in the loss, or 'uniform' for 1; by default those of the tasks")
    image_size: int = option(512, "side of the images in pixels", at_least=32)  # the coarsest stride of the encoders
    augmentation: float = option(1.0, "strength of random rotations and scales; 0 only flips", at_least=0, below=4)
    flip: float = option(0.5, "probability of a flip; 0 suits labels that tell left from right", at_least=0, below=1)
    decoder_width: int = option(256, "channels inside the decoders", at_least=1)
    decoder_dropout: float = option(0.1, "probability of zeroing a channel before the classifier", at_least=0, below=1)
    bias_images: int = option(0, "training images whose labels set the decoders' first biases; 0: zero", at_least=0)
    decoders: str = option("", "checkpoint, e.g. RUN/decoders/best, whose decoders the run starts from")
    epochs: float = option(60.0, "passes over the training images", at_least=0)
    steps: int = option(0, "optimiser steps, which replace --epochs; 0 uses --epochs", at_least=0)
    batch_size: int = option(12, "images per process and batch", at_least=1)
    gradient_accumulation: int = option(1, "batches per optimiser step", at_least=1)
    optimizer: str = option("adam", "optimiser of torch.optim", among=list(OPTIMIZERS))
    learning_rate: float = option(1e-4, "learning rate after the warm-up", at_least=1e-12)
    decoder_learning_rate: float = option(0.0, "learning rate of the decoders; 0 uses --learning_rate", at_least=0)
    weight_decay: float = option(1e-4, "weight decay of the optimiser", at_least=0)
    schedule: str = option("linear", "curve of the learning rate, from transformers", among=CURVES)
    warmup_steps: int = option(0, "optimiser steps of the warm-up", at_least=0)
    max_grad_norm: float = option(0.0, "norm that gradients are clipped to; 0 disables clipping", at_least=0)
    on_bad_step: str = option("stop", "reaction to a loss or gradient that is not finite", among=ON_BAD_STEP)
    mixed_precision: str = option("no", "precision of the forward pass", among=["no", "bf16", "fp16"])
    gradient_checkpointing: bool = option(False, "recompute the encoder in the backward pass to save memory")
    backward_per_task: bool = option(False, "one backward pass per task, for the same gradients in less memory")
    threads: int = option(0, "CPU threads of PyTorch per process; 0 keeps the number that it has", at_least=0)
    workers: int = option(min(4, os.cpu_count() or 1), "processes that load images", at_least=0)
    preparation_workers: int = option(2, "processes that prepare the data before its first use", at_least=1)
    holdout: float = option(0.0, "fraction of the training images used as the split val", at_least=0, below=1)
    left_out: float = option(0.0, "fraction of the training images that is not used", at_least=0, below=1)
    seed: int = option(0, "seed of weights, order and augmentation", at_least=0)
    eval_every: int = option(0, "optimiser steps between evaluations and checkpoints; 0: one epoch", at_least=0)
    log_every: int = option(10, "optimiser steps between recorded losses", at_least=1)
    resume: bool = option(False, "resume from the last checkpoint in the output folder, if any")
    tracker: str = option("none", "tracker of accelerate", among=["none", *map(str, get_available_trackers())])
    output_dir: str = option("runs/train_pascal", "folder of the results")

    def __post_init__(self) -> None:
        arguments.check_options(self)
        self.output_dir = os.path.expanduser(self.output_dir)
        self.methods, self.tasks = arguments.read_items(self.methods, "methods"), arguments.read_tasks(self.tasks)
        parse_methods(self.methods)
        arguments.read_layout(self.layout)
        arguments.read_loss_weights(self.loss_weights, declare_tasks(self.tasks))
        if self.steps == 0 and self.epochs == 0:
            raise ValueError("Nothing to train: epochs=0 and steps=0. Set one of them above 0.")
        if self.decoders and self.bias_images:
            raise ValueError(f"`decoders` brings biases: give bias_images=0 with it, got {self.bias_images}.")
        if self.warmup_steps and self.schedule == "constant":
            raise ValueError(f"`warmup_steps` {self.warmup_steps} needs a --schedule with a warm-up, got 'constant'.")
        if self.steps:
            self._check_warmup(self.steps)

    def count_steps(self, images: int, processes: int) -> tuple[int, int]:
        """Counts the optimiser steps of an epoch and of the run.

        Args:
            images: Number of training images.
            processes: Number of processes, which share the images.

        Raises:
            ValueError: There are not enough images for one step, or the run ends before its warm-up.
        """
        batches = images // self.batch_size // processes
        if batches < self.gradient_accumulation:
            found = f"{images} training images make {batches} full batches per process"
            raise ValueError(f"{found}, and a step takes {self.gradient_accumulation}. Lower --batch_size.")
        steps_per_epoch = math.ceil(batches / self.gradient_accumulation)
        total = self.steps or math.ceil(self.epochs * steps_per_epoch)
        self._check_warmup(total)
        return steps_per_epoch, total

    def _check_warmup(self, steps: int) -> None:
        if self.warmup_steps >= steps:
            raise ValueError(
                f"`warmup_steps` must be below the optimiser steps of the run, {steps}, got {self.warmup_steps}. Give "
                "fewer, or more --steps or --epochs."
            )
