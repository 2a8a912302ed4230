# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The record of a training run, for the card of its checkpoint."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..checks import check_list


PREVIEW, RESULTS, TRAINING = "predictions.png", "results.json", "training.yaml"  # files beside the weights
Scores = Mapping[str, Mapping[str, float]]  # by task and metric


def differing_inputs(inputs: Mapping[str, str], others: Mapping[str, str]) -> list[str]:
    """Returns the names of the inputs of two runs whose keys differ; a run may lack some of them."""
    return [name for name, key in inputs.items() if others.get(name, key) != key]


@dataclass(frozen=True)
class TrainingRecord:
    """The record of a training run. The card states these facts and no others.

    Args:
        dataset_name: Name of the dataset, as readers know it.
        dataset_type: Hub id of the dataset, or a short name if it is not on the Hub.
        dataset_is_on_hub: Whether `dataset_type` is a Hub id.
        dataset_license: A sentence on the licence of the dataset.
        split: The split that the scores were measured on.
        image_size: Side of the images in pixels.
        command: The command that repeats the training.
        seed: Seed of the run.
        steps: Optimiser steps before the checkpoint was saved; 0 if no run is recorded.
        versions: Versions by package.
        scores: Scores of the checkpoint; empty if they were not measured.
        scores_by_seed: Scores of runs that differ only in the seed, including this run; empty for a single run.
        limits: Sentences on the limits of the checkpoint.
        files: Files to upload with the checkpoint, by name. The card shows a `predictions.png`.
        preview: Caption of `predictions.png`.

    Raises:
        TypeError: `limits` is a string.
    """

    dataset_name: str
    dataset_type: str
    dataset_is_on_hub: bool
    dataset_license: str
    split: str
    image_size: int
    command: str
    seed: int
    steps: int
    versions: Mapping[str, str]
    scores: Scores
    scores_by_seed: Mapping[int, Scores] = field(default_factory=dict)
    limits: Sequence[str] = ()
    files: Mapping[str, Path] = field(default_factory=dict)
    preview: str = ""

    def __post_init__(self) -> None:
        check_list("limits", self.limits)
