# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Labels that follow from which object each pixel of a procedural scene shows.

`thing` is the number of that object, -1 for none, `(height, width)`. `ids` are the classes of the objects, 0 for
clutter, and a 0 at the end, which is what -1 picks.
"""

import numpy as np

from ...tasks.losses import IGNORE_INDEX


_SALIENT_SCORE = 0.009  # at which about one scene in twelve has no salient object
_SALIENT_RATIO = 0.75


def find_semseg(ids: np.ndarray, thing: np.ndarray) -> np.ndarray:
    """Class of each pixel, and `IGNORE_INDEX` on lines one pixel wide between objects."""
    semseg = ids[thing]
    contour = np.zeros(thing.shape, bool)
    for here, there in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:])):
        contour[here] |= (thing[here] != thing[there]) & ((semseg[here] > 0) | (semseg[there] > 0))
    semseg[contour] = IGNORE_INDEX
    return semseg


def find_saliency(ids: np.ndarray, thing: np.ndarray, colour: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Marks the object with the highest score, and others that come near it, with 255.

    score = area * contrast * centrality: the share of the picture, the distance between the mean colours of the
    object and of the rest, and exp(-d^2) for a centroid d half-sides from the middle. Clutter has no score. An object
    is salient if its score is at least `_SALIENT_SCORE` and `_SALIENT_RATIO` of the highest; some scenes have none.
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
