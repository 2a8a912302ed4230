# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Trains methods with several seeds, everything else equal, and prints mean and range beside the paper's figures.

    accelerate launch recipes/compare_methods.py CONFIG --methods single_task decoders polyhistor_lite --seeds 0 1
    accelerate launch recipes/compare_methods.py CONFIG --methods ... --learning_rates 1e-4 3e-4 1e-3

Takes the settings of train_pascal.py. Every run resumes, and finished runs are not repeated, so the command can be
given again after an interruption, or with more methods or seeds. Changes are against single-task full fine-tuning
where `single_task` is among the methods, else against `decoders`. With --learning_rates, each method takes the best of
them on a held-out part of the training pictures (--grid_holdout, 0.1 of them) with the first seed, in runs of
--grid_steps (0: as long as all); the rate of the decoders stays. Writes comparison.json, comparison.md and
comparison.svg (change against parameters) of the methods and seeds of the command: processes may share a folder if
they train different methods, and the last command names all. report.py makes a page of it.
"""

import sys
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from accelerate import PartialState
from atomic import replace_file, write_json
from charts import save_chart
from learning_rates import choose_rate, fix_decoder_rate, score_grid
from methods import method_config
from plot import draw_plot, find_points
from settings import Settings, option, parse_with
from train_pascal import train

from peft_polyhistor import METHODS
from peft_polyhistor.studies.paper import PaperRow, find_row, read_rows
from peft_polyhistor.studies.tables import (
    REFERENCES,
    align,
    change_of,
    make_note,
    make_rows,
    reference_of,
    to_markdown,
)


GRID_HOLDOUT = 0.1


@dataclass
class Comparison:
    """Options of the comparison itself.

    Raises:
        ValueError: A seed is below 0 or given twice, or there are options of a grid and no rates for it.
    """

    seeds: list[int] = option([0, 1], "Seeds of the runs of each method.")
    learning_rates: list[float] = option([], "Grid each method takes its rate from; none: learning_rate for all.")
    grid_holdout: float = option(GRID_HOLDOUT, "Part of the training pictures that the grid is scored on.")
    grid_steps: int = option(0, "Optimiser steps of the grid's runs; 0: as long as all.")

    def __post_init__(self):
        if (self.grid_holdout != GRID_HOLDOUT or self.grid_steps) and not self.learning_rates:
            raise ValueError("`grid_holdout` and `grid_steps` are for a grid: give --learning_rates too.")
        if len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"`seeds` must be 0 or more, each once, got {self.seeds}.")


def run_all(settings: Settings, seeds: list[int], rates: dict[str, float]) -> dict[str, list[dict]]:
    """Results by method, one per seed; trains what is missing, each method with its own rate where it has one.

    A rate that was chosen is part of the folder's name: another choice, over a larger grid, is another run.

    Raises:
        ValueError: A run was made with other settings.
    """
    results: dict[str, list[dict]] = {method: [] for method in settings.methods}
    for seed in seeds:
        folder = Path(settings.output_dir) / f"seed{seed}"
        for method in settings.methods:
            rate = rates.get(method, settings.learning_rate)
            of_rate = folder / repr(rate) if method in rates else folder
            run = replace(settings, seed=seed, learning_rate=rate, output_dir=str(of_rate), resume=True)
            results[method].append(train(method, run))
    return results


def find_papers(settings: Settings) -> dict[str, PaperRow | None]:
    """By method, the row of the paper with the same settings of the method."""
    rows = read_rows(Path(__file__).parent / "paper" / "tables.csv")
    return {
        method: find_row(rows, method, method_config(method, settings) if method in METHODS else None)
        for method in settings.methods
    }


def summarise(results: dict, grid: dict, papers: dict[str, PaperRow | None]) -> dict:
    """What comparison.json holds: by method its changes, its learning rate and grid, the paper's row and its runs."""
    methods = {
        method: {
            "learning_rate": None if method == "decoders" else runs[0]["settings"]["learning_rate"],
            "grid": {f"{rate:g}": scores for rate, scores in grid.get(method, {}).items()},
            "changes": change_of(results, method),
            "paper": papers[method] and asdict(papers[method]),
            "runs": runs,
        }
        for method, runs in results.items()
    }
    return {"reference": reference_of(results), "methods": methods}


def write_all(folder: Path, results: dict, summary: dict, papers: dict[str, PaperRow | None]) -> None:
    rows, note = make_rows(results, papers), make_note(results, papers)
    write_json(folder / "comparison.json", summary)
    replace_file(folder / "comparison.md", lambda file: file.write_text(to_markdown(rows, note), encoding="utf-8"))
    (folder / "comparison.svg").unlink(missing_ok=True)
    if points := find_points(results):
        plot = draw_plot(points, REFERENCES[summary["reference"]])
        replace_file(folder / "comparison.svg", partial(save_chart, plot))
    print(align(rows), note, sep="\n")
    print(f"{', '.join(sorted(file.name for file in folder.glob('comparison.*')))} are in {folder}.")


def main(argv: list[str]) -> dict:
    settings, own = parse_with(argv, __doc__, Comparison)
    grid = {}
    if own.learning_rates:
        settings = fix_decoder_rate(settings)
        grid = score_grid(replace(settings, seed=own.seeds[0]), own.learning_rates, own.grid_holdout, own.grid_steps)
    results = run_all(settings, own.seeds, {method: choose_rate(scores) for method, scores in grid.items()})
    papers = find_papers(settings)
    summary = summarise(results, grid, papers)
    if PartialState().is_main_process:
        write_all(Path(settings.output_dir), results, summary, papers)
    return summary


if __name__ == "__main__":
    main(sys.argv[1:])
    PartialState().destroy_process_group()
