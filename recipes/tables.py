# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The table of results: one row per method, as aligned text for a terminal or Markdown for a file."""

import math
from collections.abc import Collection, Mapping, Sequence

from paper import PaperRow

from peft_polyhistor import TASKS, relative_change
from peft_polyhistor.evaluation import NOT_MEASURED, format_scores, headline


# By method, the results of its runs: one per seed, and in one order for all methods.
Results = Mapping[str, Sequence[dict]]
# What changes are measured against, the first that is among the methods, and how it is called.
REFERENCES = {"single_task": "single-task full fine-tuning", "decoders": "decoders only"}
NOTE = """\
encoder, all: trainable parameters. up, down: the better direction. Several seeds: mean (range).
rate: learning rate of what is not a decoder. change: mean relative change of the scores, percent,
against {reference}."""
PAPER_NOTE = """\
the paper: Polyhistor, arXiv:2210.03265, the row with the same settings of the method; there with a Swin-T on
PASCAL-Context, and the change over four tasks against single-task full fine-tuning."""


def reference_of(results: Results) -> str | None:
    """The method that changes are measured against; None where none of them was trained."""
    return next((method for method in REFERENCES if method in results), None)


def change_of(results: Results, method: str) -> list[float] | None:
    """Changes of a method's runs, percent; None where a score allows none, or there is nothing to compare with.

    Tasks that no run could measure, as the data has no label for them, are left out.
    """
    references = [headline(run["scores"]) for run in results.get(reference_of(results), [])]
    scores = [headline(run["scores"]) for runs in results.values() for run in runs]
    measured = {task for by_task in scores for task, score in by_task.items() if not math.isnan(score)}
    figures = [reference[task] for reference in references for task in measured]
    if not figures or not all(math.isfinite(figure) and figure for figure in figures):
        return None
    scores = [headline(run["scores"]) for run in results[method]]
    return [relative_change(*pair) for pair in zip(scores, references, strict=True)]


def make_rows(results: Results, papers: Mapping[str, PaperRow | None] | None = None) -> list[list[str]]:
    """Rows of a table, the first one its header.

    Args:
        results: What was measured.
        papers: By method the paper's figures, for a row of their own below; None where the paper has none.
    """
    tasks = list(next(iter(results.values()))[0]["scores"])
    titles = [f"{task} {TASKS[task].score} {'up' if TASKS[task].higher_is_better else 'down'}" for task in tasks]
    rows = [["method", "rate", "encoder", "all", *titles, "change"]]
    for method, runs in results.items():
        scores = [headline(run["scores"]) for run in runs]
        rate = "-" if method == "decoders" else f"{runs[0]['settings']['learning_rate']:g}"
        sizes = [f"{runs[0]['parameters'][part]:,}" for part in ("encoder", "all")]
        cells = [format_scores([score[task] for score in scores]) for task in tasks]
        changes = change_of(results, method)
        rows.append([method, rate, *sizes, *cells, format_scores(changes, "+") if changes else "-"])
        if papers and papers.get(method):
            rows.append(_paper_cells(papers[method], tasks))
    return rows


def _paper_cells(row: PaperRow, tasks: list[str]) -> list[str]:
    sizes = [f"{size} M" if size else "-" for size in row.parameters.values()]
    scores = [row.scores.get(task, "-") for task in tasks]
    return [f"  the paper, Table {row.table}", "-", *sizes, *scores, f"{float(row.change):+.2f}"]


def split_range(cell: str) -> tuple[str, str]:
    """A cell's mean and its range in brackets, empty where there is none."""
    mean, bracket, rest = cell.partition(" (")
    return mean, bracket.strip() + rest


def find_best(title: str, cells: Sequence[str]) -> list[str]:
    """The cells of a column whose mean, as printed, is the best; none where no direction is better or one is alone."""
    direction = "up" if title == "change" else title.rpartition(" ")[2]
    if direction not in ("up", "down") or len(cells) == 1:
        return []
    means = {cell: float(split_range(cell)[0]) for cell in cells if cell != "-" and NOT_MEASURED not in cell}
    finite = [mean for mean in means.values() if math.isfinite(mean)]
    best = (max if direction == "up" else min)(finite, default=None)
    return [cell for cell, mean in means.items() if mean == best]


def make_note(results: Results, papers: Mapping[str, PaperRow | None] | None = None) -> str:
    """What the columns mean, for below the table."""
    reference = REFERENCES.get(reference_of(results))
    note = NOTE.format(
        reference=f"{reference} with the same seed" if reference else "nothing: no reference was trained"
    )
    return f"{note}\n{PAPER_NOTE}" if papers and any(papers.values()) else note


def align(rows: list[list[str]], left: Collection[int] = (0,)) -> str:
    """Columns aligned with spaces: those of names, by index, to the left, and figures to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def to_markdown(rows: list[list[str]], note: str) -> str:
    lines = [rows[0], ["---", *["---:"] * (len(rows[0]) - 1)], *rows[1:]]
    return "\n".join([*(f"| {' | '.join(cell.strip() for cell in line)} |" for line in lines), "", note, ""])
