# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Geometry of the joint transforms: a random draw maps an image and its labels to the training size."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor


@dataclass(frozen=True)
class Draw:
    """Random geometry of one image: flip, then counter-clockwise rotation, then scale."""

    flip: bool
    degrees: float
    scale: float

    def to_source(self) -> tuple[float, float, float, float]:
        """Computes the matrix, row by row, from offsets to the centre of the result to offsets in the original."""
        cos = math.cos(math.radians(self.degrees)) / self.scale
        sin = math.sin(math.radians(self.degrees)) / self.scale
        mirror = -1.0 if self.flip else 1.0
        return mirror * cos, -mirror * sin, sin, cos


@dataclass(frozen=True)
class Geometry:
    """Maps an image and its labels from their stored size to the training size.

    One interpolation serves both draw and resize, which keeps more detail than one for each. Only a side that shrinks
    is interpolated twice: the resize then averages over all pixels (antialias).

    Args:
        size: (height, width) of the image, in pixels.
        image_size: (height, width) of the result, in pixels.
        draw: Random geometry; `None` only resizes.
    """

    size: tuple[int, int]
    image_size: tuple[int, int]
    draw: Draw | None

    def interpolate(self, pixels: Tensor) -> Tensor:
        """Interpolates `(channels, *size)` to `(channels, *image_size)` with a cubic kernel; 0 outside the original.

        The result is float32 with a rotation or scale, and has the dtype of `pixels` without. Floats may exceed the
        range of the pixels, as a cubic kernel overshoots.
        """
        pixels = pixels[None]
        if self.draw is not None and self.draw.flip and self._grid is None:
            pixels = pixels.flip(-1)
        if self._grid is not None:
            pixels = F.grid_sample(
                pixels.float(), self._grid, mode="bicubic", padding_mode="zeros", align_corners=False
            )
        if pixels.shape[-2:] != self.image_size:
            pixels = F.interpolate(pixels, self.image_size, mode="bicubic", antialias=True)
        return pixels[0]

    def take_nearest(self, label: Image.Image, outside: float = 0) -> np.ndarray:
        """Takes the nearest value of a one-channel image for each pixel of the result, `outside` beyond the image."""
        height, width = self.image_size
        if self.draw is None:
            return np.array(label.resize((width, height), Image.Resampling.NEAREST))
        a, b, c, d = self.draw.to_source()
        down, right = self.size[0] / height, self.size[1] / width  # pixels of the original per pixel of the result
        y, x = self.size[0] / 2, self.size[1] / 2
        matrix = (a * right, b * down, x - a * x - b * y, c * right, d * down, y - c * x - d * y)
        taken = label.transform(
            (width, height), Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST, fillcolor=outside
        )
        return np.array(taken)

    @cached_property
    def _grid(self) -> Tensor | None:
        """Sampling grid for `grid_sample`, on the larger of both sizes, as a later resize shrinks with antialias."""
        if self.draw is None or (self.draw.degrees == 0 and self.draw.scale == 1):
            return None
        (height, width), (a, b, c, d) = self.size, self.draw.to_source()
        canvas = [max(sides) for sides in zip(self.size, self.image_size, strict=True)]
        # `affine_grid` counts in half sides from the centre, so the size of the canvas does not matter.
        matrix = torch.tensor([[[a, b * height / width, 0], [c * width / height, d, 0]]])
        return F.affine_grid(matrix, [1, 1, *canvas], align_corners=False)
