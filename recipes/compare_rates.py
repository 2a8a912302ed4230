# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Compares methods over learning rates and seeds.

    accelerate launch recipes/compare_rates.py CONFIG --learning_rates 1e-4 3e-4 1e-3 3e-3 1e-2 --seeds 0 1 \\
        --methods decoders polyhistor_lite adapter --paper_start True

The hypernetworks of this package have gains that set the pace of the weights they generate (`PacedLinear` in
peft_polyhistor/layers/factors.py), and inputs that start as unit vectors (peft_polyhistor/methods/polyhistor.py).
--paper_start also trains each hypernetwork as in the paper, as `..._paper`: its embeddings and projectors start at
random, and all gains are 1. The number of parameters stays the same.

The recipe takes all settings of train_pascal.py but --seed; --methods must include `decoders`. The learning rate of
the decoders does not change. Interrupted runs resume and finished runs are not repeated, unless --resume False is
given. The recipe writes rates.json, rates.md and rates.svg: the change relative to decoders alone with the same seed,
by method and learning rate. For the paper's four tasks, the table ends with the rank correlation of each column with
the paper's Table 1, for the first of several settings of a method. Other programs cannot load the checkpoints of
`..._paper`.
"""

import math
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import ClassVar

import pandas as pd
import torch
from accelerate import PartialState
from compare_methods import DEFAULT_CONFIG, Settings
from paper.ranks import HYPERNETWORKS, LEAST, correlate, read_table, to_cell
from torch import nn
from train_pascal import train

from peft_polyhistor import PASCAL_TASKS, HyperformerConfig, PolyhistorConfig, PolyhistorLiteConfig
from peft_polyhistor.evaluation import format_scores, headline
from peft_polyhistor.layers.bottleneck import BottleneckTuner
from peft_polyhistor.layers.factors import PacedLinear, Projector
from peft_polyhistor.registry import register
from peft_polyhistor.studies import figures
from peft_polyhistor.studies.rates import check_rates, check_seeds
from peft_polyhistor.studies.tables import REFERENCES, align, to_markdown
from peft_polyhistor.tasks import declare_tasks, relative_change
from peft_polyhistor.training.arguments import check_options, option, run_recipe
from peft_polyhistor.training.files import write_json, write_text
from peft_polyhistor.training.methods import parse_methods


PAPER = "_paper"  # ends the names of hypernetworks that start as in the paper
BEST = "best"
NOTE = """\
encoder: trainable parameters there. By learning rate: mean relative change of the scores, in percent, against decoders
alone with the same seed. Several seeds: mean (range). not measured: the run diverged, or a score of the decoders is 0.
best: highest mean, of scores that it is chosen on."""
RANKS_NOTE = """\
order of Table 1: Spearman's rank correlation of the column with the change in the paper's Table 1 (arXiv:2210.03265),
decoders alone included, and the number of methods. "paper": with the start of the paper for hypernetworks."""


@torch.no_grad()
def start_as_in_paper(generator: nn.Module) -> None:
    """Draws embeddings and projectors at random, and sets all gains to 1."""
    generator.task_embedding.normal_()
    for layer in generator.modules():
        if isinstance(layer, PacedLinear):
            layer.weight.mul_(layer.gain)
            layer.gain.fill_(1)
        elif isinstance(layer, nn.LayerNorm):
            nn.init.zeros_(layer.bias)
    for projector in generator.modules():
        if isinstance(projector, Projector):
            nn.init.kaiming_normal_(projector[2].weight, nonlinearity="relu")


def register_with_paper_start(config_class: type) -> None:
    """Registers a method that differs from that of the config in its start alone."""

    @dataclass
    class PaperConfig(config_class):
        method: ClassVar[str] = f"{config_class.method}{PAPER.upper()}"

        def make_generator(self, sites):
            generator = super().make_generator(sites)
            start_as_in_paper(generator)
            return generator

    class PaperModel(BottleneckTuner):
        prefix = f"{PaperConfig.method.lower()}_"

    register(PaperConfig.method, PaperConfig, PaperModel)


@dataclass
class RateGrid:
    """Settings of the grid."""

    paper_start: bool = option(False, "train each hypernetwork with the start of the paper too")
    learning_rates: list[float] = option([1e-4, 3e-4, 1e-3, 3e-3, 1e-2], "rates of each method, each above 0")
    seeds: list[int] = option([0, 1], "seeds of the runs of each method and rate, each 0 or more")

    def __post_init__(self):
        check_options(self)
        if not self.learning_rates:
            raise ValueError("`learning_rates` is empty; give --learning_rates, each above 0.")
        check_rates(self.learning_rates)
        check_seeds(self.seeds)


def add_paper_starts(methods: list) -> list:
    """Returns the methods, and after each hypernetwork the one with the paper's start and the same settings."""
    entries = []
    for choice, entry in zip(parse_methods(methods), methods, strict=True):
        entries.append(entry)
        if choice.name in HYPERNETWORKS:
            label = {} if choice.label == choice.name else {"label": f"{choice.label}{PAPER}"}
            entries.append({f"{choice.name}{PAPER}": {**choice.fields, **label}})
    return entries


@dataclass
class Row:
    """A method of the grid."""

    method: str  # its name
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
    """Returns the rank correlations of columns with the paper's Table 1, a line per start of hypernetworks."""
    papers = pd.Series({name: float(row.change) for name, row in read_table().items()})
    lines = []
    for suffix in ("", PAPER):
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
    for config_class in (HyperformerConfig, PolyhistorConfig, PolyhistorLiteConfig):
        register_with_paper_start(config_class)
    methods = add_paper_starts(settings.methods) if grid.paper_start else settings.methods
    choices = parse_methods(methods)
    entries = {choice.label: entry for choice, entry in zip(choices, methods, strict=True)}
    if "decoders" not in entries or len(entries) == 1:
        raise ValueError(f"`methods` must be 'decoders', the reference, and others, got {settings.methods}.")
    decoders, output = entries.pop("decoders"), Path(settings.output_dir)
    settings = replace(settings, decoder_learning_rate=settings.decoder_learning_rate or settings.learning_rate)
    rows = {choice.label: Row(choice.name) for choice in choices if choice.label in entries}
    for seed in grid.seeds:
        folder = output / f"seed{seed}"
        settings = replace(settings, seed=seed, output_dir=str(folder))
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
