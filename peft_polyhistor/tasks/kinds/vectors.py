# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Tasks that predict a direction for each pixel, such as surface normals."""

import math
from collections.abc import Collection, Iterator, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ...checks import check_number
from ..labels import check_normal_labels
from ..losses import cosine_loss, count_valid, normal_loss
from ..metrics import MeanAngularError
from ..task import Ends, LegendEntry, Task


if TYPE_CHECKING:
    from ...data.geometry import Geometry


LOSSES = {"l1": normal_loss, "cosine": cosine_loss}

# Tolerance for the length 1 of a decoded normal. Labels truncated to steps of 16 are off by up to
# sqrt(3) * 15 / 127.5 = 0.20; averages of two normals, as at edges of resized files, by 0.25 at 83 degrees.
# Grey (128, 128, 128) has length 0.007, black and white 1.73.
NORMAL_TOLERANCE = 0.25
# (255 * component)^2 by stored value, as value / 127.5 - 1 = (2 * value - 255) / 255.
_SQUARES = np.square(2 * np.arange(256, dtype=np.int32) - 255)
_LIMITS = (255 * (1 - NORMAL_TOLERANCE)) ** 2, (255 * (1 + NORMAL_TOLERANCE)) ** 2

_MIN_LENGTH = 1e-6  # shorter vectors hold no direction


@dataclass(frozen=True, kw_only=True)
class Vectors(Task):
    """Unit vectors (x, y, z), x to the right and y down in the image: L1 or cosine loss, and angles in degrees.

    Labels are RGB images, component = value / 127.5 - 1. A colour whose length differs from 1 by more than 0.25, such
    as black, white and grey, has no direction. Targets are float32 `(3, height, width)`, zero where unlabelled. A flip
    changes the sign of x, and a rotation turns the vectors with the image. Labels are interpolated with a cubic kernel
    and normalised again; the border that a rotation exposes is unlabelled.

    Args:
        objective: Loss: `"l1"` between unit vectors, or `"cosine"`, 1 - cosine of the angle.
        within: Angles in degrees. The percentages of pixels below them are scored, and the median angle. If empty,
            only the mean angle is scored.
    """

    objective: str = "l1"
    within: tuple[float, ...] = (11.25, 22.5, 30.0)

    kind: ClassVar[str] = "vectors"
    channels: ClassVar[int] = 3
    score: ClassVar[str] = "mErr"
    higher_is_better: ClassVar[bool] = False
    unit: ClassVar[str] = "degrees"
    modes: ClassVar[tuple[str, ...]] = ("RGB",)

    def _check_settings(self) -> None:
        super()._check_settings()
        self._check_choice("objective", list(LOSSES))
        for angle in self.within:
            check_number("within", angle)

    def loss(self, logits: Tensor, target: Tensor, count: Tensor | None = None) -> Tensor:
        return LOSSES[self.objective](logits, target, count)

    def count(self, target: Tensor) -> Tensor:
        return count_valid(target)

    def fit_bias(self, target: Tensor) -> Tensor:
        """Computes the mean vector of the labelled pixels, which is the best direction for the cosine loss."""
        return target.sum((0, 2, 3)) / count_valid(target)

    def metric(self) -> MeanAngularError:
        return MeanAngularError(self.within)

    def check(self, logits_shape: Sequence[int], target: Tensor) -> None:
        check_normal_labels(self.name, logits_shape, target)

    def _from_array(self, values: np.ndarray) -> Image.Image:
        """Converts components from -1 to 1, channels first or last, to RGB; values that are not finite become 0.

        Raises:
            ValueError: A component belongs to no vector of about unit length.
        """
        if values.dtype.kind != "f":
            return super()._from_array(values)
        values = values.transpose(1, 2, 0) if values.shape[0] == 3 and values.shape[-1] != 3 else values
        values = np.nan_to_num(values, nan=0, posinf=0, neginf=0)
        lowest, highest = values.min(initial=0), values.max(initial=0)
        if max(-lowest, highest) > 1 + NORMAL_TOLERANCE:
            raise ValueError(
                f"found components from {lowest:g} to {highest:g}, allowed are -1 to 1, and 0 or NaN where there is "
                "no direction; convert components that are stored as 0 to 255 with value / 127.5 - 1"
            )
        colors = (values.clip(-1, 1) + 1) * 127.5
        return Image.fromarray(colors.round().astype(np.uint8))

    def read(self, label: Image.Image) -> tuple[Tensor, Tensor]:
        """Decodes a label to vectors `(3, height, width)`, zero where unlabelled, and a mask `(height, width)`."""
        stored = np.array(label)
        valid = torch.from_numpy(find_normals(stored))
        colors = torch.from_numpy(stored).permute(2, 0, 1).contiguous()
        return colors.float().div_(127.5).sub_(1).mul_(valid), valid

    def note(self, label: Image.Image, found: Any) -> str:
        stored = np.asarray(label)
        is_odd = stored.any(axis=-1) & ~find_normals(stored)
        if is_odd.any():
            return "with colours far from a unit vector, which are ignored"
        return "" if self.contents(found) else "without a labelled pixel"

    def contents(self, found: tuple[Tensor, Tensor]) -> Collection[str]:
        return ("vector",) if found[1].any() else ()

    def review(self, contents: Set[Any], labels: int) -> str:
        if not contents:
            raise ValueError(
                f"None of the {labels} labels of {self.name} holds a unit vector. Store (vector + 1) * 127.5 as RGB."
            )
        return ""

    def to_target(self, label: Image.Image, geometry: "Geometry") -> Tensor:
        vectors, valid = self.read(label)
        vectors = geometry.interpolate(vectors)
        if geometry.draw is not None:
            vectors = flip_normals(vectors) if geometry.draw.flip else vectors
            vectors = rotate_normals(vectors, geometry.draw.degrees)
        # Unlabelled neighbours are zero: they shorten an interpolated vector, and do not change its direction.
        kept = torch.from_numpy(geometry.take_nearest(Image.fromarray(valid.byte().numpy())))
        length = vectors.square().sum(dim=0).sqrt_()  # much faster than `norm` over the first axis
        return vectors.mul_(torch.where((kept > 0) & (length > _MIN_LENGTH), 1 / length, 0))

    def unlabeled(self, size: tuple[int, int]) -> Tensor:
        return torch.zeros(3, *size)

    def predict(self, logits: Tensor) -> Tensor:
        """Normalises vectors to length 1; a zero vector stays zero."""
        return F.normalize(logits.float(), dim=1)

    def find_ends(self, label: Tensor) -> Ends:
        return -1.0, 1.0

    def _is_unlabeled(self, label: Tensor) -> Tensor:
        return ~label.isfinite().all(dim=0) | (label == 0).all(dim=0)

    def legend(self, label: Tensor) -> Iterator[LegendEntry]:
        for axis, colour in zip("xyz", ((255, 128, 128), (128, 255, 128), (128, 128, 255)), strict=True):
            yield f"+{axis}", colour, ""

    def blend(self, label: Tensor, painted: np.ndarray, opacity: float) -> tuple[np.ndarray, np.ndarray]:
        return painted, np.full((*painted.shape[:2], 1), opacity)


def find_normals(colors: np.ndarray) -> np.ndarray:
    """Finds the colours `(height, width, 3)` uint8 that decode to about unit length, bool `(height, width)`."""
    squares = _SQUARES[colors]
    length = squares[..., 0] + squares[..., 1] + squares[..., 2]  # squared; far faster than `sum` over the last axis
    return (length >= _LIMITS[0]) & (length <= _LIMITS[1])


def flip_normals(normals: Tensor) -> Tensor:
    """Changes the sign of x in normals `(..., 3, height, width)`; the pixels keep their positions."""
    return normals * normals.new_tensor([-1, 1, 1]).view(3, 1, 1)


def rotate_normals(normals: Tensor, degrees: float) -> Tensor:
    """Rotates the vectors `(..., 3, height, width)` counter-clockwise on screen; the pixels keep their positions.

    (nx, ny, nz) -> (nx cos t + ny sin t, -nx sin t + ny cos t, nz)
    """
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    matrix = normals.new_tensor([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
    return (matrix @ normals.flatten(-2)).view_as(normals)
