# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Procedural scenes with exact labels of the four dense tasks of PASCAL-Context, made with NumPy and SciPy only.

`render.py` composes a scene. `models.py`, `animals.py` and `figures.py` hold the objects, `solids.py` renders them,
`materials.py`, `setting.py` and `light.py` determine colours, surroundings and light, and `labels.py` the labels.
"""

from .render import RENDERER_VERSION, render_scene


__all__ = ["RENDERER_VERSION", "render_scene"]
