# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""What is known of a training, for the card of its checkpoint."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


PREVIEW = "predictions.png"
Scores = Mapping[str, Mapping[str, float]]  # by task and metric


@dataclass(frozen=True)
class TrainingRecord:
    """What a run recorded of itself; the card repeats it and adds nothing.

    Args:
        dataset_name: For readers.
        dataset_type: Its Hub id; or, where it is not on the Hub, a word for it.
        dataset_is_on_hub: `dataset_type` is a Hub id.
        dataset_license: A sentence.
        split: The part it was scored on.
        image_size: Side of the pictures, pixels.
        command: What trains it again.
        seed: Of the run.
        steps: Optimiser steps when it was saved; 0 where no run is recorded yet.
        versions: By package.
        scores: Of this checkpoint; empty where they were not measured.
        scores_by_seed: Of runs that differ in nothing but the seed, this one among them; empty for one run.
        limits: Sentences for the card.
        files: Uploaded with the checkpoint, by name; a `predictions.png` is shown in the card.
        preview: What that picture shows.
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
