# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Models of potted plants and of a jointed person with the six parts of the task `human_parts`."""

import numpy as np

from .models import Piece, ball, bar, offset, tube
from .solids import rotation


HEAD, TORSO, UPPER_ARM, LOWER_ARM, UPPER_LEG, LOWER_LEG = range(1, 7)


def potted_plant(rng: np.random.Generator) -> list[Piece]:
    """Builds a pot with long leaves or round foliage."""
    pieces = [tube((0, 0, 0), 0.28, 0.28, "clay", top=1.4), tube((0, 0.3, 0), 0.43, 0.06, "clay")]
    if rng.random() < 0.5:
        for _ in range(rng.integers(9, 14)):
            lean, around = rng.uniform(5, 65), rng.uniform(0, 360)
            length = rng.uniform(0.35, 0.6)
            turn = rotation(0, around, 0) @ rotation(0, 0, lean)
            leaf = ball((0, 0.32, 0) + turn @ [0, length, 0], (0.09, length, 0.03), "leaf")
            pieces.append(leaf._replace(axes=turn))
        return pieces
    pieces.append(bar((0, 0.2, 0), (0, 0.9, 0), 0.05, "wood"))
    for _ in range(rng.integers(7, 12)):
        centre = np.array([0, 1.0, 0]) + rng.normal(size=3) * [0.27, 0.22, 0.2]
        pieces.append(ball(centre, rng.uniform(0.16, 0.3, 3), "leaf", rng.uniform(-90, 90, 3)))
    return pieces


def person(rng: np.random.Generator) -> list[Piece]:
    """Builds a clothed person, about 1.8 units tall, that stands, walks or sits with random joint angles."""
    sits = rng.random() < 0.2
    lean = rotation(rng.uniform(-5, 20), rng.uniform(-20, 20), rng.uniform(-12, 12))
    neck = lean @ [0, 0.52, 0]
    nod = lean @ rotation(rng.uniform(-15, 20), rng.uniform(-50, 50), rng.uniform(-15, 15))
    head = neck + nod @ [0, 0.2, 0.02]
    pieces = [
        bar(lean @ [0, 0.06, 0], lean @ [0, 0.4, 0], 0.155, "shirt", TORSO, flat=0.75),
        bar(lean @ [-0.14, 0.44, 0], lean @ [0.14, 0.44, 0], 0.085, "shirt", TORSO),
        bar(offset(neck, 0, -0.05, 0), head, 0.06, "skin", TORSO),
        ball(head, (0.115, 0.15, 0.13), "skin", part=HEAD)._replace(axes=nod),
        ball(head + nod @ [0, 0.045, -0.03], (0.13, 0.14, 0.14), "hair", part=HEAD)._replace(axes=nod),
        ball(head + nod @ [0, -0.02, 0.135], (0.02, 0.03, 0.03), "skin", part=HEAD),
        *[ball(head + nod @ [0.05 * side, 0.015, 0.115], 0.017, "dark", part=HEAD) for side in (-1, 1)],
    ]
    sleeve = rng.choice(["shirt", "skin"])
    trouser = rng.choice(["trousers", "trousers", "skin"])
    for side in (-1, 1):
        pieces += _arm(rng, lean @ [0.21 * side, 0.44, 0], side, lean, sleeve)
        pieces += _leg(rng, np.array([0.09 * side, 0, 0]), side, sits, trouser)
    return pieces


def _arm(rng: np.random.Generator, shoulder: np.ndarray, side: int, lean: np.ndarray, sleeve: str) -> list[Piece]:
    out = rng.uniform(5, 40) if rng.random() < 0.65 else rng.uniform(40, 150)
    upper = lean @ rotation(rng.uniform(-50, 30), 0, side * out)
    lower = upper @ rotation(-rng.uniform(0, 110), 0, -side * rng.uniform(-20, 50))
    elbow = shoulder + upper @ [0, -0.28, 0]
    wrist = elbow + lower @ [0, -0.25, 0]
    return [
        bar(shoulder, elbow, 0.068, "shirt", UPPER_ARM),
        bar(elbow, wrist, 0.053, sleeve, LOWER_ARM),
        ball(wrist + lower @ [0, -0.06, 0], (0.045, 0.085, 0.04), "skin", part=LOWER_ARM)._replace(axes=lower),
    ]


def _leg(rng: np.random.Generator, hip: np.ndarray, side: int, sits: bool, trouser: str) -> list[Piece]:
    raised = rng.uniform(55, 85) if sits else rng.normal(0, 18)
    upper = rotation(-raised, 0, side * rng.uniform(0, 25))
    lower = rotation(
        -raised + rng.uniform(60, 95) if sits else -raised + abs(rng.normal(0, 25)), 0, side * rng.uniform(0, 10)
    )
    knee = hip + upper @ [0, -0.42, 0]
    ankle = knee + lower @ [0, -0.4, 0]
    return [
        bar(hip, knee, 0.095, "trousers", UPPER_LEG),
        bar(knee, ankle, 0.068, trouser, LOWER_LEG),
        bar(ankle + lower @ [0, -0.03, -0.02], ankle + lower @ [0.02 * side, -0.05, 0.13], 0.05, "shoe", LOWER_LEG),
    ]
