# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Surroundings of a procedural scene in perspective: ground, flat or curved walls, sky, and light.

The camera is at the origin, 1 unit above the ground, and looks down. Surroundings have the axes (right, up, back) of
the ground, where `back` is horizontal and points away from the scene; views are in camera coordinates.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


_FAR = 200.0  # distance of the sky, in heights of the camera above the ground


class Surface(NamedTuple):
    """The ground, an upright wall, or an upright hollow cylinder around the camera.

    Args:
        material: Row of `materials.MATERIALS`.
        distance: Distance from the camera to the plane, or radius of the cylinder.
        normal: Unit normal of a plane, towards the camera; `None` for a cylinder.
        axis: Position of the axis of a cylinder: to the right of the camera, and behind it.
    """

    material: str
    distance: float
    normal: tuple[float, float, float] | None = None
    axis: tuple[float, float] = (0.0, 0.0)


class Setting(NamedTuple):
    """Surroundings of the objects.

    Args:
        pitch: Downward angle of the camera, in degrees.
        focal: Focal length, in halves of the short side of the image.
        surfaces: The ground, then the walls.
        light: Unit vector towards the light, in camera coordinates.
        ambient: Fraction of ambient light.
        tint: Colour of the light, `(3,)`.
    """

    pitch: float
    focal: float
    surfaces: list[Surface]
    light: np.ndarray
    ambient: float
    tint: np.ndarray


class View(NamedTuple):
    """Visible surroundings, per pixel.

    Args:
        surface: Index in `surfaces`, -1 for the sky, `(height, width)`.
        normals: Unit normal in camera coordinates, 0 in the sky, `(height, width, 3)`.
        place: Position in texture space, `(height, width, 3)`.
        footprint: Length on the surface that a pixel covers, `(height, width)`.
    """

    surface: np.ndarray
    normals: np.ndarray
    place: np.ndarray
    footprint: np.ndarray


Ray = tuple[np.ndarray, np.ndarray, np.ndarray]  # right, up and back, per pixel
# Distance, normal, the two coordinates along the surface, and the cosine of the angle, per pixel.
Meeting = tuple[np.ndarray, Sequence[np.ndarray | float], np.ndarray, np.ndarray, np.ndarray]


def _wall(yaw: float, distance: float) -> Surface:
    return Surface("wall", distance, (np.sin(np.radians(yaw)), 0.0, np.cos(np.radians(yaw))))


def draw_setting(rng: np.random.Generator, habitat: str) -> Setting:
    """Draws a room (a curved wall or two flat ones), a road (with or without a wall), a meadow or water."""
    surfaces = [Surface("floor" if habitat == "room" else habitat, 1.0, (0.0, 1.0, 0.0))]
    yaw, distance = rng.uniform(-15, 15), rng.uniform(1.8, 6.0)
    if habitat == "room" and rng.random() < 0.15:
        radius = rng.uniform(2.0, 5.0)
        axis = (radius * rng.uniform(-0.5, 0.5), -radius * rng.uniform(0, 0.5))
        surfaces.append(Surface("wall", radius, axis=axis))
    elif habitat == "room":
        surfaces += [_wall(yaw, distance), _wall(yaw + (90 if yaw < 0 else -90), rng.uniform(1.5, 4.0))]
    elif habitat == "road" and rng.random() < 0.5:
        surfaces.append(_wall(yaw, distance))
    light = np.array([rng.uniform(-1, 1), -rng.uniform(0.3, 1.0), rng.uniform(0.3, 1.0)])
    return Setting(
        pitch=rng.uniform(10, 18),
        focal=rng.uniform(1.6, 3.0),
        surfaces=surfaces,
        light=light / np.linalg.norm(light),
        ambient=rng.uniform(0.4, 0.6),
        tint=1 + rng.uniform(-0.1, 0.1) * np.array([1.0, 0.2, -1.0]),
    )


def view_setting(setting: Setting, x: np.ndarray, y: np.ndarray) -> View:
    """Follows a ray per pixel to the first surface; `x` and `y` are the columns and rows as in `DepthBuffer`."""
    c, s = np.cos(np.radians(setting.pitch)), np.sin(np.radians(setting.pitch))
    down = y[:, None]
    ray = (x[None, :], -c * down - s * setting.focal, s * down - c * setting.focal)  # of length `focal` in the middle
    shape = (len(y), len(x))
    nearest, surfaces = np.full(shape, _FAR, np.float32), np.full(shape, -1)
    normal, cosine = [np.zeros(shape, np.float32)] * 3, np.ones(shape, np.float32)
    u, v = np.broadcast_to(x, shape), np.broadcast_to(down, shape)  # texture coordinates of the sky
    for number, surface in enumerate(setting.surfaces):
        if surface.normal is None:
            met = _meet_cylinder(surface.axis, surface.distance, ray)
        else:
            met = _meet_plane(surface.normal, surface.distance, ray)
        distance, its_normal, its_u, its_v, its_cosine = met
        hit = (distance < nearest) & (distance > 0)
        surfaces[hit] = number
        nearest, u, v = np.where(hit, distance, nearest), np.where(hit, its_u, u), np.where(hit, its_v, v)
        normal = [np.where(hit, its, other) for its, other in zip(its_normal, normal, strict=True)]
        cosine = np.where(hit, its_cosine, cosine)
    right, up, back = normal
    normals = np.stack([right, s * back - c * up, s * up + c * back], axis=-1).astype(np.float32)
    place = np.stack([u, v, np.zeros(shape)], axis=-1).astype(np.float32)
    footprint = nearest * (x[1] - x[0]) / np.maximum(cosine / setting.focal, 0.05)
    return View(surfaces, normals, place, np.where(surfaces < 0, 0, footprint).astype(np.float32))


def _meet_plane(normal: tuple[float, float, float], plane: float, ray: Ray) -> Meeting:
    """Intersects rays with a plane, given by its unit normal and distance."""
    right, up, back = normal
    slope = -(right * ray[0] + up * ray[1] + back * ray[2])
    distance = plane / np.maximum(slope, 1e-6)
    if up:
        return distance, normal, distance * ray[0], distance * ray[2], slope
    return distance, normal, distance * (back * ray[0] - right * ray[2]), distance * ray[1], slope


def _meet_cylinder(axis: tuple[float, float], radius: float, ray: Ray) -> Meeting:
    """Intersects rays with the far side of an upright cylinder, given by its axis and radius."""
    right, up, back = ray
    start_right, start_back = (-offset for offset in axis)
    square, half_linear = right**2 + back**2, right * start_right + back * start_back
    constant = start_right**2 + start_back**2 - radius**2  # negative: the camera is inside
    distance = (np.sqrt(half_linear**2 - square * constant) - half_linear) / square
    normal_right = -(start_right + distance * right) / radius
    normal_back = -(start_back + distance * back) / radius
    along = np.arctan2(normal_right, normal_back) * radius
    slope = -(normal_right * right + normal_back * back)
    return distance, (normal_right, 0.0, normal_back), along, distance * up, slope
