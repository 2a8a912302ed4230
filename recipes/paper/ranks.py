# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Compares the order of methods in a study with that in the paper's Table 1 (Polyhistor, arXiv:2210.03265).

    python recipes/paper/ranks.py runs/compare_scenes/comparison.json

The file is the comparison.json that compare_methods.py writes. The script prints the mean of each figure over the
seeds beside the paper's, and Spearman's rank correlation of each column with the number of methods that it counts,
without and with the hypernetworks. A method without a score in some run does not count. Rows of the paper are found by
the name of the method, whatever its settings, because a bottleneck on another encoder needs another reduction factor.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import pandas as pd

from peft_polyhistor import PASCAL_TASKS
from peft_polyhistor.evaluation import headline
from peft_polyhistor.studies.paper import PaperRow, read_rows
from peft_polyhistor.studies.tables import align
from peft_polyhistor.training.methods import parse_methods


TABLES = Path(__file__).with_name("tables.csv")
CHANGE = "change"
HYPERNETWORKS = "hyperformer", "polyhistor", "polyhistor_lite"
LEAST = 3  # methods in an order


def read_table() -> dict[str, PaperRow]:
    """Returns the rows of Table 1 by our names of the methods."""
    return {row.as_ours()[0]: row for row in read_rows(TABLES) if row.table == 1}


def read_columns(file: Path) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    """Returns our figures and those of Table 1, a row per method that both have and a column per figure.

    Returns:
        Our figures, NaN where a run has none; those of Table 1; and the rows of hypernetworks.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is no comparison of the tasks of the paper, has no changes, or has fewer than three
            methods of Table 1.
    """
    try:
        methods = json.loads(file.read_text(encoding="utf-8"))["methods"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is no comparison.json of compare_methods.py ({error!r}).") from error
    table = read_table()
    ours, papers, hypernetworks = {}, {}, []
    for label, study in methods.items():
        first = study["runs"][0]
        name = next(choice.name for choice in parse_methods(first["settings"]["methods"]) if choice.label == label)
        if row := table.get(name):
            if missing := set(PASCAL_TASKS) - first["scores"].keys():
                raise ValueError(f"The study in {file} lacks {sorted(missing)}, which Table 1 has.")
            if study["changes"] is None:
                raise ValueError(
                    f"The study in {file} has no changes, as it lacks a reference whose scores are measured and not "
                    "0. Train `single_task` or `decoders` too."
                )
            scores = [headline(run["scores"]) for run in study["runs"]]
            tasks = {task: mean(score[task] for score in scores) for task in PASCAL_TASKS}
            ours[label] = tasks | {CHANGE: mean(study["changes"])}
            hypernetworks += [label] if name in HYPERNETWORKS else []
            papers[label] = {task: float(row.scores[task]) for task in PASCAL_TASKS} | {CHANGE: float(row.change)}
    if len(ours) < LEAST:
        raise ValueError(f"{file} has {len(ours)} methods of Table 1. An order needs at least {LEAST}.")
    return pd.DataFrame.from_dict(ours, orient="index"), pd.DataFrame.from_dict(papers, orient="index"), hypernetworks


def correlate(ours: pd.Series, papers: pd.Series) -> tuple[float, int]:
    """Returns the rank correlation over the methods with a figure of ours, NaN for too few, and their number."""
    ours = ours.dropna()
    count = len(ours)
    return float(ours.rank().corr(papers[ours.index].rank())) if count >= LEAST else math.nan, count


def to_cell(figure: float) -> str:
    return "-" if math.isnan(figure) else f"{figure:.2f}"


def main(file: Path) -> dict[str, float]:
    """Prints both columns of each figure, and returns the rank correlations over all methods."""
    ours, papers, hypernetworks = read_columns(file)
    header = ["method", *(cell for column in ours for cell in (column, "paper"))]
    order = ours.sort_values(CHANGE, ascending=False).index
    lines = [
        [method, *(to_cell(frame.loc[method, column]) for column in ours for frame in (ours, papers))]
        for method in order
    ]
    for title, rows in (
        ("rank correlation without hypernetworks", ours.drop(hypernetworks)),
        ("rank correlation", ours),
    ):
        correlations = {column: correlate(rows[column], papers[column]) for column in rows}
        cells = (cell for value, count in correlations.values() for cell in (to_cell(value), f"of {count}"))
        lines.append([title, *cells])
    print(align([header, *lines]))
    return {column: value for column, (value, _) in correlations.items()}


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="comparison.json of compare_methods.py")
    return parser.parse_args(argv)


if __name__ == "__main__":
    try:
        main(parse_arguments(sys.argv[1:]).file)
    except (OSError, ValueError) as error:
        sys.exit(str(error))
