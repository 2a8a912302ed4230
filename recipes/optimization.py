# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Optimiser, schedule and number of steps of train_pascal.py."""

import math
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.utils.data import DataLoader

from peft_polyhistor.evaluation import is_of_decoder


if TYPE_CHECKING:
    from settings import Settings

OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
# Of transformers; its others want settings of their own, or a score at every step.
SCHEDULES = [
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
]


def make_optimizer(model: nn.Module, settings: "Settings") -> torch.optim.Optimizer:
    """Over what is trainable, with a learning rate for the decoders and one for the rest."""
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    encoder = [p for name, p in parameters.items() if not is_of_decoder(name)]
    decoders = [p for name, p in parameters.items() if is_of_decoder(name)]
    decoder_rate = settings.decoder_learning_rate or settings.learning_rate
    groups = [{"params": encoder, "lr": settings.learning_rate}, {"params": decoders, "lr": decoder_rate}]
    return OPTIMIZERS[settings.optimizer]([g for g in groups if g["params"]], weight_decay=settings.weight_decay)


def count_steps(loader: DataLoader, settings: "Settings") -> tuple[int, int]:
    """Optimiser steps per epoch and in all, for the prepared loader of the training pictures.

    Raises:
        ValueError: There are not enough pictures for a step.
    """
    if len(loader) < settings.gradient_accumulation:
        raise ValueError(
            f"{len(loader.dataset)} training pictures make {len(loader)} batches of {settings.batch_size} per "
            f"process, fewer than gradient_accumulation={settings.gradient_accumulation}. Lower --batch_size."
        )
    per_epoch = math.ceil(len(loader) / settings.gradient_accumulation)
    return per_epoch, settings.steps or math.ceil(settings.epochs * per_epoch)
