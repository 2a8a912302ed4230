# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Compares variants of hypernetworks over learning rates and seeds.

    accelerate launch recipes/compare_paces.py CONFIG --learning_rates 1e-4 3e-4 1e-3 3e-3 1e-2 --seeds 0 1 \\
        --methods decoders polyhistor_lite polyhistor_lite_unpaced polyhistor_lite_near adapter

The hypernetworks of this package have gains that set the pace of the weights they generate (`PacedLinear` in
peft_polyhistor/layers/factors.py). The variants change a generator when training starts:

- `..._unpaced`: all gains are 1. The first adapters, the parameters and the functions stay the same.
- `..._near`: the embeddings of the tasks are near one another.

The recipe takes all settings of train_pascal.py but --seed; --methods must include `decoders`. The learning rate of
the decoders does not change. Interrupted runs resume and finished runs are not repeated. The recipe writes paces.json
and paces.md: the change relative to decoders only with the same seed, by method and learning rate. Other programs
cannot load the checkpoints of variants.
"""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from accelerate import PartialState
from torch import nn
from train_pascal import DEFAULT_CONFIG, Settings, train

from peft_polyhistor import HyperformerConfig, PolyhistorConfig, PolyhistorLiteConfig
from peft_polyhistor.evaluation import format_scores, headline
from peft_polyhistor.layers.bottleneck import BottleneckTuner
from peft_polyhistor.layers.factors import PacedLinear
from peft_polyhistor.registry import register
from peft_polyhistor.studies.rates import check_rates, check_seeds
from peft_polyhistor.studies.tables import align, to_markdown
from peft_polyhistor.tasks import relative_change
from peft_polyhistor.training.arguments import check_options, option, run_recipe
from peft_polyhistor.training.files import write_json, write_text
from peft_polyhistor.training.methods import parse_methods


TASK_STD = 0.1  # of the entries of task embeddings around their common vector, which is drawn from N(0, 1)
NOTE = """\
Mean relative change of the scores, in percent, against decoders only with the same seed, by learning rate. Several
seeds: mean (range). not measured: the run diverged, or a score of the decoders is 0."""


@torch.no_grad()
def remove_pace(generator: nn.Module) -> None:
    for layer in generator.modules():
        if isinstance(layer, PacedLinear):
            layer.weight.mul_(layer.gain)
            layer.gain.fill_(1)


@torch.no_grad()
def draw_near(generator: nn.Module) -> None:
    embedding = generator.task_embedding
    embedding.copy_(torch.randn_like(embedding[0]) + TASK_STD * torch.randn_like(embedding))


VARIANTS: dict[str, Callable[[nn.Module], None]] = {"unpaced": remove_pace, "near": draw_near}


def register_variant(config_class: type, variant: str) -> None:
    """Registers the variant of a method, whose config has the same fields."""

    @dataclass
    class VariantConfig(config_class):
        method: ClassVar[str] = f"{config_class.method}_{variant.upper()}"

        def make_generator(self, sites):
            generator = super().make_generator(sites)
            VARIANTS[variant](generator)
            return generator

    class VariantModel(BottleneckTuner):
        prefix = f"{VariantConfig.method.lower()}_"

    register(VariantConfig.method, VariantConfig, VariantModel)


def register_variants() -> None:
    for config_class in (HyperformerConfig, PolyhistorConfig, PolyhistorLiteConfig):
        for variant in VARIANTS:
            register_variant(config_class, variant)


@dataclass
class PaceGrid:
    """Settings of the grid."""

    learning_rates: list[float] = option([1e-4, 3e-4, 1e-3, 3e-3, 1e-2], "rates of each method, each above 0")
    seeds: list[int] = option([0, 1], "seeds of the runs of each method and rate, each 0 or more")

    def __post_init__(self):
        check_options(self)
        if not self.learning_rates:
            raise ValueError("`learning_rates` is empty; give --learning_rates, each above 0.")
        check_rates(self.learning_rates)
        check_seeds(self.seeds)


def change_of(method: str | dict, settings: Settings, reference: dict[str, float]) -> float:
    """Trains a method, and returns its change against the reference in percent.

    NaN if the run diverges, or if a score of the reference is 0, to which no change is relative.
    """
    try:
        scores = headline(train(method, settings)["scores"])
    except FloatingPointError as error:  # one rate that is too high must not end the grid
        print(f"{method}, learning rate {settings.learning_rate:g}: {error}", file=sys.stderr)
        return math.nan
    return relative_change(scores, reference) if all(reference.values()) else math.nan


def main(settings: Settings, grid: PaceGrid) -> dict[str, dict[str, list[float]]]:
    """Trains the grid; returns the changes in percent by method and learning rate, one per seed."""
    if settings.seed != Settings.seed:
        raise ValueError(f"`seed` has no effect here, got {settings.seed}. Give --seeds {settings.seed}.")
    labels = [choice.label for choice in parse_methods(settings.methods)]
    entries = dict(zip(labels, settings.methods, strict=True))
    if "decoders" not in entries or len(entries) == 1:
        raise ValueError(f"`methods` must be 'decoders', the reference, and others, got {settings.methods}.")
    decoders, rates = entries.pop("decoders"), list(map(repr, grid.learning_rates))
    output = Path(settings.output_dir)
    settings = replace(settings, decoder_learning_rate=settings.decoder_learning_rate or settings.learning_rate)
    changes: dict[str, dict[str, list[float]]] = {label: {rate: [] for rate in rates} for label in entries}
    for seed in grid.seeds:
        folder = output / f"seed{seed}"
        settings = replace(settings, seed=seed, resume=True, output_dir=str(folder))
        reference = headline(train(decoders, settings)["scores"])
        for label, entry in entries.items():
            for rate, found in changes[label].items():
                run = replace(settings, learning_rate=float(rate), output_dir=str(folder / rate))
                found.append(change_of(entry, run, reference))
    if PartialState().is_main_process:
        cells = [[label, *(format_scores(found, "+") for found in row.values())] for label, row in changes.items()]
        rows = [["method", *rates], *cells]
        write_json(output / "paces.json", changes)
        write_text(output / "paces.md", to_markdown(rows, NOTE))
        print(align(rows), NOTE, sep="\n")
    return changes


if __name__ == "__main__":
    register_variants()
    run_recipe(main, __doc__, DEFAULT_CONFIG, Settings, PaceGrid)
