# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Composes a procedural scene, and renders its image and labels from one depth buffer."""

from typing import NamedTuple

import numpy as np

from ...tasks.classes import VOC_CLASSES
from .animals import ANIMALS, animal, bird
from .figures import person, potted_plant
from .labels import find_saliency, find_semseg
from .light import light_up, photograph
from .materials import albedo, draw_material
from .models import RIGID, Piece, bar, box, solid
from .setting import Setting, draw_setting, view_setting
from .solids import BALL, FRUSTUM, DepthBuffer, Solid, rotation


RENDERER_VERSION = 2  # part of the cache key of datasets; raise it when scenes change

# The classes that are seen in each of the surroundings of `setting.py`, beside people.
_HABITATS = {
    "meadow": ("bird", "cow", "dog", "horse", "sheep"),
    "road": ("aeroplane", "bicycle", "bus", "car", "motorbike", "train"),
    "room": ("bottle", "cat", "chair", "diningtable", "dog", "pottedplant", "sofa", "tvmonitor"),
    "water": ("aeroplane", "bird", "boat"),
}
_FLYING = {"aeroplane", "bird"}

_CLUTTER, _POSTER = "clutter", "poster"  # things without a label
_YAW = {"person": 60, _CLUTTER: 180}  # largest turn about the vertical axis, in degrees; 30 for the others


class Plan(NamedTuple):
    """Planned position of an object, in camera units: its longer side, its middle in x, and its lowest point in y."""

    name: str
    size: float
    x: float
    foot: float
    flies: bool = False


class Thing(NamedTuple):
    """A placed object: its solids in camera coordinates, with their materials and parts, and its shadow."""

    name: str
    solids: list[Solid]
    materials: list[str]
    parts: list[int]
    scale: float
    foot: tuple[float, float, float] | None  # x, y and half-width of the shadow under it


def _model(rng: np.random.Generator, name: str) -> list[Piece]:
    if name in ANIMALS:
        return animal(rng, name)
    if name == _POSTER:
        return [box((0, 0, 0), (rng.uniform(0.4, 1), rng.uniform(0.4, 1), 0.02), "anything")]
    if name == _CLUTTER:
        radii = rng.uniform(0.3, 1.0, 3)
        if rng.random() < 0.25:
            return [bar((0, -0.5, 0), (0, 0.5, 0), 0.2, "anything")]
        return [solid(int(rng.integers(BALL, FRUSTUM + 1)), (0, 0, 0), radii, "anything", form=rng.uniform(0.1, 1.5))]
    grown = {"bird": bird, "person": person, "pottedplant": potted_plant}
    return grown[name](rng) if name in grown else RIGID[name]


def _place(rng: np.random.Generator, plan: Plan, pitch: float) -> Thing:
    """Turns, scales and moves a model that is seen from `pitch` degrees above."""
    name, size, x, foot, flies = plan
    yaw = _YAW.get(name, 30) * rng.uniform(-1, 1)
    roll = rng.uniform(-20, 20) if flies or name == _CLUTTER else np.clip(rng.normal(0, 6), -20, 20)
    turn = rotation(0, 0, roll) @ rotation(pitch + rng.uniform(-3, 6), 0, 0) @ rotation(0, yaw, 0)
    turn = np.diag([rng.choice([-1.0, 1.0]), -1.0, 1.0]) @ turn  # y points down in the camera
    stretch = rng.uniform(0.94, 1.06, 3) if name == "person" else rng.uniform(0.85, 1.18, 3)
    pieces = _model(rng, name)
    solids = []
    for piece in pieces:
        radii = piece.radii * np.linalg.norm(stretch[:, None] * piece.axes, axis=0) * rng.uniform(0.93, 1.07)
        solids.append(Solid(piece.shape, turn @ (piece.centre * stretch), turn @ piece.axes, radii, piece.form))
    reach = np.array([part.reach() for part in solids])
    centres = np.array([part.centre for part in solids])
    low, high = (centres - reach).min(axis=0), (centres + reach).max(axis=0)
    scale = size / max(high[:2] - low[:2])
    move = np.array([x - scale * (low[0] + high[0]) / 2, foot - scale * high[1], -scale * (low[2] + high[2]) / 2])
    solids = [s._replace(centre=s.centre * scale + move, radii=s.radii * scale) for s in solids]
    shadow = None if flies else (x, foot - 0.04 * size, 0.5 * scale * (high[0] - low[0]))
    return Thing(name, solids, [p.material for p in pieces], [p.part for p in pieces], scale, shadow)


def _choose_names(rng: np.random.Generator) -> tuple[str, list[str]]:
    """Draws a habitat and one to four objects that are seen there, with people in more than half of the scenes."""
    first = str(rng.choice([name for name in VOC_CLASSES[1:] if name != "person"]))
    habitat = str(rng.choice([habitat for habitat, names in _HABITATS.items() if first in names]))
    others = [name for name in _HABITATS[habitat] if name != first]
    names = [first, *map(str, rng.choice(others, rng.choice([0, 1, 2], p=[0.5, 0.4, 0.1]), replace=False))]
    if habitat != "water" and rng.random() < 0.6:
        names[: rng.integers(0, 2)] = ["person"] * rng.choice([1, 2], p=[0.8, 0.2])
    return habitat, names


def _plan(rng: np.random.Generator, names: list[str], horizon: float, width: float, has_wall: bool) -> list[Plan]:
    """Spreads out the objects, the larger ones nearer, and adds clutter, and posters where there is a wall."""
    plans: list[Plan] = []
    for name in names:
        size = 2 * rng.uniform(0.6, 1.0) / (1 + 0.08 * (len(names) - 1))
        if name == "person":
            size *= 1.7 if rng.random() < 0.25 else 1.15  # some people are near and cut off by the frame
        nearness = np.clip((size - 0.4) + rng.normal(0, 0.2), 0, 1)
        foot = max(horizon + 0.3 + (0.7 - horizon) * nearness, 0.8 * size - 1) + 0.6 * max(size - 1.5, 0)
        flies = name in _FLYING and rng.random() < 0.6
        if flies:
            foot = rng.uniform(-0.6, 0.4) + size / 2
        options = rng.uniform(-0.8, 0.8, 5) * width  # the position with the most room is taken
        gaps = [min([abs(option - plan.x) for plan in plans], default=-abs(option)) for option in options]
        plans.append(Plan(name, size, options[int(np.argmax(gaps))], foot, flies))
    for _ in range(rng.integers(0, 4)):
        x, foot = rng.uniform(-1, 1) * width, rng.uniform(horizon + 0.15, 1.1)
        plans.append(Plan(_CLUTTER, rng.uniform(0.08, 0.3), x, foot))
    for _ in range(rng.integers(0, 3) if has_wall else 0):
        x, foot = rng.uniform(-1, 1) * width, horizon + rng.uniform(-0.6, 0.3)
        plans.append(Plan(_POSTER, rng.uniform(0.2, 0.5), x, foot, flies=True))
    return plans


def _compose(rng: np.random.Generator, names: list[str], setting: Setting, width: float) -> list[Thing]:
    """Places the objects and some clutter, from the farthest to the nearest, so that none cuts through another."""
    horizon = -setting.focal * np.tan(np.radians(setting.pitch))
    plans = _plan(rng, names, horizon, width, has_wall=len(setting.surfaces) > 1)
    things, front = [], 0.0
    for plan in sorted(plans, key=lambda plan: (plan.name != _POSTER, plan.foot)):
        thing = _place(rng, plan, setting.pitch)
        depth = np.array([(s.centre[2] - s.reach()[2], s.centre[2] + s.reach()[2]) for s in thing.solids])
        shift = np.array([0, 0, front - depth[:, 0].min()])
        front += depth[:, 1].max() - depth[:, 0].min()
        things.append(thing._replace(solids=[s._replace(centre=s.centre + shift) for s in thing.solids]))
    return things


class _Rendering(NamedTuple):
    """Exact pixels of a scene: colour in [0, 1], unit normal or 0, and the object (-1: none) and part."""

    colour: np.ndarray
    normals: np.ndarray
    thing: np.ndarray
    part: np.ndarray


def _render(
    rng: np.random.Generator, setting: Setting, things: list[Thing], x: np.ndarray, y: np.ndarray
) -> _Rendering:
    buffer = DepthBuffer([solid for thing in things for solid in thing.solids], x, y)
    view = view_setting(setting, x, y)
    materials = [draw_material(rng, name) for name in ["sky", *(surface.material for surface in setting.surfaces)]]
    of_solid = []
    for thing in things:
        own = {name: len(materials) + i for i, name in enumerate(dict.fromkeys(thing.materials))}
        materials += [draw_material(rng, name) for name in own]
        of_solid += [own[name] for name in thing.materials]
    scales = np.repeat([thing.scale for thing in things], [len(thing.solids) for thing in things]).astype(np.float32)

    seen, local, normals = buffer.surface()
    on_thing = buffer.index >= 0
    material, place, footprint = view.surface + 1, view.place, view.footprint
    shade = _shadows(things, x, y)
    shade[on_thing] = 1
    view.normals[on_thing] = normals
    material[on_thing] = np.array(of_solid)[seen]
    place[on_thing] = local / scales[seen][:, None]
    footprint[on_thing] = (x[1] - x[0]) / scales[seen]
    colour = albedo(materials, material.ravel(), place.reshape(-1, 3), footprint.ravel()).reshape(place.shape)
    colour = light_up(setting, materials, material, colour, view.normals, shade)

    owner = np.repeat(np.arange(len(things)), [len(thing.solids) for thing in things])
    part = np.array([part for thing in things for part in thing.parts], np.uint8)
    return _Rendering(
        colour,
        view.normals,
        np.where(on_thing, owner[buffer.index], -1),
        np.where(on_thing, part[buffer.index], 0).astype(np.uint8),
    )


def _shadows(things: list[Thing], x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Computes the shading of the ground: a factor of brightness with a soft dark blob below each object."""
    shade = np.ones((len(y), len(x)), np.float32)
    for foot_x, foot_y, half_width in (thing.foot for thing in things if thing.foot is not None):
        along, across = (x - foot_x) / half_width, (y - foot_y) / (0.3 * half_width)
        shade *= 1 - 0.6 * np.exp(-(along**2))[None, :] * np.exp(-(across**2))[:, None]
    return shade


def render_scene(seed: int, index: int, size: int | tuple[int, int] = 128) -> dict[str, np.ndarray]:
    """Renders the scene `index` of the series `seed`. On one machine, the same arguments give the same arrays.

    Args:
        seed: Series of scenes, 0 or more.
        index: Scene of the series, 0 or more.
        size: Height and width in pixels, or one number for both. More pixels show the same scene in more detail.

    Returns:
        image: `(height, width, 3)`, RGB, uint8.
        semseg: `(height, width)`, uint8: 0 background, 1 to 20 the classes of VOC, 255 on contours between objects.
        human_parts: `(height, width)`, uint8: 0 none, 1 head, 2 torso, 3 upper arm, 4 lower arm and hand, 5 upper leg,
            6 lower leg and foot.
        saliency: `(height, width)`, uint8: 255 for the dominant objects, else 0.
        normals: `(height, width, 3)`, uint8: (n + 1) * 127.5, rounded, for the unit normal n with x to the right, y
            down and z towards the viewer; (0, 0, 0), which no unit vector gives, in the sky.
    """
    height, width = (size, size) if isinstance(size, int) else size
    rng = np.random.default_rng((seed, index))
    step = 2 / min(height, width)
    x, y = (((np.arange(n) + 0.5 - n / 2) * step).astype(np.float32) for n in (width, height))
    habitat, names = _choose_names(rng)
    setting = draw_setting(rng, habitat)
    things = _compose(rng, names, setting, width / min(height, width))
    rendering = _render(rng, setting, things, x, y)
    ids = np.array([VOC_CLASSES.index(t.name) if t.name in VOC_CLASSES else 0 for t in things] + [0], np.uint8)
    has_normal = rendering.normals.any(axis=-1, keepdims=True)
    return {
        "image": photograph(rng, rendering.colour, x, y),
        "semseg": find_semseg(ids, rendering.thing),
        "human_parts": rendering.part,
        "saliency": find_saliency(ids, rendering.thing, rendering.colour, x, y),
        "normals": np.where(has_normal, np.round((rendering.normals + 1) * 127.5), 0).astype(np.uint8),
    }
