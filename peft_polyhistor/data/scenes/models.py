# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Models of the rigid classes of VOC as lists of solids; all other classes are in animals.py and figures.py.

Models have x to the right, y up and z towards the viewer. Their size does not matter, as a scene rescales them.
Vehicles and animals are seen from the side, furniture from the front.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from .solids import BALL, BOX, CAPSULE, FRUSTUM, RING, rotation


Triple = tuple[float, float, float] | np.ndarray  # lengths along x, y and z, or rotations about them in degrees


class Piece(NamedTuple):
    """A solid of a model; `material` names a row of `materials.MATERIALS`, `part` is 0 or a human part.

    Pieces of one material name look the same; a digit at the end ("paint2") draws the same row again.
    """

    shape: int
    centre: np.ndarray
    axes: np.ndarray
    radii: np.ndarray
    form: float | np.floating
    material: str
    part: int = 0


def solid(
    shape: int,
    centre: Triple,
    radii: Triple | float,
    material: str,
    turn: Triple = (0, 0, 0),
    form: float = 1.0,
    part: int = 0,
) -> Piece:
    radii = np.broadcast_to(np.asarray(radii, float), 3)
    return Piece(shape, np.array(centre, float), rotation(*turn), radii, form, material, part)


def ball(centre: Triple, radii: Triple | float, material: str, turn: Triple = (0, 0, 0), part: int = 0) -> Piece:
    return solid(BALL, centre, radii, material, turn, part=part)


def box(centre: Triple, radii: Triple, material: str, turn: Triple = (0, 0, 0)) -> Piece:
    return solid(BOX, centre, radii, material, turn)


def tube(
    centre: Triple, radius: float, half_height: float, material: str, turn: Triple = (0, 0, 0), top: float = 1.0
) -> Piece:
    return solid(FRUSTUM, centre, (radius, half_height, radius), material, turn, top)


def wheel(
    x: float,
    y: float,
    z: float,
    radius: float,
    half_width: float = 0.05,
    material: str = "rubber",
    hole: float | None = None,
) -> Piece:
    shape, form = (FRUSTUM, 1.0) if hole is None else (RING, hole)
    return solid(shape, (x, y, z), (radius, half_width, radius), material, (90, 0, 0), form)


def bar(start: Triple, end: Triple, radius: float, material: str, part: int = 0, flat: float = 1.0) -> Piece:
    """Builds a capsule between two points, `flat` times as thick along the axis nearest to z."""
    start, end = np.asarray(start, float), np.asarray(end, float)
    length = np.linalg.norm(end - start)
    along = (end - start) / length
    (x, y, z) = along
    side = np.array([y, -x, 0]) if abs(z) < 0.9 else np.array([0, z, -y])
    side /= np.linalg.norm(side)
    third = side[[1, 2, 0]] * along[[2, 0, 1]] - side[[2, 0, 1]] * along[[1, 2, 0]]  # np.cross takes ten times as long
    axes = np.stack([side, along, third], axis=1)
    radii = np.array([radius, radius, radius * flat])
    return Piece(CAPSULE, (start + end) / 2, axes, radii, length / 2 / radius, material, part)


def offset(origin: Triple, *by: float) -> np.ndarray:
    return np.asarray(origin) + np.array(by)


def mirrored(make: Callable[[int], Piece]) -> list[Piece]:
    return [make(-1), make(1)]


RIGID = {
    "aeroplane": [
        bar((-0.95, 0, 0), (0.8, 0, 0), 0.13, "hull"),
        tube((1.0, 0, 0), 0.12, 0.14, "hull", (0, 0, -90), top=0.2),
        box((-0.05, -0.04, 0.55), (0.17, 0.02, 0.5), "metal", (0, 24, 0)),
        box((-0.05, -0.04, -0.55), (0.17, 0.02, 0.5), "metal", (0, -24, 0)),
        box((-0.95, 0.25, 0), (0.13, 0.2, 0.02), "paint", (0, 0, 20)),
        box((-0.95, 0.05, 0), (0.1, 0.015, 0.32), "metal"),
        *mirrored(lambda s: bar((-0.1, -0.13, 0.4 * s), (0.15, -0.13, 0.4 * s), 0.06, "paint")),
        box((0.1, 0.05, 0), (0.8, 0.018, 0.128), "glass"),
    ],
    "bicycle": [
        *mirrored(lambda s: wheel(0.58 * s, 0, 0, 0.42, 0.035, hole=0.84)),
        *mirrored(lambda s: wheel(0.58 * s, 0, 0, 0.06, 0.05, "metal")),
        bar((-0.58, 0, 0), (-0.15, 0.5, 0), 0.032, "paint"),
        bar((-0.58, 0, 0), (-0.05, -0.02, 0), 0.032, "paint"),
        bar((-0.05, -0.02, 0), (-0.2, 0.62, 0), 0.036, "paint"),
        bar((-0.05, -0.02, 0), (0.4, 0.48, 0), 0.036, "paint"),
        bar((-0.15, 0.5, 0), (0.4, 0.52, 0), 0.036, "paint"),
        bar((0.58, 0, 0), (0.36, 0.7, 0), 0.036, "paint"),
        bar((0.36, 0.72, -0.25), (0.36, 0.72, 0.25), 0.03, "metal"),
        ball((-0.22, 0.66, 0), (0.16, 0.05, 0.09), "rubber"),
    ],
    "boat": [
        solid(FRUSTUM, (0, 0, 0), (0.72, 0.2, 0.22), "boat", form=1.4),
        solid(FRUSTUM, (0, 0.2, 0), (1.0, 0.035, 0.3), "wood"),
        box((-0.45, 0.36, 0), (0.25, 0.14, 0.17), "hull"),
        box((-0.45, 0.4, 0), (0.2, 0.06, 0.18), "glass"),
        bar((0.05, 0.2, 0), (0.05, 1.6, 0), 0.025, "wood"),
        solid(FRUSTUM, (0.4, 0.85, 0), (0.36, 0.55, 0.03), "canvas", form=0.03),
        solid(FRUSTUM, (-0.15, 0.9, 0), (0.2, 0.5, 0.03), "canvas", form=0.03),
    ],
    "bottle": [
        tube((0, 0, 0), 0.3, 0.5, "bottle"),
        tube((0, 0.65, 0), 0.3, 0.16, "bottle", top=0.36),
        tube((0, 0.95, 0), 0.11, 0.18, "bottle"),
        tube((0, 1.14, 0), 0.13, 0.06, "paint"),
        tube((0, -0.02, 0), 0.305, 0.26, "label"),
    ],
    "bus": [
        box((0, 0.1, 0), (1.0, 0.4, 0.3), "bus"),
        box((0, 0.5, 0), (0.96, 0.03, 0.28), "hull"),
        *[box((x, 0.24, 0), (0.13, 0.14, 0.305), "glass") for x in (-0.8, -0.48, -0.16, 0.16, 0.48, 0.8)],
        box((1.0, 0.2, 0), (0.01, 0.2, 0.26), "glass"),
        box((0, -0.12, 0), (1.005, 0.05, 0.303), "paint2"),
        *[wheel(x, -0.3, z, 0.15, 0.04) for x in (-0.6, 0.6) for z in (-0.28, 0.28)],
        *mirrored(lambda s: wheel(0.6 * s, -0.3, 0.29, 0.07, 0.05, "metal")),
    ],
    "car": [
        box((0, 0, 0), (1.0, 0.17, 0.4), "car"),
        ball((0.55, 0.12, 0), (0.5, 0.12, 0.38), "car"),
        solid(FRUSTUM, (-0.1, 0.32, 0), (0.66, 0.18, 0.42), "glass", form=0.62),
        solid(FRUSTUM, (-0.1, 0.5, 0), (0.44, 0.03, 0.3), "car", form=0.9),
        *[wheel(x, -0.16, z, 0.2, 0.05) for x in (-0.58, 0.6) for z in (-0.38, 0.38)],
        *[wheel(x, -0.16, 0.39, 0.11, 0.06, "metal") for x in (-0.58, 0.6)],
        *mirrored(lambda s: ball((1.0, 0.04, 0.28 * s), (0.03, 0.06, 0.08), "lamp")),
        box((0, -0.13, 0), (1.03, 0.04, 0.38), "rubber"),
    ],
    "chair": [
        box((0, 0, 0), (0.36, 0.05, 0.36), "fabric"),
        *mirrored(lambda s: bar((0.32 * s, 0, -0.32), (0.34 * s, 0.85, -0.42), 0.04, "wood")),
        *[box((0, y, -0.38), (0.32, 0.06, 0.025), "wood", (-8, 0, 0)) for y in (0.35, 0.55, 0.75)],
        *[bar((0.31 * x, 0, 0.31 * z), (0.36 * x, -0.7, 0.36 * z), 0.045, "wood") for x in (-1, 1) for z in (-1, 1)],
    ],
    "diningtable": [
        solid(FRUSTUM, (0, 0, 0), (1.0, 0.05, 0.6), "wood"),
        *[bar((0.6 * x, 0, 0.35 * z), (0.65 * x, -0.7, 0.4 * z), 0.06, "wood") for x in (-1, 1) for z in (-1, 1)],
        *[tube((x, 0.065, z), 0.17, 0.015, "china") for x, z in ((-0.5, 0.1), (0.45, 0.2), (0, -0.3))],
        tube((0.15, 0.15, 0.15), 0.07, 0.11, "glass", top=1.3),
    ],
    "motorbike": [
        *mirrored(lambda s: wheel(0.62 * s, 0, 0, 0.36, 0.08, hole=0.62)),
        *mirrored(lambda s: wheel(0.62 * s, 0, 0, 0.16, 0.05, "metal")),
        box((-0.02, 0.08, 0), (0.24, 0.19, 0.13), "metal", (0, 0, 8)),
        ball((0.14, 0.43, 0), (0.3, 0.14, 0.15), "motorbike", (0, 0, 12)),
        ball((-0.4, 0.38, 0), (0.36, 0.08, 0.14), "rubber", (0, 0, -8)),
        ball((-0.7, 0.38, 0), (0.2, 0.07, 0.1), "motorbike", (0, 0, -20)),
        *mirrored(lambda s: bar((0.62, 0, 0.1 * s), (0.42, 0.66, 0.1 * s), 0.04, "metal")),
        bar((0.38, 0.7, -0.3), (0.38, 0.7, 0.3), 0.035, "rubber"),
        ball((0.52, 0.52, 0), (0.09, 0.1, 0.1), "lamp"),
        bar((0.0, -0.12, 0.16), (-0.75, -0.02, 0.16), 0.06, "metal"),
    ],
    "sofa": [
        box((0, 0, 0), (0.9, 0.18, 0.4), "sofa"),
        box((0, 0.3, -0.36), (0.92, 0.36, 0.12), "sofa", (-10, 0, 0)),
        *mirrored(lambda s: bar((0.92 * s, 0.18, -0.35), (0.92 * s, 0.18, 0.36), 0.15, "sofa")),
        *mirrored(lambda s: box((0.92 * s, -0.02, 0), (0.13, 0.2, 0.42), "sofa")),
        *mirrored(lambda s: ball((0.43 * s, 0.2, 0.05), (0.42, 0.1, 0.38), "sofa")),
        box((0.5, 0.36, -0.1), (0.18, 0.16, 0.06), "fabric2", (-20, 0, 15)),
    ],
    "train": [
        bar((-1.3, 0.1, 0), (1.0, 0.1, 0), 0.34, "train", flat=0.9),
        box((-0.2, -0.1, 0), (1.35, 0.2, 0.31), "paint2"),
        *[box((x, 0.2, 0), (0.1, 0.1, 0.32), "glass") for x in np.arange(-1.2, 0.9, 0.3)],
        box((1.2, 0.2, 0), (0.1, 0.13, 0.22), "glass", (0, 0, 20)),
        *[wheel(x, -0.34, z, 0.09, 0.04) for x in (-1.2, -0.95, -0.3, -0.05, 0.6, 0.85) for z in (-0.27, 0.27)],
        box((-0.1, 0.46, 0), (0.9, 0.03, 0.16), "metal"),
        box((0, -0.45, 0), (1.7, 0.025, 0.34), "metal"),
    ],
    "tvmonitor": [
        box((0, 0, 0), (0.7, 0.45, 0.06), "plastic"),
        box((0, 0.02, 0.02), (0.64, 0.38, 0.05), "screen"),
        box((0, -0.52, -0.02), (0.06, 0.1, 0.03), "plastic"),
        solid(FRUSTUM, (0, -0.62, 0), (0.3, 0.025, 0.18), "plastic"),
    ],
}
