# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Materials of procedural scenes: solid textures in two random colours, with gloss and glow."""

import colorsys
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from ...extras import needs_extra


with needs_extra("train"):
    from scipy.ndimage import gaussian_filter


PLAIN, CLOUDS, STRIPES, CHECKS, PATCHES, GRAIN, BRICKS, RINGS = range(8)
ANY = (PLAIN, CLOUDS, STRIPES, CHECKS, PATCHES, GRAIN, BRICKS, RINGS)

_TILE = 512  # side of the noise tile, in samples
_SAMPLES = 32  # samples per unit of texture space


class Material(NamedTuple):
    """A texture that blends two colours.

    Args:
        texture: One of PLAIN ... RINGS.
        frequency: Texture units per unit of length.
        first: Linear RGB in [0, 1] where the texture is 0.
        second: Linear RGB in [0, 1] where the texture is 1.
        gloss: Strength of the highlight.
        glow: 1 for a surface that emits light and ignores the lighting, such as the sky, else 0.
    """

    texture: int
    frequency: float
    first: tuple[float, float, float]
    second: tuple[float, float, float]
    gloss: float = 0.0
    glow: float = 0.0


class Recipe(NamedTuple):
    """Ranges from which a `Material` is drawn; `contrast` is the largest change of the value between its colours."""

    textures: tuple[int, ...]
    frequency: tuple[float, float]
    hue: tuple[float, float]
    saturation: tuple[float, float]
    value: tuple[float, float]
    contrast: float = 0.3
    gloss: float = 0.0
    glow: float = 0.0


MATERIALS = {
    "beak": Recipe((PLAIN,), (1, 2), (0.05, 0.14), (0.5, 0.9), (0.4, 0.9)),
    "boat": Recipe((PLAIN,), (1, 2), (-0.05, 0.2), (0.4, 0.95), (0.2, 0.8), 0.15, 0.4),
    "bottle": Recipe((PLAIN,), (1, 2), (0.1, 0.45), (0.5, 0.95), (0.15, 0.55), gloss=0.9),
    "bus": Recipe((PLAIN,), (1, 2), (-0.02, 0.17), (0.6, 0.95), (0.5, 0.95), 0.15, 0.6),
    "canvas": Recipe((PLAIN, STRIPES), (2, 4), (0.0, 1.0), (0.0, 0.3), (0.6, 0.95)),
    "car": Recipe((PLAIN,), (1, 2), (0.52, 0.8), (0.4, 0.95), (0.25, 0.95), 0.15, 0.7),
    "chestnut": Recipe((PLAIN, CLOUDS), (1, 2), (0.0, 0.07), (0.5, 0.85), (0.15, 0.6), 0.15, 0.2),
    "china": Recipe((PLAIN,), (1, 2), (0.08, 0.2), (0.0, 0.2), (0.7, 0.95), gloss=0.5),
    "clay": Recipe((PLAIN, STRIPES, CHECKS), (1, 4), (0.0, 1.0), (0.2, 0.7), (0.3, 0.8)),
    "coat": Recipe((PLAIN, CLOUDS, PATCHES), (0.7, 1.5), (0.05, 0.15), (0.1, 0.45), (0.1, 0.7), 0.5),
    "dark": Recipe((PLAIN,), (1, 2), (0.0, 1.0), (0.0, 0.3), (0.04, 0.16), 0.05),
    "fabric": Recipe((PLAIN, CLOUDS, STRIPES, CHECKS, GRAIN), (2, 5), (0.0, 1.0), (0.1, 0.7), (0.25, 0.8)),
    "fur": Recipe((STRIPES, STRIPES, PATCHES), (2.5, 4), (0.05, 0.12), (0.3, 0.85), (0.3, 0.95), 0.45),
    "glass": Recipe((CLOUDS,), (0.5, 1), (0.5, 0.65), (0.1, 0.5), (0.1, 0.4), 0.25, 0.9),
    "hair": Recipe((GRAIN, PLAIN), (1, 2), (0.02, 0.14), (0.1, 0.7), (0.05, 0.6)),
    "hide": Recipe((PATCHES, PATCHES, PATCHES, PLAIN), (0.5, 0.9), (0.02, 0.1), (0.0, 0.5), (0.75, 0.95), 0.8),
    "hull": Recipe((PLAIN, STRIPES), (0.5, 1), (0.0, 1.0), (0.0, 0.2), (0.6, 0.95), 0.15, 0.4),
    "label": Recipe((STRIPES, CHECKS, CLOUDS, PLAIN), (2, 5), (0.0, 1.0), (0.2, 0.9), (0.5, 0.95), 0.6),
    "lamp": Recipe((PLAIN,), (1, 2), (0.1, 0.16), (0.0, 0.3), (0.85, 1.0), 0.1, 0.8),
    "leaf": Recipe((CLOUDS, GRAIN, STRIPES), (1.5, 3), (0.2, 0.4), (0.4, 0.9), (0.2, 0.65)),
    "metal": Recipe((PLAIN, CLOUDS), (1, 2), (0.55, 0.65), (0.0, 0.12), (0.4, 0.8), 0.15, 0.8),
    "motorbike": Recipe((PLAIN,), (1, 2), (-0.08, 0.08), (0.6, 0.95), (0.3, 0.9), 0.15, 0.8),
    "paint": Recipe((PLAIN,), (1, 2), (0.0, 1.0), (0.3, 0.95), (0.25, 0.95), 0.15, 0.6),
    "plastic": Recipe((PLAIN,), (1, 2), (0.0, 1.0), (0.0, 0.15), (0.06, 0.6), 0.1, 0.4),
    "plumage": Recipe((CLOUDS, GRAIN, PLAIN), (1.5, 3), (0.45, 0.75), (0.3, 0.9), (0.3, 0.95), 0.4),
    "rubber": Recipe((PLAIN,), (1, 2), (0.0, 1.0), (0.0, 0.15), (0.06, 0.2), 0.05),
    "screen": Recipe((CLOUDS, CHECKS, STRIPES, PLAIN), (0.7, 2), (0.4, 0.75), (0.2, 0.9), (0.3, 0.95), 0.6, 0.3, 0.7),
    "shirt": Recipe((PLAIN, STRIPES, CHECKS, CLOUDS), (3, 6), (0.0, 1.0), (0.0, 0.9), (0.1, 0.95), 0.5),
    "shoe": Recipe((PLAIN,), (1, 2), (0.0, 1.0), (0.0, 0.6), (0.05, 0.9)),
    "skin": Recipe((PLAIN,), (1, 2), (0.03, 0.09), (0.3, 0.6), (0.3, 0.95), 0.06, 0.1),
    "sofa": Recipe((PLAIN, CLOUDS, STRIPES, CHECKS), (2, 5), (0.75, 1.05), (0.3, 0.8), (0.25, 0.8)),
    "train": Recipe((PLAIN,), (1, 2), (0.28, 0.55), (0.5, 0.95), (0.2, 0.8), 0.15, 0.6),
    "trousers": Recipe((PLAIN, PLAIN, CLOUDS, STRIPES), (2, 5), (0.0, 1.0), (0.0, 0.6), (0.08, 0.7)),
    "wood": Recipe((RINGS,), (0.7, 1.5), (0.04, 0.11), (0.3, 0.75), (0.2, 0.75), 0.2, 0.1),
    "wool": Recipe((GRAIN, CLOUDS), (2, 4), (0.08, 0.16), (0.0, 0.2), (0.7, 0.98), 0.35),
    # surroundings
    "anything": Recipe(ANY, (0.7, 4), (0.0, 1.0), (0.0, 0.7), (0.2, 0.8), 0.4, 0.2),
    "floor": Recipe(
        (CHECKS, STRIPES, CLOUDS, GRAIN, RINGS, PLAIN), (0.6, 2), (0.0, 1.0), (0.0, 0.3), (0.25, 0.8), 0.3
    ),
    "meadow": Recipe((GRAIN, CLOUDS, GRAIN, PATCHES), (0.5, 1.5), (0.17, 0.36), (0.3, 0.7), (0.35, 0.75), 0.3),
    "road": Recipe((GRAIN, CLOUDS, PLAIN), (0.5, 1.5), (0.0, 1.0), (0.0, 0.12), (0.3, 0.65), 0.2),
    "sky": Recipe((CLOUDS,), (0.25, 0.6), (0.53, 0.65), (0.1, 0.6), (0.6, 1.0), 0.2, glow=1.0),
    "water": Recipe((CLOUDS,), (0.4, 1.0), (0.48, 0.62), (0.4, 0.8), (0.35, 0.8), 0.25, 0.4),
    "wall": Recipe(
        (PLAIN, BRICKS, STRIPES, CLOUDS, GRAIN, CHECKS), (0.7, 2), (0.0, 1.0), (0.0, 0.3), (0.3, 0.9), 0.25
    ),
}


def draw_material(rng: np.random.Generator, name: str) -> Material:
    """Draws a `Material` from the row `name` of `MATERIALS`; a digit at the end of `name` is ignored."""
    recipe = MATERIALS[name.rstrip("0123456789")]
    hue, saturation, value = (rng.uniform(*span) for span in (recipe.hue, recipe.saturation, recipe.value))
    other_value = value + recipe.contrast * rng.uniform(0.4, 1.0) * (1 if value < 0.5 else -1)
    other_hue = hue + rng.uniform(-0.5, 0.5) * (recipe.hue[1] - recipe.hue[0]) * recipe.contrast
    first = colorsys.hsv_to_rgb(hue % 1, saturation, value)
    second = colorsys.hsv_to_rgb(other_hue % 1, saturation * rng.uniform(0.4, 1.0), min(max(other_value, 0.0), 1.0))
    texture = recipe.textures[rng.integers(len(recipe.textures))]
    return Material(texture, rng.uniform(*recipe.frequency), first, second, recipe.gloss, recipe.glow)


@lru_cache(maxsize=1)
def _noise_tile() -> np.ndarray:
    """Computes seamless noise of four octaves, uniformly distributed in [0, 1], `(_TILE, _TILE)`."""
    white = np.random.default_rng(0).normal(size=(4, _TILE, _TILE))
    octaves = [gaussian_filter(white[i], 2.0 ** (i + 1), mode="wrap") * 4.0**i for i in range(4)]
    ranks = np.argsort(np.argsort(sum(octaves).ravel()))
    return (ranks / ranks.size).astype(np.float32).reshape(_TILE, _TILE)


def _noise(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    rows, columns = (np.floor(w * _SAMPLES).astype(np.int32) & (_TILE - 1) for w in (u, v))
    return _noise_tile()[rows, columns]


def texture(kind: int, place: np.ndarray) -> np.ndarray:
    """Evaluates a texture at points of texture space, `(points, 3)` to `(points,)` in [0, 1]."""
    x, y, z = place.T
    u, v = x + 0.71 * z, y + 0.37 * z
    noise = _noise(u, v)
    if kind == CLOUDS:
        return noise
    if kind == STRIPES:
        return np.clip(0.5 + 2 * np.sin(2 * np.pi * (u + 0.08 * noise)), 0, 1)
    if kind == CHECKS:
        return ((np.floor(u) + np.floor(v)) % 2).astype(np.float32)
    if kind == PATCHES:
        return (_noise(0.7 * u, 0.7 * v) > 0.55).astype(np.float32)
    if kind == GRAIN:
        return 0.6 * _noise(4 * u, 4 * v) + 0.4 * noise
    if kind == BRICKS:
        row = np.floor(3 * v)
        mortar = ((3 * v) % 1 < 0.14) | ((1.5 * u + 0.5 * (row % 2)) % 1 < 0.07)
        return np.where(mortar, 1.0, 0.4 * noise).astype(np.float32)
    if kind == RINGS:
        return 0.5 + 0.5 * np.sin(14 * u + 6 * noise)
    return 0.25 * noise


def albedo(materials: list[Material], index: np.ndarray, place: np.ndarray, footprint: np.ndarray) -> np.ndarray:
    """Computes the unlit colour of points, linear RGB, `(points, 3)`.

    Args:
        materials: All materials of a scene.
        index: Material of each point, `(points,)`.
        place: Position of each point in texture space, `(points, 3)`.
        footprint: Length that a pixel covers at each point, `(points,)`; finer detail fades out.
    """
    frequency = np.array([material.frequency for material in materials], np.float32)[index]
    kinds = np.array([material.texture for material in materials])[index]
    first, second = (
        np.array([getattr(m, name) for m in materials], np.float32)[index] for name in ("first", "second")
    )
    place = place * frequency[:, None] + 7.3 * index[:, None].astype(np.float32)
    blend = np.empty(len(index), np.float32)
    for kind in range(len(ANY)):
        chosen = kinds == kind
        if chosen.any():
            blend[chosen] = texture(kind, place[chosen])
    blend = 0.4 + (blend - 0.4) / (1 + (1.5 * footprint * frequency) ** 2)
    return first + (second - first) * blend[:, None]
