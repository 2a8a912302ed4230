# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Chooses the learning rate of each method in a comparison by scores on held-out training images."""

import math
from collections.abc import Mapping, Sequence
from statistics import median

from ..tasks import relative_change
from ..tasks.table import as_reference
from .results import Grid


def check_rates(rates: Sequence[float]) -> None:
    """Raises ValueError unless the learning rates of a study are above 0, each given once."""
    if len(set(rates)) < len(rates) or not all(math.isfinite(rate) and rate > 0 for rate in rates):
        raise ValueError(f"`learning_rates` must be above 0, each once, got {rates}.")


def check_seeds(seeds: Sequence[int]) -> None:
    """Raises ValueError unless the seeds of a study are 0 or more, each given once."""
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise ValueError(f"`seeds` must be 0 or more, each once, got {seeds}.")


def choose_rate(grid: Grid) -> float:
    """Returns the rate with the highest mean relative change against the median score of each task over the grid.

    All tasks thus count equally, whatever the unit of their score; see `as_reference` for medians near zero. A rate
    with a score that is not finite, such as that of a diverged model, cannot win. A task without a finite score at
    any rate has no label and is left out.

    Args:
        grid: Headline scores by learning rate and task.

    Raises:
        ValueError: No rate or no task has finite scores.
    """
    tasks = [
        task for task in next(iter(grid.values())) if any(math.isfinite(scores[task]) for scores in grid.values())
    ]
    finite = {rate: scores for rate, scores in grid.items() if all(math.isfinite(scores[task]) for task in tasks)}
    medians = as_reference({task: median(scores[task] for scores in finite.values()) for task in tasks if finite})
    if not medians:
        raise ValueError(
            f"No learning rate can be chosen: the scores by rate are {dict(grid)}. Give lower --learning_rates, or "
            "more --steps or --grid_holdout."
        )
    changes = {
        rate: relative_change({task: scores[task] for task in medians}, medians) for rate, scores in finite.items()
    }
    return max(changes, key=lambda rate: changes[rate])


def edge_note(grids: Mapping[str, Grid]) -> str:
    """Returns a warning that names the methods whose best rate is at the edge of the grid; empty if there are none.

    Args:
        grids: Scores by method and learning rate, as for `choose_rate`.
    """
    chosen = {method: choose_rate(grid) for method, grid in grids.items() if len(grid) > 1}
    ends = {method: {min(grids[method]): "lowest", max(grids[method]): "highest"} for method in chosen}
    at_edge = [f"{method} ({ends[method][rate]})" for method, rate in chosen.items() if rate in ends[method]]
    if not at_edge:
        return ""
    return f"At the edge of the grid of learning rates, so a rate beyond may be better: {', '.join(at_edge)}."
