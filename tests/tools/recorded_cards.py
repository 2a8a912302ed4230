# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Fills hub_cards/: the card of every config that trains one checkpoint.

    python tests/tools/recorded_cards.py

Scores are those of recipes/results/CONFIG.json, the results of recorded runs with different seeds, the published one
first. Without such a file the card says that nothing was measured. Needs no weights and no network.
"""

import json
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from huggingface_hub import ModelCard
from transformers import SwinConfig, SwinModel

from peft_polyhistor import MultiTaskDenseModel, load_encoder
from peft_polyhistor.hub.cards import make_card
from peft_polyhistor.hub.publishing import save_adapter
from peft_polyhistor.hub.run_record import record_of
from peft_polyhistor.hub.weights import WEIGHTS
from peft_polyhistor.training import adapt, parse_methods, parse_settings
from peft_polyhistor.training.settings import NEUTRAL, Settings


ROOT = Path(__file__).parents[2]
CARDS = ROOT / "hub_cards"
# By config, the class of an encoder that would be downloaded; a random one has the same shapes.
ENCODERS = {"pascal_swin_tiny_polyhistor_lite": SwinConfig, "scenes_swin_mini_polyhistor_lite": None}


def fill(name: str) -> ModelCard:
    """The card of the config of this name, of its last method."""
    config, runs = ROOT / "recipes/configs" / f"{name}.yaml", ROOT / "recipes/results" / f"{name}.json"
    # A card needs no data, so where the config asks for a folder any name will do.
    data = "scenes" if name.startswith("scenes") else "PASCAL_MT"
    [settings] = parse_settings([str(config), "--data", data], "", config, Settings)
    unmeasured = [{"settings": asdict(settings), "history": []}]
    first, *others = json.loads(runs.read_text(encoding="utf-8")) if runs.is_file() else unmeasured
    training = record_of(first, "best", others, config, NEUTRAL)
    torch.manual_seed(0)
    if ENCODERS[name]:
        encoder = SwinModel(ENCODERS[name]())
        encoder.config.name_or_path = settings.encoder
    else:
        encoder = load_encoder(settings.encoder)
    options = {"decoder_width": settings.decoder_width, "decoder_dropout": settings.decoder_dropout}
    model = MultiTaskDenseModel.from_encoder(encoder, settings.tasks, image_size=settings.image_size, **options)
    model = adapt(model, parse_methods(settings.methods)[-1], settings.tasks)
    with TemporaryDirectory() as folder:
        size = (save_adapter(model, "default", Path(folder)) / WEIGHTS).stat().st_size
    return make_card(model, "default", f"user/{name}", size, training)


if __name__ == "__main__":
    for name in ENCODERS:
        fill(name).save(CARDS / f"{name}.md")
