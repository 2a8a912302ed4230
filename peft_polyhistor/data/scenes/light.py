# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Lighting of a procedural scene, and a camera model."""

import numpy as np

from ...extras import needs_extra
from .materials import Material
from .setting import Setting


with needs_extra("train"):
    from scipy.ndimage import gaussian_filter


def light_up(
    setting: Setting,
    materials: list[Material],
    index: np.ndarray,
    colour: np.ndarray,
    normals: np.ndarray,
    shade: np.ndarray,
) -> np.ndarray:
    """Lights surfaces by Lambert's law, with ambient light that is brighter from above, and highlights on gloss."""
    gloss, glow = (np.array([getattr(m, name) for m in materials], np.float32)[index] for name in ("gloss", "glow"))
    light = setting.light.astype(np.float32)
    direct = np.maximum(normals @ light, 0)
    diffuse = setting.ambient * (0.85 - 0.25 * normals[..., 1]) + 1.25 * (1 - setting.ambient) * direct
    diffuse = diffuse * shade * (1 - glow) + glow
    half = light + np.array([0, 0, 1], np.float32)
    highlight = gloss * shade * 0.6 * np.maximum(normals @ (half / np.linalg.norm(half)), 0) ** 40
    return (colour * diffuse[..., None] + highlight[..., None]) * setting.tint.astype(np.float32)


def photograph(rng: np.random.Generator, colour: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Simulates a camera: exposure, white balance, vignette, blur, gamma and noise; returns uint8."""
    gain = 2 ** rng.uniform(0.0, 0.7) * rng.uniform(0.92, 1.08, 3)
    vignette = 1 - rng.uniform(0, 0.3) * (x[None, :] ** 2 + y[:, None] ** 2) / (x[-1] ** 2 + y[-1] ** 2)
    blur = rng.uniform(0.25, 0.8) * min(len(x), len(y)) / 128  # in pixels; the range was chosen for 128 pixels
    colour = gaussian_filter(colour * (vignette[..., None] * gain).astype(np.float32), (blur, blur, 0))
    colour = np.clip(colour, 0, 1) ** np.float32(rng.uniform(0.8, 1.2))
    noise = rng.standard_normal(colour.shape, np.float32)
    colour += np.float32(rng.uniform(0.005, 0.02)) * noise * (0.5 + colour)
    return np.round(np.clip(colour, 0, 1) * 255).astype(np.uint8)
