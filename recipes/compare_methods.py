# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Compares methods over several seeds, and prints mean and range of their scores.

    accelerate launch recipes/compare_methods.py CONFIG --methods single_task decoders polyhistor_lite --seeds 0 1
    accelerate launch recipes/compare_methods.py CONFIG --methods ... --learning_rates 1e-4 3e-4 1e-3

The recipe takes all settings of train_pascal.py but --seed. Interrupted runs resume and finished runs are not
repeated, unless --resume False is given, so the command can be given again after an interruption, or with more methods
or seeds. Changes are relative to single-task full fine-tuning if `single_task` is among the methods, and otherwise
relative to `decoders`.

With --learning_rates, each method uses the learning rate with the best scores on held-out training images
(--grid_holdout) for the first seed, in runs of --grid_steps. The learning rate of the decoders does not change.

The recipe writes comparison.json, comparison.md and comparison.svg (change against parameters) for the methods and
seeds of the command. For the four tasks of the paper, its figures stand below those of each method. Several commands
may share an output folder if they train different methods; give a last command with all methods.
`python -m peft_polyhistor report` makes a web page of the folder.
"""

import math
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from accelerate import PartialState
from train_pascal import DEFAULT_CONFIG, train

from peft_polyhistor import METHODS, PASCAL_TASKS
from peft_polyhistor.evaluation import headline
from peft_polyhistor.studies import figures, tables
from peft_polyhistor.studies.paper import PaperRow, find_row, read_rows
from peft_polyhistor.studies.rates import check_rates, check_seeds, choose_rate
from peft_polyhistor.studies.results import COMPARISON, Grid
from peft_polyhistor.tasks import declare_tasks
from peft_polyhistor.training.arguments import check_options, option, run_recipe
from peft_polyhistor.training.files import write_json, write_text
from peft_polyhistor.training.methods import MethodChoice, make_config, parse_methods
from peft_polyhistor.training.settings import Settings as RunSettings


PAPER = Path(__file__).parent / "paper" / "tables.csv"
GRID_HOLDOUT = 0.1


@dataclass
class Settings(RunSettings):
    """Settings of all runs."""

    resume: bool = option(True, "resume interrupted runs, and do not repeat finished ones")


@dataclass
class Comparison:
    """Settings of the comparison itself."""

    seeds: list[int] = option([0, 1], "seeds of the runs of each method, each 0 or more")
    learning_rates: list[float] = option([], "rates to choose from per method; by default --learning_rate for all")
    grid_holdout: float = option(GRID_HOLDOUT, "fraction of the training images that the choice is scored on", below=1)
    grid_steps: int = option(0, "optimiser steps of the runs for the choice; 0: as many as in all runs", at_least=0)

    def __post_init__(self):
        check_options(self)
        if (self.grid_holdout != GRID_HOLDOUT or self.grid_steps) and not self.learning_rates:
            raise ValueError("`grid_holdout` and `grid_steps` are for a grid: give --learning_rates too.")
        if self.grid_holdout <= 0:
            raise ValueError(f"`grid_holdout` must be above 0, got {self.grid_holdout}.")
        check_rates(self.learning_rates)
        check_seeds(self.seeds)


def score_grid(settings: Settings, choices: list[MethodChoice], own: Comparison) -> dict[str, Grid]:
    """Scores each method with each learning rate on held-out images; `decoders` has only the decoder rate."""
    # The rate is not chosen on images that the runs are scored on.
    parts = {"left_out": settings.holdout, "holdout": own.grid_holdout}
    settings = replace(settings, seed=own.seeds[0], **parts)
    if own.grid_steps:
        settings = replace(settings, steps=own.grid_steps, eval_every=own.grid_steps)
    grids: dict[str, Grid] = {choice.label: {} for choice in choices}
    for rate in own.learning_rates:
        folder = Path(settings.output_dir) / "grid" / f"seed{settings.seed}" / repr(rate)
        run = replace(settings, learning_rate=rate, output_dir=str(folder))
        for method, choice in zip(settings.methods, choices, strict=True):
            if choice.name == "decoders":
                continue
            try:
                scores = headline(train(method, run)["scores"])
            except FloatingPointError as error:  # one rate that is too high must not end the search
                print(f"{choice.label}, learning rate {rate:g}: {error}", file=sys.stderr)
                scores = dict.fromkeys(declare_tasks(settings.tasks), math.nan)
            grids[choice.label][rate] = scores
    return grids


def run_all(
    settings: Settings, choices: list[MethodChoice], seeds: list[int], grids: dict[str, Grid]
) -> tuple[dict[str, list[dict]], list[str]]:
    """Trains each method with each seed; a chosen rate is part of the run's folder.

    Returns:
        Results by method, of the methods whose runs all finished, and the reasons why the others did not.
    """
    results: dict[str, list[dict]] = {choice.label: [] for choice in choices}
    failures, rates = [], {}
    for choice in choices:
        try:
            rates[choice.label] = choose_rate(grids[choice.label]) if grids.get(choice.label) else None
        except ValueError as error:  # one method that diverges at every rate must not end the study
            failures.append(f"{choice.label}: {error}")
    for seed in seeds:
        for method, choice in zip(settings.methods, choices, strict=True):
            if choice.label not in rates:
                continue
            rate = rates[choice.label]
            folder = Path(settings.output_dir) / f"seed{seed}" / (repr(rate) if rate else "")
            run = replace(settings, seed=seed, learning_rate=rate or settings.learning_rate)
            try:
                results[choice.label].append(train(method, replace(run, output_dir=str(folder))))
            except FloatingPointError as error:  # one run that diverges must not end the study
                failures.append(f"{choice.label}, seed {seed}: {error}")
    return {method: runs for method, runs in results.items() if len(runs) == len(seeds)}, failures


def find_papers(choices: list[MethodChoice], tasks: list[str]) -> dict[str, PaperRow | None]:
    """Finds for each method the row of the paper with the same settings; none for tasks other than the paper's."""
    rows, papers = read_rows(PAPER) if set(tasks) == set(PASCAL_TASKS) else [], {}
    for choice in choices:
        config = make_config(choice, tasks) if choice.name in METHODS else None
        papers[choice.label] = find_row(rows, choice.name, config)
    return papers


def write_all(folder: Path, results: dict, grids: dict[str, Grid], papers: dict[str, PaperRow | None]) -> dict:
    """Writes and prints the comparison; returns the content of comparison.json."""
    reference = tables.reference_of(results)
    methods = {
        method: {
            "learning_rate": None if method == "decoders" else runs[0]["settings"]["learning_rate"],
            "grid": {f"{rate:g}": scores for rate, scores in grids.get(method, {}).items()},
            "changes": tables.change_of(results, method),
            "paper": papers[method] and asdict(papers[method]),
            "runs": runs,
        }
        for method, runs in results.items()
    }
    rows, note = tables.make_rows(results, papers), tables.make_note(results, papers, grids)
    write_json(folder / COMPARISON, {"reference": reference, "methods": methods})
    write_text(folder / "comparison.md", tables.to_markdown(rows, note))
    (folder / "comparison.svg").unlink(missing_ok=True)
    if points := figures.find_points(results):
        label = f"Change relative to {tables.REFERENCES[reference]} by trainable parameters of {', '.join(points)}"
        figure = figures.draw_changes(points, tables.REFERENCES[reference], figures.MEDIUM)
        figures.save_svg(figure, label, folder / "comparison.svg")
    print(tables.align(rows), note, sep="\n")
    print(f"{', '.join(sorted(file.name for file in folder.glob('comparison.*')))} are in {folder}.")
    return {"reference": reference, "methods": methods}


def main(settings: Settings, own: Comparison) -> dict[str, list[dict]]:
    if settings.seed != Settings.seed:
        raise ValueError(f"`seed` has no effect here, got {settings.seed}. Give --seeds {settings.seed}.")
    if 0 < own.grid_steps <= settings.warmup_steps:
        raise ValueError(f"`grid_steps` must be above `warmup_steps`, {settings.warmup_steps}, got {own.grid_steps}.")
    choices, grids = parse_methods(settings.methods), {}
    papers = find_papers(choices, declare_tasks(settings.tasks))
    if own.learning_rates:  # the rate of the decoders stays the same
        if settings.left_out:
            raise ValueError(f"`left_out` must be 0 with --learning_rates, which set it, got {settings.left_out}.")
        settings = replace(settings, decoder_learning_rate=settings.decoder_learning_rate or settings.learning_rate)
        grids = score_grid(settings, choices, own)
    results, failures = run_all(settings, choices, own.seeds, grids)
    grids = {method: grid for method, grid in grids.items() if method in results}
    if results and PartialState().is_main_process:
        write_all(Path(settings.output_dir), results, grids, papers)
    if failures:
        told = f"Runs stopped, so that the table has no methods but {list(results)}:"
        raise FloatingPointError("\n".join([told, *failures]))
    return results


if __name__ == "__main__":
    run_recipe(main, __doc__, DEFAULT_CONFIG, Settings, Comparison)
