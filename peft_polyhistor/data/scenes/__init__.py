# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Procedural scenes with exact labels of all four dense tasks, made by numpy and scipy alone.

`solids.py` renders. `models.py`, `animals.py` and `figures.py` say what there is to see, `materials.py`, `setting.py`
and `light.py` how it looks, `labels.py` which labels follow, and `render.py` puts a scene together.
"""

from .render import CLASSES, RENDERER_VERSION, render_scene


__all__ = ["CLASSES", "RENDERER_VERSION", "render_scene"]
