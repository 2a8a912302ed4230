# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The geometry of the joint transforms: one draw of chance takes a picture and its labels to the training size."""

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
    """What chance decided for one picture: mirror it, then turn it counter-clockwise, then enlarge it."""

    flip: bool
    degrees: float
    scale: float

    def to_source(self) -> tuple[float, float, float, float]:
        """Matrix (row by row) from a pixel's offset to the centre, in the result, to its offset in the original."""
        cos = math.cos(math.radians(self.degrees)) / self.scale
        sin = math.sin(math.radians(self.degrees)) / self.scale
        mirror = -1.0 if self.flip else 1.0
        return mirror * cos, -mirror * sin, sin, cos


@dataclass(frozen=True)
class Geometry:
    """Takes a picture and its labels from their own size to that of training; zero outside the original unless told.

    With a draw, values come straight from the stored pixels: one interpolation keeps more detail than one for the draw
    and one for the size. Only a side that shrinks takes two, as the resize that follows the draw leaves no pixel out
    (antialias).

    Args:
        size: (height, width) of the picture.
        image_size: (height, width) of the result.
        draw: None only resizes.
    """

    size: tuple[int, int]
    image_size: tuple[int, int]
    draw: Draw | None

    def interpolate(self, pixels: Tensor) -> Tensor:
        """Cubic: `(channels, *size)` to `(channels, *image_size)`; float with a draw, else as given.

        Floats may lie outside the range of the pixels, as a cubic kernel overshoots.
        """
        pixels = pixels[None]
        if self._grid is not None:
            pixels = F.grid_sample(
                pixels.float(), self._grid, mode="bicubic", padding_mode="zeros", align_corners=False
            )
        if pixels.shape[-2:] != self.image_size:
            pixels = F.interpolate(pixels, self.image_size, mode="bicubic", antialias=True)
        return pixels[0]

    def take_nearest(self, label: Image.Image, outside: float = 0) -> np.ndarray:
        """Stored values of a one-channel picture, nearest to each pixel of the result, `outside` beyond it."""
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
        """Where `grid_sample` finds each pixel, on the larger of both sizes: what shrinks, the resize does."""
        if self.draw is None:
            return None
        (height, width), (a, b, c, d) = self.size, self.draw.to_source()
        canvas = [max(sides) for sides in zip(self.size, self.image_size, strict=True)]
        # `affine_grid` counts in half sides from the centre, which are the same on any canvas.
        matrix = torch.tensor([[[a, b * height / width, 0], [c * width / height, d, 0]]])
        return F.affine_grid(matrix, [1, 1, *canvas], align_corners=False)
