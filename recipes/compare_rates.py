# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Compares methods, and variants of hypernetworks, over learning rates and seeds.

    accelerate launch recipes/compare_rates.py CONFIG --learning_rates 1e-4 3e-4 1e-3 3e-3 1e-2 --seeds 0 1 \\
        --methods decoders polyhistor_lite adapter --variants unpaced near

The hypernetworks of this package have gains that set the pace of the weights they generate (`PacedLinear` in
peft_polyhistor/layers/factors.py). --variants also trains each hypernetwork changed when training starts:

- `unpaced`: all gains are 1, so that a step of the optimiser moves the adapters further. The first adapters and the
  number of parameters stay the same.
- `near`: the embeddings of the tasks are near one another.

The recipe takes all settings of train_pascal.py but --seed; --methods must include `decoders`. The learning rate of
the decoders does not change. Interrupted runs resume and finished runs are not repeated. The recipe writes rates.json,
rates.md and rates.svg: the change relative to decoders alone with the same seed, by method and learning rate. For the
paper's four tasks, the table ends with the rank correlation of each column with the paper's Table 1, for the first of
several settings of a method. Other programs cannot load the checkpoints of variants.
"""

import math
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import ClassVar

import pandas as pd
import torch
from accelerate import PartialState
from paper.ranks import HYPERNETWORKS, LEAST, correlate, read_table, to_cell
from torch import nn
from train_pascal import DEFAULT_CONFIG, Settings, train

from peft_polyhistor import PASCAL_TASKS, HyperformerConfig, PolyhistorConfig, PolyhistorLiteConfig
from peft_polyhistor.evaluation import format_scores, headline
from peft_polyhistor.layers.bottleneck import BottleneckTuner
from peft_polyhistor.layers.factors import PacedLinear
from peft_polyhistor.registry import register
from peft_polyhistor.studies import figures
from peft_polyhistor.studies.rates import check_rates, check_seeds
from peft_polyhistor.studies.tables import REFERENCES, align, to_markdown
from peft_polyhistor.tasks import declare_tasks, relative_change
from peft_polyhistor.training.arguments import check_options, option, run_recipe
from peft_polyhistor.training.files import write_json, write_text
from peft_polyhistor.training.methods import parse_methods


TASK_STD = 0.1  # of the entries of task embeddings around their common vector, which is drawn from N(0, 1)
BEST = "best"
NOTE = """\
encoder: trainable parameters there. By learning rate: mean relative change of the scores, in percent, against decoders
alone with the same seed. Several seeds: mean (range). not measured: the run diverged, or a score of the decoders is 0.
best: highest mean, of scores that it is chosen on."""
RANKS_NOTE = """\
order of Table 1: Spearman's rank correlation of the column with the change in the paper's Table 1 (arXiv:2210.03265),
decoders alone included, and the number of methods. A line with the name of a variant has it in place of the
hypernetworks."""


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
class RateGrid:
    """Settings of the grid."""

    variants: list[str] = option([], f"changes of hypernetworks to train too, of {', '.join(VARIANTS)}")
    learning_rates: list[float] = option([1e-4, 3e-4, 1e-3, 3e-3, 1e-2], "rates of each method, each above 0")
    seeds: list[int] = option([0, 1], "seeds of the runs of each method and rate, each 0 or more")

    def __post_init__(self):
        check_options(self)
        if not self.learning_rates:
            raise ValueError("`learning_rates` is empty; give --learning_rates, each above 0.")
        if not set(self.variants) <= VARIANTS.keys() or len(set(self.variants)) < len(self.variants):
            raise ValueError(f"`variants` must be among {[*VARIANTS]}, each once, got {self.variants}.")
        check_rates(self.learning_rates)
        check_seeds(self.seeds)


def add_variants(methods: list, variants: list[str]) -> list:
    """Returns the methods, and after each hypernetwork its variants with the same settings."""
    entries = []
    for choice, entry in zip(parse_methods(methods), methods, strict=True):
        entries.append(entry)
        for variant in variants if choice.name in HYPERNETWORKS else []:
            fields = dict(choice.fields)
            if choice.label != choice.name:
                fields["label"] = f"{choice.label}_{variant}"
            entries.append({f"{choice.name}_{variant}": fields})
    return entries


@dataclass
class Row:
    """A method of the grid."""

    method: str  # its name, which may be that of a variant
    parameters: int | None = None  # trainable in the encoder; `None` until a run has finished
    changes: dict[str, list[float]] = field(default_factory=dict)  # in percent, one per seed, by learning rate

    def add(self, entry: str | dict, settings: Settings, reference: dict[str, float]) -> None:
        """Trains the method, and adds its change against the reference.

        NaN if the run diverges, or if a score of the reference is 0, to which no change is relative.
        """
        change = math.nan
        try:
            results = train(entry, settings)
        except FloatingPointError as error:  # one rate that is too high must not end the grid
            print(f"{entry}, learning rate {settings.learning_rate:g}: {error}", file=sys.stderr)
        else:
            self.parameters = results["parameters"]["encoder"]
            if all(reference.values()):
                change = relative_change(headline(results["scores"]), reference)
        self.changes.setdefault(repr(settings.learning_rate), []).append(change)

    def mean(self, column: str) -> float:
        """Returns the mean change at a learning rate, or the highest of these means; NaN if a run has none."""
        if column != BEST:
            return mean(self.changes[column])
        return max(map(self.mean, self.changes), key=lambda value: (not math.isnan(value), value))


def rank_rows(rows: dict[str, Row], columns: list[str]) -> list[list[str]]:
    """Returns the rank correlations of columns with the paper's Table 1, a line per kind of hypernetworks."""
    papers = pd.Series({name: float(row.change) for name, row in read_table().items()})
    lines = []
    for suffix in ("", *(f"_{variant}" for variant in VARIANTS)):
        names = {f"{name}{suffix}" if name in HYPERNETWORKS else name: name for name in papers.index}
        found = {names[row.method]: row for row in reversed(rows.values()) if row.method in names}
        if found.keys() & set(HYPERNETWORKS) and len(found) + 1 >= LEAST:
            lines.append([f"order of Table 1{suffix.replace('_', ', ')}"])
            for column in columns:
                ours = {"decoders": 0.0} | {name: row.mean(column) for name, row in found.items()}
                value, count = correlate(pd.Series(ours), papers)
                lines[-1].append(f"{to_cell(value)} ({count} methods)")
    return lines


def write_all(folder: Path, rows: dict[str, Row], is_paper: bool) -> None:
    """Writes and prints the grid; `is_paper`: whether the tasks are those of the paper."""
    rates = list(next(iter(rows.values())).changes)
    lines = [["method", "encoder", *rates, BEST]]
    for label, row in rows.items():
        cells = (format_scores(row.changes[rate], "+") for rate in rates)
        parameters = "-" if row.parameters is None else f"{row.parameters:,}"
        lines.append([label, parameters, *cells, format_scores([row.mean(BEST)], "+")])
    ranks = [[title, "", *cells] for title, *cells in (rank_rows(rows, [*rates, BEST]) if is_paper else [])]
    note = f"{NOTE}\n{RANKS_NOTE}" if ranks else NOTE
    write_json(folder / "rates.json", {label: asdict(row) for label, row in rows.items()})
    write_text(folder / "rates.md", to_markdown(lines + ranks, note))
    points = {label: {float(rate): row.changes[rate] for rate in rates} for label, row in rows.items()}
    figure = figures.draw_rates(points, REFERENCES["decoders"], figures.MEDIUM)
    figures.save_svg(figure, f"Change by learning rate: {', '.join(points)}", folder / "rates.svg")
    print(align(lines + ranks), note, sep="\n")


def main(settings: Settings, grid: RateGrid) -> dict[str, Row]:
    """Trains the grid; returns its rows by the label of the method."""
    if settings.seed != Settings.seed:
        raise ValueError(f"`seed` has no effect here, got {settings.seed}. Give --seeds {settings.seed}.")
    register_variants()
    methods = add_variants(settings.methods, grid.variants)
    choices = parse_methods(methods)
    entries = {choice.label: entry for choice, entry in zip(choices, methods, strict=True)}
    if "decoders" not in entries or len(entries) == 1:
        raise ValueError(f"`methods` must be 'decoders', the reference, and others, got {settings.methods}.")
    decoders, output = entries.pop("decoders"), Path(settings.output_dir)
    settings = replace(settings, decoder_learning_rate=settings.decoder_learning_rate or settings.learning_rate)
    rows = {choice.label: Row(choice.name) for choice in choices if choice.label in entries}
    for seed in grid.seeds:
        folder = output / f"seed{seed}"
        settings = replace(settings, seed=seed, resume=True, output_dir=str(folder))
        reference = headline(train(decoders, settings)["scores"])
        for label, entry in entries.items():
            for rate in grid.learning_rates:
                run = replace(settings, learning_rate=rate, output_dir=str(folder / repr(rate)))
                rows[label].add(entry, run, reference)
    if PartialState().is_main_process:
        write_all(output, rows, is_paper=set(declare_tasks(settings.tasks)) == set(PASCAL_TASKS))
    return rows


if __name__ == "__main__":
    run_recipe(main, __doc__, DEFAULT_CONFIG, Settings, RateGrid)
