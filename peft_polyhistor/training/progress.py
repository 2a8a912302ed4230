# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The progress of a run: its step, its losses and its scores, which it also logs for trackers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from ..evaluation import find_details, headline, score_tasks


@dataclass
class Progress:
    """The progress of a run, which is saved beside weights, optimiser and schedule."""

    step: int = 0
    seconds: float = 0.0  # time of training up to the last checkpoint
    history: list[dict[str, Any]] = field(default_factory=list)  # scores and step of each evaluation
    losses: list[dict[str, Any]] = field(default_factory=list)  # mean losses and step of each entry of the log
    details: dict[str, Any] = field(default_factory=dict)  # classes and images of the last evaluation

    def add_losses(self, means: Mapping[str, float], learning_rate: float, accelerator: Accelerator) -> None:
        """Records mean losses by task, and logs them with the learning rate; without losses it logs the rate alone."""
        if means:
            self.losses.append({"step": self.step, "losses": means})
        rate = {"learning_rate": learning_rate}
        accelerator.log({f"loss/{task}": mean for task, mean in means.items()} | rate, self.step)

    def add_scores(self, statistics: Mapping[str, Tensor], image_ids: Sequence[str], accelerator: Accelerator) -> None:
        """Records the scores of an evaluation, and logs those of the headline.

        Args:
            statistics: Counts by task from `collect_statistics`.
            image_ids: Ids of the images, in the order of the counts.
            accelerator: The accelerator of this process, with the trackers.
        """
        scores = score_tasks(statistics)
        accelerator.log({f"score/{task}": score for task, score in headline(scores).items()}, self.step)
        self.history.append({"step": self.step, "scores": scores})
        self.details = find_details(statistics, image_ids)
