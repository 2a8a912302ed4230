# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Models of animals in profile: four-legged animals, defined by their proportions, and birds."""

from typing import NamedTuple

import numpy as np

from .models import Piece, ball, bar, box, offset, solid, tube
from .solids import FRUSTUM, rotation


class Animal(NamedTuple):
    """Proportions of a four-legged animal, in half lengths of the trunk.

    Args:
        coat: Material of the body.
        face: Material of the head and the legs.
        mane: Material of the tail.
        trunk: Radii.
        leg: Length and radius.
        neck: Offset of the head from the shoulder, and radius of the neck.
        head: Radii.
        snout: Length and radius.
        ears: Offset along the head, radii, and degrees by which they lean outwards.
        tail: Ends of its two bones, from the rump, and radius.
    """

    coat: str
    face: str
    mane: str
    trunk: tuple[float, float, float]
    leg: tuple[float, float]
    neck: tuple[float, float, float]
    head: tuple[float, float, float]
    snout: tuple[float, float]
    ears: tuple[float, tuple[float, float, float], float]
    tail: tuple[tuple[float, float], tuple[float, float], float]


ANIMALS = {
    "cat": Animal(
        *("fur", "fur", "fur"),
        trunk=(0.7, 0.25, 0.24),
        leg=(0.55, 0.075),
        neck=(0.2, 0.22, 0.15),
        head=(0.23, 0.21, 0.22),
        snout=(0.06, 0.1),
        ears=(0.0, (0.09, 0.14, 0.05), 15),
        tail=((-0.3, 0.3), (-0.35, 0.75), 0.055),
    ),
    "dog": Animal(
        *("coat", "coat", "coat"),
        trunk=(0.7, 0.24, 0.22),
        leg=(0.8, 0.075),
        neck=(0.25, 0.35, 0.15),
        head=(0.22, 0.18, 0.18),
        snout=(0.26, 0.1),
        ears=(-0.05, (0.08, 0.19, 0.04), 160),
        tail=((-0.2, 0.1), (-0.3, 0.4), 0.05),
    ),
    "cow": Animal(
        *("hide", "hide", "hide"),
        trunk=(0.85, 0.42, 0.36),
        leg=(0.7, 0.1),
        neck=(0.32, 0.15, 0.25),
        head=(0.25, 0.19, 0.19),
        snout=(0.24, 0.15),
        ears=(-0.05, (0.05, 0.13, 0.05), 85),
        tail=((-0.1, -0.3), (-0.08, -0.7), 0.035),
    ),
    "horse": Animal(
        *("chestnut", "chestnut", "dark"),
        trunk=(0.75, 0.29, 0.26),
        leg=(1.05, 0.075),
        neck=(0.5, 0.65, 0.18),
        head=(0.24, 0.16, 0.14),
        snout=(0.36, 0.1),
        ears=(-0.1, (0.04, 0.12, 0.03), 15),
        tail=((-0.2, -0.15), (-0.28, -0.75), 0.09),
    ),
    "sheep": Animal(
        *("wool", "dark", "wool"),
        trunk=(0.75, 0.5, 0.45),
        leg=(0.5, 0.06),
        neck=(0.2, 0.2, 0.24),
        head=(0.19, 0.18, 0.16),
        snout=(0.16, 0.11),
        ears=(-0.03, (0.04, 0.13, 0.06), 100),
        tail=((-0.08, -0.1), (-0.1, -0.2), 0.1),
    ),
}


def animal(rng: np.random.Generator, name: str) -> list[Piece]:
    """Builds a four-legged animal in profile, facing right, with random poses of legs and head."""
    form = ANIMALS[name]
    length, height, width = form.trunk
    pieces = [
        ball((0.45 * length, 0, 0), (0.6 * length, height, width), form.coat),
        ball((-0.45 * length, 0, 0), (0.6 * length, 1.03 * height, width), form.coat),
        tube((0, 0, 0), width * 0.97, length * 0.6, form.coat, (0, 0, 90)),
    ]
    pieces += _walking_legs(rng, form)
    shoulder = np.array([0.8 * length, 0.35 * height, 0])
    *neck, neck_radius = form.neck
    bow = rng.uniform(-0.6 if name in ("cow", "horse", "sheep") else -0.15, 0.1)  # grazing animals bend low
    skull = offset(shoulder, neck[0], neck[1] + bow, rng.uniform(-0.15, 0.15))
    pieces.append(bar(shoulder, skull, neck_radius, form.coat))
    pieces += _head(rng, form, skull)
    if name == "horse":
        pieces.append(bar(offset(shoulder, -0.15, 0.15, 0), offset(skull, -0.12, 0.08, 0), 0.1, form.mane))
    rump = np.array([-length, 0.4 * height, 0])
    *bones, tail_radius = form.tail
    middle, end = (offset(rump, x, y, rng.uniform(-0.15, 0.15)) for x, y in bones)
    return [*pieces, bar(rump, middle, tail_radius, form.mane), bar(middle, end, tail_radius, form.mane)]


def _walking_legs(rng: np.random.Generator, form: Animal) -> list[Piece]:
    (length, height, width), (leg, radius) = form.trunk, form.leg
    bone = 0.5 * (leg + 0.4 * height)
    pieces = []
    for x in (-0.75 * length, 0.7 * length):
        for z in (-0.6 * width, 0.6 * width):
            hip = np.array([x, -0.4 * height, z])
            swing, bend = np.radians(rng.uniform(-25, 25)), np.radians(rng.uniform(-25, 5))
            knee = offset(hip, bone * np.sin(swing), -bone * np.cos(swing), 0)
            foot = offset(knee, bone * np.sin(swing + bend), -bone * np.cos(swing + bend), 0)
            pieces += [bar(hip, knee, 1.35 * radius, form.face), bar(knee, foot, radius, form.face)]
    return pieces


def _head(rng: np.random.Generator, form: Animal, skull: np.ndarray) -> list[Piece]:
    nod = rng.uniform(-35, 5)
    turn = rotation(0, rng.uniform(-40, 40), nod)  # the head looks along x
    (length, height, width), (reach, radius) = form.head, form.snout
    snout = 0.6 * length + reach
    pieces = [
        ball(skull, form.head, form.face, (0, 0, nod)),
        bar(skull, skull + turn @ [snout, -0.25 * height, 0], radius, form.face),
        ball(skull + turn @ [snout + 0.8 * radius, -0.2 * height, 0], 0.4 * radius, "dark"),
    ]
    along, radii, lean = form.ears
    for side in (-1, 1):
        base = skull + turn @ [along, 0.75 * height, 0.6 * width * side]
        lift = radii[1] * 0.6 * np.array([0, np.cos(np.radians(lean)), np.sin(np.radians(lean)) * side])
        pieces.append(solid(FRUSTUM, base + turn @ lift, radii, form.face, (lean * side, 0, 0), form=0.1))
        pieces.append(ball(skull + turn @ [0.6 * length, 0.35 * height, 0.75 * width * side], 0.045, "dark"))
        if form is ANIMALS["cow"]:
            horn = skull + turn @ [0, height, 0.5 * width * side]
            pieces.append(bar(horn, horn + turn @ [0.06, 0.18, 0.16 * side], 0.04, "china"))
    return pieces


def bird(rng: np.random.Generator) -> list[Piece]:
    """Builds a bird in profile, with its wings folded or spread."""
    tilt = rng.uniform(0, 35)
    turn = rotation(0, 0, tilt)
    head = turn @ [0.6, 0.12, 0]
    pieces = [
        ball((0, 0, 0), (0.62, 0.3, 0.28), "plumage", (0, 0, tilt)),
        ball(head, 0.21, "plumage"),
        tube(offset(head, 0.27, -0.02, 0), 0.08, 0.14, "beak", (0, 0, -95), top=0.05),
        *[ball(offset(head, 0.1, 0.06, 0.16 * side), 0.04, "dark") for side in (-1, 1)],
        box(turn @ [-0.75, 0.02, 0], (0.28, 0.025, 0.13), "plumage2", (0, 0, tilt)),
    ]
    if rng.random() < 0.5:
        lift = rng.uniform(15, 70)
        for side in (-1, 1):
            rise = np.array([-0.1, np.sin(np.radians(lift)), side * np.cos(np.radians(lift))])
            pieces.append(ball(offset(0.62 * rise, 0, 0.1, 0), (0.3, 0.03, 0.55), "plumage2", (-side * lift, 0, 0)))
    else:
        pieces += [ball((-0.1, 0.02, 0.2 * side), (0.5, 0.2, 0.12), "plumage2", (0, 0, tilt)) for side in (-1, 1)]
        pieces += [bar((0.05, -0.2, 0.1 * side), (0.08, -0.62, 0.12 * side), 0.03, "beak") for side in (-1, 1)]
        pieces += [bar((0.04, -0.62, 0.12 * side), (0.2, -0.63, 0.14 * side), 0.03, "beak") for side in (-1, 1)]
    return pieces
