# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Labels of a procedural scene, computed from the object that each pixel shows.

`thing` is the number of the object, -1 for none, `(height, width)`. `ids` are the classes of the objects, 0 for
clutter, and a final 0, which the index -1 selects.
"""

import numpy as np

from ...tasks.losses import IGNORE_INDEX


_SALIENT_SCORE = 0.009  # with this limit, about one scene in 25 has no salient object
_SALIENT_RATIO = 0.2


def find_semseg(ids: np.ndarray, thing: np.ndarray) -> np.ndarray:
    """Finds the class of each pixel, with `IGNORE_INDEX` on one pixel wide lines between objects."""
    semseg = ids[thing]
    contour = np.zeros(thing.shape, bool)
    for here, there in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:])):
        contour[here] |= (thing[here] != thing[there]) & ((semseg[here] > 0) | (semseg[there] > 0))
    semseg[contour] = IGNORE_INDEX
    return semseg


def find_saliency(ids: np.ndarray, thing: np.ndarray, colour: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Marks salient objects with 255.

    score = area * contrast * centrality: the fraction of the image, the distance between the mean colours of the
    object and of the rest, and exp(-d^2) for a centroid d half-sides from the middle. Clutter has no score. An object
    is salient if its score is at least `_SALIENT_SCORE` and at least `_SALIENT_RATIO` of the highest score; a scene
    may have no salient object.
    """
    scores = np.zeros(len(ids))
    total, pixels = colour.sum(axis=(0, 1)), thing.size
    for number in np.flatnonzero(ids):
        rows, columns = np.nonzero(thing == number)
        if 0 < len(rows) < pixels:
            own = colour[rows, columns].sum(axis=0)
            contrast = np.linalg.norm(own / len(rows) - (total - own) / (pixels - len(rows)))
            scores[number] = len(rows) / pixels * contrast * np.exp(-(x[columns].mean() ** 2) - y[rows].mean() ** 2)
    salient = scores >= max(_SALIENT_SCORE, _SALIENT_RATIO * scores.max())
    return np.where(salient[thing], 255, 0).astype(np.uint8)
