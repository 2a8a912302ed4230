# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Tasks that predict a number for each pixel, such as depth."""

import math
from collections.abc import Collection, Iterator, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...checks import check_number
from ..labels import check_scalar_labels
from ..losses import count_images, count_numbers, l1_loss, scale_invariant_loss
from ..scalar_metrics import DEFAULT_LARGEST, ScalarErrors
from ..task import HIGHLIGHT, Ends, KeyEntry, LegendEntry, Task


if TYPE_CHECKING:
    from ...data.geometry import Geometry


OBJECTIVES = "l1", "silog"
ZOOMS = {"keep": 0, "divide": -1, "multiply": 1}  # power of the scale


@dataclass(frozen=True, kw_only=True)
class Regression(Task):
    """A number for each pixel: L1 or scale-invariant logarithmic loss; RMSE, AbsRel and delta 1.25.

    Targets are float32 `(1, height, width)`, NaN where unlabelled. Labels take the nearest pixel, and the border that
    a rotation exposes is unlabelled. Values that are not finite are unlabelled too.

    Args:
        unit: Unit of the values, such as "m".
        scale: Factor from stored values to `unit`, such as 0.001 for 16-bit images in millimetres.
        valid: Lowest and highest value of a label, in `unit`; values outside are unlabelled. `None` takes all finite
            values; then 0 is a value, and errors enter the RMSE in steps of 0.00024, up to 524,288. Very small or
            large values need `valid`: the steps are then about 2**-20 of its larger magnitude, the limit about 2**11
            times it.
        objective: Loss: `"l1"`, or `"silog"` for values above 0, with a decoder that predicts logarithms.
        zoom: Change of the values when the augmentation enlarges an image: `"keep"`, `"divide"` by the scale, as for
            depth, or `"multiply"`, as for lengths in pixels.
        value_range: Values that are painted black and white; values beyond are clipped. By default the lowest and the
            highest value of the map, or of the labels that are shown together.
    """

    unit: str = "units"
    scale: float = 1.0
    valid: tuple[float, float] | None = None
    objective: str = "l1"
    zoom: str = "keep"
    value_range: tuple[float, float] | None = None

    kind: ClassVar[str] = "regression"
    score: ClassVar[str] = "RMSE"
    higher_is_better: ClassVar[bool] = False
    modes: ClassVar[tuple[str, ...]] = ("L", "P", "I;16", "I", "F")

    def _check_settings(self) -> None:
        super()._check_settings()
        self._check_choice("objective", OBJECTIVES)
        self._check_choice("zoom", list(ZOOMS))
        if not isinstance(self.unit, str):
            raise ValueError(f"`unit` of task '{self.name}' must be a text such as 'm', got {self.unit!r}.")
        check_number("scale", self.scale)
        if self.scale == 0:
            raise ValueError(f"`scale` of {self.name} must not be 0, which would make all values equal.")
        for setting in ("valid", "value_range"):
            ends = getattr(self, setting)
            if ends is not None:
                for end in ends if isinstance(ends, tuple) else [ends]:
                    check_number(setting, end)
                if not isinstance(ends, tuple) or len(ends) != 2 or not ends[0] < ends[1]:
                    raise ValueError(
                        f"`{setting}` of task '{self.name}' must be a lower and a higher value, got {ends}."
                    )
        if self.objective == "silog" and not (self.valid and self.valid[0] > 0):
            raise ValueError(
                f"Task '{self.name}' has the loss silog, which needs values above 0, got valid={self.valid}. Give "
                "valid=(lowest, highest) with a lowest value above 0."
            )

    def loss(self, logits: Tensor, target: Tensor, count: Tensor | None = None) -> Tensor:
        return (scale_invariant_loss if self.objective == "silog" else l1_loss)(logits, target, count)

    def count(self, target: Tensor) -> Tensor:
        return (count_images if self.objective == "silog" else count_numbers)(target)

    def fit_bias(self, target: Tensor) -> Tensor:
        """Computes the median; for the loss silog, the mean over the images of their mean logarithm."""
        if self.objective == "silog":
            return target.log().flatten(1).nanmean(dim=1).nanmean().view(1)
        return target.nanmedian().view(1)

    def metric(self) -> ScalarErrors:
        largest = max(map(abs, self.valid)) if self.valid else DEFAULT_LARGEST
        return ScalarErrors(largest, log=self.objective == "silog")

    def check(self, logits_shape: Sequence[int], target: Tensor) -> None:
        check_scalar_labels(self.name, logits_shape, target, positive=self.objective == "silog")

    def _from_array(self, values: np.ndarray) -> Image.Image:
        return Image.fromarray(values if values.dtype == np.uint16 else values.astype(np.float32))

    def read(self, label: Image.Image) -> np.ndarray:
        """Decodes a label to float32 `(height, width)`, NaN where unlabelled."""
        # In float32, 30000 * 0.001 is above 30. The ends are rounded as the values are, so they are valid themselves.
        values = (np.asarray(label).astype(np.float64) * self.scale).astype(np.float32)
        low, high = map(np.float32, self.valid or (-math.inf, math.inf))
        return np.where(np.isfinite(values) & (values >= low) & (values <= high), values, np.float32(math.nan))

    def note(self, label: Image.Image, found: np.ndarray) -> str:
        return "" if self.contents(found) else "without a valid value"

    def contents(self, found: np.ndarray) -> Collection[str]:
        return () if np.isnan(found).all() else ("value",)

    def review(self, contents: Set[Any], labels: int) -> str:
        if not contents:
            raise ValueError(
                f"None of the {labels} labels of {self.name} has a value in valid={self.valid} after "
                f"scale={self.scale}. Give the `scale` from stored to real values, such as 0.001 from millimetres to "
                "metres, or correct `valid`."
            )
        return ""

    def to_target(self, label: Image.Image, geometry: "Geometry") -> Tensor:
        values = torch.from_numpy(geometry.take_nearest(Image.fromarray(self.read(label)), math.nan))[None]
        scale = 1.0 if geometry.draw is None else geometry.draw.scale
        return values * scale ** ZOOMS[self.zoom]

    def unlabeled(self, size: tuple[int, int]) -> Tensor:
        return torch.full((1, *size), math.nan)

    def predict(self, logits: Tensor) -> Tensor:
        return logits.float().exp() if self.objective == "silog" else logits.float()

    def find_ends(self, label: Tensor) -> Ends:
        if self.value_range is not None:
            return self.value_range
        values = label[label.isfinite()]
        if not values.numel():
            return 0.0, 1.0
        lowest, highest = float(values.min()), float(values.max())
        return lowest, highest if highest > lowest else lowest + 1  # a constant map is black

    def key(self, label: Tensor, prediction: Tensor) -> Iterator[KeyEntry]:
        ends = self.find_ends(label) if label.isfinite().any() else ()
        for value, colour in zip(ends, ((0, 0, 0), (255, 255, 255)), strict=False):
            yield f"{value:.4g} {self.unit}", colour

    def legend(self, label: Tensor) -> Iterator[LegendEntry]:
        for value, colour in zip(self.find_ends(label), (None, HIGHLIGHT), strict=True):
            yield f"{value:.4g} {self.unit}", colour, ""
