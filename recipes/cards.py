# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Fills hub_cards/: the card of every config that trains one checkpoint.

    python recipes/cards.py

Scores are those of recipes/results/CONFIG.json, the results of recorded runs with different seeds, the published one
first. Without such a file the card says that nothing was measured. Needs no weights and no network.
"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from huggingface_hub import ModelCard
from methods import build_model
from records import record_of, record_without_run
from settings import Settings, loss_weights, parse_settings
from torch import nn
from transformers import SwinConfig, SwinModel

from peft_polyhistor.hub.cards import make_card
from peft_polyhistor.hub.publishing import save_adapter
from peft_polyhistor.hub.weights import WEIGHTS


HERE = Path(__file__).parent
CARDS = HERE.parent / "hub_cards"
CONFIGS = {
    "pascal_swin_tiny_polyhistor_lite": "polyhistor_lite",
    "scenes_swin_micro_polyhistor_lite": "polyhistor_lite",
}
ARCHITECTURES = {"microsoft/swin-tiny-patch4-window7-224": SwinConfig}  # of encoders that would be downloaded


def encoder_of(settings: Settings) -> nn.Module | None:
    """An encoder of the same shapes with random weights; None for the embedded one, which is here."""
    if settings.encoder not in ARCHITECTURES:
        return None
    encoder = SwinModel(ARCHITECTURES[settings.encoder]())
    encoder.config.name_or_path = settings.encoder
    return encoder


def fill(name: str) -> ModelCard:
    """The card of the config of this name."""
    config, runs = HERE / "configs" / f"{name}.yaml", HERE / "results" / f"{name}.json"
    # A card needs no data, so where the config asks for a folder any name will do.
    settings = parse_settings([str(config), "--data", "scenes" if name.startswith("scenes") else "PASCAL_MT"], "")
    if runs.is_file():
        first, *others = json.loads(runs.read_text(encoding="utf-8"))
        training = record_of(first, "best", others, config)
    else:
        training = record_without_run(settings, config)
    torch.manual_seed(0)
    model = build_model(CONFIGS[name], settings, loss_weights(settings), encoder_of(settings))
    with TemporaryDirectory() as folder:
        size = (save_adapter(model, "default", Path(folder)) / WEIGHTS).stat().st_size
    return make_card(model, "default", f"user/{name}", size, training)


if __name__ == "__main__":
    for name in CONFIGS:
        fill(name).save(CARDS / f"{name}.md")
