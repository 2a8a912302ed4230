# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Solids of procedural scenes and the depth buffer that renders them.

Every solid is a unit shape in its own frame, stretched by three radii, turned and moved. The camera is orthographic:
x points right, y down, z towards the viewer, and the short side of the image spans [-1, 1]. A point P in camera
coordinates has the local coordinates p = matrix (P - centre), so a view ray is a straight line in the unit shape too,
and its depth has a closed form. Labels and normals come from the same depth buffer and are therefore exact.
"""

from typing import NamedTuple

import numpy as np


BALL, BOX, FRUSTUM, CAPSULE, RING = range(5)

_TINY = 1e-6  # avoids a division by zero for a ray parallel to a face


class Solid(NamedTuple):
    """A unit shape about its own y axis, in camera coordinates.

    Args:
        shape: One of BALL, BOX, FRUSTUM, CAPSULE, RING.
        centre: Position, `(3,)`.
        axes: Local axes as columns, `(3, 3)`.
        radii: Half-sizes along the local axes, `(3,)`; for a capsule, the radii of its end balls.
        form: FRUSTUM: ratio of top to bottom radius. CAPSULE: ratio of the half-length of the straight part to the
            radius. RING: ratio of inner to outer radius. Unused by BALL and BOX.
    """

    shape: int
    centre: np.ndarray
    axes: np.ndarray
    radii: np.ndarray
    form: float | np.floating

    @property
    def matrix(self) -> np.ndarray:
        """Matrix from offsets to the centre to local coordinates, `(3, 3)`."""
        return self.axes.T / self.radii[:, None]

    def reach(self) -> np.ndarray:
        """Computes the half-extent of the bounding box along x, y and z, `(3,)`."""
        radii = self.radii
        if self.shape == BALL:
            return np.sqrt((self.axes**2) @ radii**2)
        if self.shape == FRUSTUM:
            radii = radii * [max(1.0, self.form), 1.0, max(1.0, self.form)]
        if self.shape == CAPSULE:
            radii = radii * [1.0, 1.0 + self.form, 1.0]
        return np.abs(self.axes) @ radii


def rotation(pitch: float, yaw: float, roll: float) -> np.ndarray:
    """Computes the rotation about x, then y, then z by the given degrees, `(3, 3)`."""
    (cx, cy, cz), (sx, sy, sz) = (f(np.radians((pitch, yaw, roll))) for f in (np.cos, np.sin))
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def _upper_root(square: float, half_linear: np.ndarray, constant: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Computes both roots (upper, lower) of square t^2 + 2 half_linear t + constant; NaN if they are not real."""
    root = np.sqrt(half_linear**2 - square * constant)
    return (-half_linear + root) / square, (-half_linear - root) / square


def _slab(origin: np.ndarray, slope: float) -> tuple[np.ndarray, np.ndarray]:
    """Computes the upper and lower t of |origin + slope t| <= 1."""
    slope = slope if abs(slope) > _TINY else _TINY
    middle, half = -origin / slope, 1.0 / abs(slope)
    return middle + half, middle - half


def _front(solid: Solid, origin: tuple[np.ndarray, ...], slope: np.ndarray) -> np.ndarray:
    """Computes the largest t for which origin + slope t lies in the solid, in local coordinates; NaN if none does."""
    (ox, oy, oz), (ex, ey, ez) = origin, slope
    if solid.shape == BALL:
        square = ex * ex + ey * ey + ez * ez
        return _upper_root(square, ox * ex + oy * ey + oz * ez, ox * ox + oy * oy + oz * oz - 1)[0]
    if solid.shape == BOX:
        bounds = [_slab(o, e) for o, e in zip(origin, slope, strict=True)]
        upper = np.minimum(np.minimum(bounds[0][0], bounds[1][0]), bounds[2][0])
        lower = np.maximum(np.maximum(bounds[0][1], bounds[1][1]), bounds[2][1])
        return np.where(upper > lower, upper, np.nan)

    # Round about the y axis: x^2 + z^2 <= (middle + flare y)^2.
    middle, flare = ((1 + solid.form) / 2, (solid.form - 1) / 2) if solid.shape == FRUSTUM else (1.0, 0.0)
    radius = middle + flare * oy
    square = ex * ex + ez * ez - (flare * ey) ** 2
    square = square if abs(square) > _TINY else _TINY
    upper, lower = _upper_root(square, ox * ex + oz * ez - radius * (flare * ey), ox * ox + oz * oz - radius**2)
    if solid.shape == CAPSULE:
        # The first point of the capsule lies on the ball whose centre is level with the first point of the cylinder.
        oy = oy - np.clip(oy + ey * upper, -solid.form, solid.form)
        square = ex * ex + ey * ey + ez * ez
        return _upper_root(square, ox * ex + oy * ey + oz * ez, ox * ox + oy * oy + oz * oz - 1)[0]
    if square < 0:
        # The ray is steeper than the cone and crosses its side once; it is inside where the cone widens.
        near, far = np.maximum(upper, lower), np.minimum(upper, lower)
        upper, lower = (np.inf, near) if flare * ey > 0 else (far, -np.inf)
    top, bottom = _slab(oy, ey)
    upper, lower = np.minimum(upper, top), np.maximum(lower, bottom)
    hit = upper > lower
    if solid.shape == RING:
        hit &= (ox + ex * upper) ** 2 + (oz + ez * upper) ** 2 > solid.form**2  # open, without an inner wall
    return np.where(hit, upper, np.nan)


class DepthBuffer:
    """Depth buffer of an orthographic camera.

    Args:
        solids: Solids in camera coordinates.
        x: Image coordinates of the columns, `(width,)`, increasing by equal steps.
        y: Image coordinates of the rows, `(height,)`, increasing by the same steps.

    Attributes:
        index: Index of the visible solid in `solids`, -1 for none, `(height, width)`.
        depth: z of the visible point, `(height, width)`.
    """

    def __init__(self, solids: list[Solid], x: np.ndarray, y: np.ndarray):
        self.solids, self.x, self.y = solids, x, y
        self.index = np.full((len(y), len(x)), -1, np.int16)
        self.depth = np.full((len(y), len(x)), -np.inf, np.float32)
        with np.errstate(invalid="ignore"):  # a ray that misses a solid has depth NaN
            for number, solid in enumerate(solids):
                self._draw(number, solid)

    def _draw(self, number: int, solid: Solid) -> None:
        reach_x, reach_y, _ = solid.reach()
        left, right = np.searchsorted(self.x, (solid.centre[0] - reach_x, solid.centre[0] + reach_x))
        top, bottom = np.searchsorted(self.y, (solid.centre[1] - reach_y, solid.centre[1] + reach_y))
        if left == right or top == bottom:
            return
        matrix = solid.matrix
        x = (self.x[left:right] - solid.centre[0])[None, :]
        y = (self.y[top:bottom] - solid.centre[1])[:, None]
        origin = tuple((row[0] * x + row[1] * y).astype(np.float32) for row in matrix)
        depth = _front(solid, origin, matrix[:, 2].tolist()) + np.float32(solid.centre[2])
        window = np.s_[top:bottom, left:right]
        nearer = depth > self.depth[window]  # False for NaN
        self.depth[window][nearer] = depth[nearer]
        self.index[window][nearer] = number

    def surface(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Computes, for the visible points in row order, the index of the solid `(points,)`, the local coordinates in
        camera units `(points, 3)`, and the unit normal in camera coordinates `(points, 3)`.
        """
        rows, columns = np.nonzero(self.index >= 0)
        seen = self.index[rows, columns]
        points = np.stack([self.x[columns], self.y[rows], self.depth[rows, columns]], axis=1)
        matrix = np.stack([solid.matrix for solid in self.solids]).astype(np.float32)[seen]
        centre, radii, shape, form = (
            np.array([getattr(solid, name) for solid in self.solids], np.float32)[seen]
            for name in ("centre", "radii", "shape", "form")
        )
        local = np.einsum("nij,nj->ni", matrix, points - centre)
        normals = np.einsum("nij,ni->nj", matrix, _gradient(local, shape, form, matrix[:, :, 2]))
        normals /= np.linalg.norm(normals, axis=1, keepdims=True)
        return seen, local * radii, normals


def _gradient(local: np.ndarray, shape: np.ndarray, form: np.ndarray, axes_z: np.ndarray) -> np.ndarray:
    """Computes the outward direction, of any length, at local points of the unit shapes, `(points, 3)`.

    `axes_z` has the sign of the z component of each local axis, which selects the visible face on an edge.
    """
    gradient = local.copy()
    is_box, is_frustum, is_capsule, is_ring = (shape == name for name in (BOX, FRUSTUM, CAPSULE, RING))
    size = np.where(local * axes_z > 0, np.abs(local), 0)
    gradient[is_box] = np.where(size == size.max(axis=1, keepdims=True), np.sign(local), 0)[is_box]
    gradient[is_capsule, 1] -= np.clip(local[is_capsule, 1], -form[is_capsule], form[is_capsule])
    middle, flare = (1 + form[is_frustum]) / 2, (form[is_frustum] - 1) / 2
    gradient[is_frustum, 1] = -flare * (middle + flare * local[is_frustum, 1])
    gradient[is_ring, 1] = 0
    is_cap = (is_frustum | is_ring) & (size[:, 1] > 1 - 1e-3)
    gradient[is_cap] = np.sign(local[is_cap]) * np.array([0, 1, 0], np.float32)
    return gradient
