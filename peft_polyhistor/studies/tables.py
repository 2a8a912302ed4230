# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The table of results: one row per method, as aligned text for a terminal or Markdown for a file."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ..evaluation import NOT_MEASURED, format_scores, headline
from ..tasks import TASKS, relative_change
from .paper import PaperRow
from .rates import edge_note
from .results import Grid


# Results by method, one per seed, with the same order of seeds for all methods.
Results = Mapping[str, Sequence[Mapping[str, Any]]]
# Reference methods of the changes, and their names in a sentence. The first one that was trained is used.
REFERENCES = {"single_task": "single-task full fine-tuning", "decoders": "decoders alone"}
NOTE = """\
encoder, all: trainable parameters. up, down: the better direction. Several seeds: mean (range).
rate: learning rate of all parameters but the decoders. change: mean relative change of the scores, in percent,
against {reference}."""
PAPER_NOTE = """\
the paper: Polyhistor, arXiv:2210.03265, the row with the same settings of the method; there with a Swin-T on
PASCAL-Context, and the change over four tasks against single-task full fine-tuning."""
NOT_MEASURED_NOTE = f"{NOT_MEASURED}: no label of the split belongs to the task, or the model diverged."


def reference_of(results: Results) -> str | None:
    """Returns the reference method of the changes; `None` if no reference was trained."""
    return next((method for method in REFERENCES if method in results), None)


def change_of(results: Results, method: str) -> list[float] | None:
    """Returns the changes of a method's runs in percent, one per seed.

    A task without a finite score in any run was not measured, and does not count. The result is `None` if there is no
    reference, or if a reference score is zero or not finite.
    """
    scores = {name: [headline(run["scores"]) for run in runs] for name, runs in results.items()}
    rows = [row for runs in scores.values() for row in runs]
    tasks = [task for task in rows[0] if any(math.isfinite(row[task]) for row in rows)]
    references = scores.get(reference_of(results) or "", [])
    figures = [row[task] for row in references for task in tasks]
    if not figures or not all(math.isfinite(figure) and figure for figure in figures):
        return None
    measured = ([{task: row[task] for task in tasks} for row in runs] for runs in (scores[method], references))
    return [relative_change(*pair) for pair in zip(*measured, strict=True)]


def _unit_of(task: str) -> str:
    unit = TASKS[task].unit
    return "" if unit in ("percent", "degrees") else f" ({unit})"  # percent and degrees are usual for their scores


def make_rows(results: Results, papers: Mapping[str, PaperRow | None] | None = None) -> list[list[str]]:
    """Returns the cells of the table, row by row; the first row is the header.

    Args:
        results: Results of the runs by method.
        papers: Rows of the paper by method, each printed below the method; `None` for a method that has no row.
    """
    tasks = list(next(iter(results.values()))[0]["scores"])
    titles = [f"{task} {TASKS[task].score}{_unit_of(task)} {TASKS[task].better}" for task in tasks]
    rows = [["method", "rate", "encoder", "all", *titles, "change"]]
    for method, runs in results.items():
        scores = [headline(run["scores"]) for run in runs]
        rate = "-" if method == "decoders" else f"{runs[0]['settings']['learning_rate']:g}"
        sizes = [f"{runs[0]['parameters'][part]:,}" for part in ("encoder", "all")]
        cells = [format_scores([score[task] for score in scores], unit=TASKS[task].unit) for task in tasks]
        changes = change_of(results, method)
        rows.append([method, rate, *sizes, *cells, format_scores(changes, "+") if changes else "-"])
        row = (papers or {}).get(method)
        if row:
            rows.append(_paper_cells(row, tasks))
    return rows


def _paper_cells(row: PaperRow, tasks: Sequence[str]) -> list[str]:
    sizes = [f"{size} M" if size else "-" for size in row.parameters.values()]
    scores = [row.scores.get(task, "-") for task in tasks]
    return [f"  the paper, Table {row.table}", "-", *sizes, *scores, f"{float(row.change):+.2f}"]


def split_range(cell: str) -> tuple[str, str]:
    """Splits a cell into its mean and its range in brackets; the range may be empty."""
    mean, bracket, rest = cell.partition(" (")
    return mean, bracket.strip() + rest


def find_best_methods(results: Results) -> list[list[str]]:
    """Returns the methods with the best finite mean, for each column of `make_rows` but the first.

    The list is empty for a column without a better direction, and if there is only one method.
    """
    best: list[list[str]] = [[], [], []]  # rate, and sizes of encoder and all
    for task in next(iter(results.values()))[0]["scores"]:
        scores = {method: [headline(run["scores"])[task] for run in runs] for method, runs in results.items()}
        best.append(_find_best_means(scores, TASKS[task].better))
    changes = {method: change_of(results, method) or [math.nan] for method in results}
    return [*best, _find_best_means(changes, "up")]


def _find_best_means(figures: Mapping[str, Sequence[float]], better: str) -> list[str]:
    if len(figures) == 1:
        return []
    means = {method: sum(values) / len(values) for method, values in figures.items()}
    best = (max if better == "up" else min)(filter(math.isfinite, means.values()), default=None)
    return [method for method, mean in means.items() if mean == best]


def make_note(
    results: Results,
    papers: Mapping[str, PaperRow | None] | None = None,
    grids: Mapping[str, Grid] | None = None,
) -> str:
    """Returns the text below the table, which explains its columns.

    Args:
        results: Results of the runs by method.
        papers: Rows of the paper by method.
        grids: Scores by method and learning rate, for methods that chose their rate from a grid.
    """
    reference = REFERENCES.get(reference_of(results) or "")
    reference = f"{reference} with the same seed" if reference else "nothing, as no reference was trained"
    scores = [score for runs in results.values() for run in runs for score in headline(run["scores"]).values()]
    parts = [
        NOTE.format(reference=reference),
        PAPER_NOTE if any((papers or {}).values()) else "",
        _compare_orders(results, papers or {}),
        edge_note(grids or {}),
        "" if all(map(math.isfinite, scores)) else NOT_MEASURED_NOTE,
    ]
    return "\n".join(filter(None, parts))


def _compare_orders(results: Results, papers: Mapping[str, PaperRow | None]) -> str:
    """Reports the rank correlation of the changes with the paper's; empty for fewer than 3 methods."""
    from scipy.stats import spearmanr  # takes a second to import

    rows = {method: row for method, row in papers.items() if row and method in results}
    changes = {method: sum(values) / len(values) for method in rows if (values := change_of(results, method))}
    pairs = [(change, float(rows[method].change)) for method, change in changes.items() if math.isfinite(change)]
    if len(pairs) < 3 or any(len(set(side)) == 1 for side in zip(*pairs, strict=True)):
        return ""
    correlation = spearmanr(*zip(*pairs, strict=True)).statistic
    return f"Rank correlation (Spearman) of change with the paper's: {correlation:.2f} over {len(pairs)} methods."


def align(rows: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> str:
    """Aligns columns with spaces: columns in `left` to the left, all others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def to_markdown(rows: Sequence[Sequence[str]], note: str) -> str:
    """Returns the table and the note below it as Markdown."""
    lines = [rows[0], ["---", *["---:"] * (len(rows[0]) - 1)], *rows[1:]]
    return "\n".join([*(f"| {' | '.join(cell.strip() for cell in line)} |" for line in lines), "", note, ""])
