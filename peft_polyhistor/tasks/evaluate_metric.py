# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Adapter from the metrics of this package to `evaluate.Metric`, for code such as `evaluate.combine`."""

from typing import Any

from ..extras import needs_extra
from .running_metric import RunningMetric


with needs_extra("train"):
    import datasets
    import evaluate


class EvaluateMetric(evaluate.Metric):  # type: ignore[misc]  # evaluate has no types
    """Wraps a metric of this package as an `evaluate.Metric`, e.g. `EvaluateMetric(TASKS["semseg"].metric())`.

    Every call goes to `metric`, which keeps counts in memory: nothing is downloaded or written to disk. `len()` is
    the number of images added.

    Args:
        metric: Metric that receives the images.
    """

    def __init__(self, metric: RunningMetric):
        self.metric = metric
        super().__init__()

    def _info(self) -> evaluate.EvaluationModuleInfo:
        # `evaluate` needs the names of the inputs. Their types only matter for its cache files, which are not written.
        features = datasets.Features(dict.fromkeys(("predictions", "references"), datasets.Value("float32")))
        return evaluate.EvaluationModuleInfo(description=type(self.metric).__doc__, citation="", features=features)

    def _build_data_dir(self) -> str:
        return ""  # the base class creates a cache folder here

    def __len__(self) -> int:
        return len(self.metric)

    def add_batch(self, **batch: Any) -> None:
        """Adds a batch of `predictions` and `references`, see `RunningMetric.add_batch`."""
        self.metric.add_batch(**batch)

    def add(self, **image: Any) -> None:
        """Adds one image. `evaluate.combine` passes its `prediction` and `reference` under the plural names."""
        self.metric.add(**{name.removesuffix("s"): value for name, value in image.items()})

    def compute(self, **batch: Any) -> dict[str, float]:
        """Computes the scores of all images, see `RunningMetric.compute`."""
        return self.metric.compute(**batch)
