# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Tasks that separate foreground from background, such as saliency and edges."""

import math
from collections.abc import Collection, Iterator, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...checks import check_number
from ..labels import check_binary_labels
from ..losses import IGNORE_INDEX, NO_LABEL, RAREST, balanced_binary_cross_entropy, count_binary
from ..metrics import SaliencyScores
from ..running_metric import RunningMetric
from ..scalar_metrics import EdgeScores
from ..task import HIGHLIGHT, MODES, LegendEntry, Task, is_byte


if TYPE_CHECKING:
    from ...data.geometry import Geometry


SCORES = "maxF", "mIoU", "odsF"


@dataclass(frozen=True, kw_only=True)
class Binary(Task):
    """Foreground or background: balanced binary cross-entropy, and foreground scores at the best threshold.

    Targets are float32 `(1, height, width)`: 0, 1, or -1 where unlabelled. Labels take the nearest pixel, and the
    border that a rotation exposes is background. A label with the values 0 and 1 only is a mask; in any other label,
    values above 127 are foreground.

    Args:
        score: Headline score in percent: `maxF` or `mIoU` of `SaliencyScores`, or `odsF` of `EdgeScores` for edges.
        positive_weight: Weight of the foreground in the loss, between 0 and 1; the background has the remaining
            weight. `None` balances both by their pixels in each step.
        tolerance: Distance within which edges match for `odsF`, as a fraction of the image diagonal.
        ignore: Stored value of unlabelled pixels, 0 to 255; `None` if all pixels are labelled.
    """

    score: str = "maxF"
    positive_weight: float | None = None
    tolerance: float = 0.0075
    ignore: int | None = None

    kind: ClassVar[str] = "binary"
    modes: ClassVar[tuple[str, ...]] = (*MODES, "1")

    def _check_settings(self) -> None:
        super()._check_settings()
        self._check_choice("score", SCORES)
        for setting in ("positive_weight", "tolerance"):
            value = getattr(self, setting)
            if value is not None:
                check_number(setting, value)
                if not 0 < value < 1:
                    raise ValueError(f"`{setting}` of task '{self.name}' must be between 0 and 1, got {value}.")
        if self.ignore is not None and not is_byte(self.ignore):
            raise ValueError(f"`ignore` of task '{self.name}' must be an integer from 0 to 255, got {self.ignore!r}.")

    def loss(self, logits: Tensor, target: Tensor, count: Tensor | None = None) -> Tensor:
        return balanced_binary_cross_entropy(logits, target, count, self.positive_weight)

    def count(self, target: Tensor) -> Tensor:
        return count_binary(target)

    def fit_bias(self, target: Tensor) -> Tensor:
        """Computes the logarithm of the weighted odds, which is 0 where both classes are balanced by their pixels."""
        if self.positive_weight is None:
            return torch.zeros(1)
        background, pixels = count_binary(target)
        share = (1 - background / pixels).clamp(RAREST, 1 - RAREST)
        return (torch.logit(share) + math.log(self.positive_weight / (1 - self.positive_weight))).view(1)

    def metric(self) -> RunningMetric:
        return EdgeScores(self.tolerance) if self.score == "odsF" else SaliencyScores()

    def check(self, logits_shape: Sequence[int], target: Tensor) -> None:
        check_binary_labels(self.name, logits_shape, target)

    def read(self, label: Image.Image) -> np.ndarray:
        """Decodes a label to uint8 `(height, width)`: 0, 1, or 255 where unlabelled."""
        stored = np.asarray(label).astype(np.uint8)
        least = self._least_foreground(stored)
        result = (stored >= least).astype(np.uint8)
        if self.ignore is not None:
            result[stored == self.ignore] = IGNORE_INDEX
        return result

    def _least_foreground(self, stored: np.ndarray) -> int:
        """Finds the least value of the foreground: 1 in a mask of 0 and 1, else 128 (value / 255 > 0.5)."""
        values = set(np.flatnonzero(np.bincount(stored.ravel(), minlength=256)).tolist()) - {self.ignore}
        if {1, 255} <= values <= {0, 1, 255}:
            raise ValueError(
                f"found the values {', '.join(map(str, sorted(values)))}, of which 1 or 255 can be the foreground; "
                "allowed are masks of 0 and 1, masks of 0 and 255, and grey levels. Write 0 to the background, or set "
                "`ignore` of the task to the stored value of unlabelled pixels"
            )
        return 1 if max(values, default=0) <= 1 else 128

    def note(self, label: Image.Image, found: np.ndarray) -> str:
        if not self.contents(found):
            return "without a labelled pixel"
        is_mask = label.mode != "1" and found.any() and self._least_foreground(np.asarray(label)) == 1
        return "with the values 0 and 1 only, which are read as masks" if is_mask else ""

    def contents(self, found: np.ndarray) -> Collection[int]:
        values: list[int] = np.unique(found[found != IGNORE_INDEX]).tolist()
        return values

    def review(self, contents: Set[Any], labels: int) -> str:
        if not contents:
            raise ValueError(
                f"None of the {labels} labels of {self.name} has a pixel other than ignore={self.ignore}. Correct "
                "`ignore`, or restore the labels."
            )
        if len(contents) == 1:
            lack = "foreground" if 0 in contents else "background"
            raise ValueError(
                f"None of the {labels} labels of {self.name} has {lack}. In masks of 0 and 1 the foreground is 1, in "
                "other labels it is every value above 127. Write 255 to the foreground and 0 to the background, and "
                "set `ignore` of the task to the stored value of unlabelled pixels."
            )
        return ""

    def to_target(self, label: Image.Image, geometry: "Geometry") -> Tensor:
        target = torch.from_numpy(geometry.take_nearest(Image.fromarray(self.read(label))))[None].float()
        return target.masked_fill_(target == IGNORE_INDEX, NO_LABEL)

    def unlabeled(self, size: tuple[int, int]) -> Tensor:
        return torch.full((1, *size), NO_LABEL)

    def predict(self, logits: Tensor) -> Tensor:
        """Computes the probability that a pixel is foreground."""
        return logits.float().sigmoid()

    def legend(self, label: Tensor) -> Iterator[LegendEntry]:
        yield "probability 0", None, ""
        yield "probability 1", HIGHLIGHT, ""

    def _is_unlabeled(self, label: Tensor) -> Tensor:
        return (~label.isfinite() | (label == NO_LABEL))[0]
