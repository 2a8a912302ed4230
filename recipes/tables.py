# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The table of results: one row per method, as aligned text for a terminal or Markdown for a file."""

import math
from collections.abc import Collection, Mapping, Sequence

from peft_polyhistor import TASKS, relative_change
from peft_polyhistor.evaluation import headline


NOTE = """\
encoder, all: trainable parameters. up, down: the better direction. Several seeds: mean (range).
change: mean relative change of the scores against decoders only with the same seed, percent."""


def make_rows(results: Mapping[str, Sequence[dict]]) -> list[list[str]]:
    """Rows of a table, the first one its header.

    Args:
        results: By method, the results of its runs, one per seed and in the same order for all methods.
    """
    tasks = list(next(iter(results.values()))[0]["scores"])
    titles = [f"{task} {TASKS[task].score} {'up' if TASKS[task].higher_is_better else 'down'}" for task in tasks]
    rows = [["method", "encoder", "all", *titles, "change"]]
    references = [headline(run["scores"]) for run in results.get("decoders", [])]
    for method, runs in results.items():
        scores = [headline(run["scores"]) for run in runs]
        sizes = [f"{runs[0]['parameters'][part]:,}" for part in ("encoder", "all")]
        cells = [_mean_and_range([score[task] for score in scores]) for task in tasks]
        rows.append([method, *sizes, *cells, _change(scores, references)])
    return rows


def _mean_and_range(values: list[float], sign: str = "") -> str:
    mean = f"{sum(values) / len(values):{sign}.2f}"
    return f"{mean} ({min(values):{sign}.2f} to {max(values):{sign}.2f})" if len(values) > 1 else mean


def _change(scores: list[dict[str, float]], references: list[dict[str, float]]) -> str:
    """A dash where there is nothing to compare with: no run, or a score of 0 or NaN."""
    figures = [figure for reference in references for figure in reference.values()]
    if not figures or not all(math.isfinite(figure) and figure for figure in figures):
        return "-"
    return _mean_and_range([relative_change(*pair) for pair in zip(scores, references, strict=True)], sign="+")


def to_text(rows: list[list[str]]) -> str:
    return f"{align(rows)}\n{NOTE}"


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


def to_markdown(rows: list[list[str]]) -> str:
    lines = [rows[0], ["---", *["---:"] * (len(rows[0]) - 1)], *rows[1:]]
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), "", NOTE, ""])
