# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The learning rate of each method of a comparison, chosen from one grid on a held-out part of the training pictures.

The grid is over the rate of what is not a decoder. The decoders are the same for every method, and their rate is held
fixed, so decoders alone have nothing to choose.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

from settings import Settings
from train_pascal import train

from peft_polyhistor import relative_change
from peft_polyhistor.evaluation import headline


Scores = dict[str, float]  # headline score by task


def fix_decoder_rate(settings: Settings) -> Settings:
    """The settings with the rate of the decoders spelt out, so that it does not follow the grid."""
    return replace(settings, decoder_learning_rate=settings.decoder_learning_rate or settings.learning_rate)


def score_grid(
    settings: Settings, rates: Sequence[float], holdout: float, steps: int
) -> dict[str, dict[float, Scores]]:
    """Scores on the held-out part, by method and rate; trains what is missing, in `grid` in the output folder.

    Args:
        settings: Of the runs; the grid has their seed.
        rates: Of what is not a decoder.
        holdout: The held-out part of the training pictures.
        steps: Optimiser steps of each run, after which it is scored; 0: those of the settings.

    Raises:
        ValueError: A rate is not above 0 or given twice, the held-out part is none or all, or the steps are below 0.
    """
    if steps < 0:
        raise ValueError(f"`grid_steps` must be at least 0, got {steps}.")
    if steps:
        settings = replace(settings, steps=steps, eval_every=steps)
    if len(set(rates)) < len(rates) or not all(math.isfinite(rate) and rate > 0 for rate in rates):
        raise ValueError(f"`learning_rates` must be above 0, each once, got {list(rates)}.")
    if not 0 < holdout < 1:
        raise ValueError(
            f"`grid_holdout` must be a part of the training pictures, above 0 and below 1, got {holdout}."
        )
    grid: dict[str, dict[float, Scores]] = {method: {} for method in settings.methods if method != "decoders"}
    for rate in rates:
        folder = Path(settings.output_dir) / "grid" / f"seed{settings.seed}" / repr(rate)
        # A rate that is too high must not end the search.
        run = replace(settings, learning_rate=rate, holdout=holdout, on_bad_step="warn")
        run = replace(run, output_dir=str(folder), resume=True)
        for method, scores in grid.items():
            scores[rate] = headline(train(method, run)["scores"])
    return grid


def choose_rate(grid: Mapping[float, Scores]) -> float:
    """The rate with the highest mean relative change against the median score of each task over the grid.

    So tasks weigh alike whatever the unit of their score. A median below 1 (percent or degrees) counts as 1: parts of
    a score near nothing must not outweigh a task that works. A rate with a score that is not finite, such as that of a
    diverged model, cannot win. A task without a finite score at any rate (no held-out picture has a label) says
    nothing and is left out.

    Raises:
        ValueError: No rate is left, or no task.
    """
    tasks = [
        task for task in next(iter(grid.values())) if any(math.isfinite(scores[task]) for scores in grid.values())
    ]
    finite = {rate: scores for rate, scores in grid.items() if all(math.isfinite(scores[task]) for task in tasks)}
    medians = {task: max(1.0, median(scores[task] for scores in finite.values())) for task in tasks if finite}
    if not medians:
        raise ValueError(
            f"No learning rate can be chosen: the scores by rate are {dict(grid)}. Give lower --learning_rates, or "
            "more --steps or --grid_holdout."
        )
    changes = {
        rate: relative_change({task: scores[task] for task in medians}, medians) for rate, scores in finite.items()
    }
    return max(changes, key=changes.get)
