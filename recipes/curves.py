# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Curves of a training: a figure by optimiser step, a line per run."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from xml.etree.ElementTree import Element

from charts import add, find_ticks, label_ticks, new_chart


SIZE = (280, 200)  # pixels
LEFT, TOP, RIGHT, BOTTOM = 50, 8, 268, 160  # the frame
COLORS = 8  # of lines, in charts.css; further ones are dashed
DASHES = ("none", "6 3", "2 3", "8 3 2 3")
MOST_POINTS = 150

Line = Sequence[tuple[int, float]]  # step and figure
Scale = Callable[[float], float]  # of a figure its pixel


def mean_line(lines: Sequence[Line]) -> list[tuple[int, float]]:
    """The mean of runs at each step that all of them have."""
    figures = [dict(line) for line in lines]
    steps = set(figures[0]).intersection(*figures[1:]) if figures else set()
    return [(step, sum(figure[step] for figure in figures) / len(figures)) for step in sorted(steps)]


def thin(line: Line) -> list[tuple[int, float]]:
    """A line of at most MOST_POINTS: means over neighbours of one number, each at the step of the last of them."""
    group = math.ceil(len(line) / MOST_POINTS)
    parts = [line[start : start + group] for start in range(0, len(line), group or 1)]
    return [(part[-1][0], sum(figure for _, figure in part) / len(part)) for part in parts]


def style_of(number: int) -> str:
    """Stroke of the line of this number, from 0 on."""
    dash = DASHES[number // COLORS % len(DASHES)]
    return f"stroke: var(--line-{number % COLORS}); stroke-dasharray: {dash}"


def draw_curves(lines: Mapping[str, Line], label: str, has_dots: bool) -> Element | None:
    """A chart of one line per name; None where there are finite figures of fewer than two steps.

    Args:
        lines: By name, the steps rising. The place among the names makes a line's colour.
        label: What the figures are.
        has_dots: Mark every figure, and not only those that stand alone.
    """
    points = [(step, figure) for line in lines.values() for step, figure in line if math.isfinite(figure)]
    if len({step for step, _ in points}) < 2:
        return None
    chart = new_chart(*SIZE, f"{label} by optimiser step of {', '.join(lines)}")
    last = max(step for step, _ in points)
    y_ticks = find_ticks(min(figure for _, figure in points), max(figure for _, figure in points), 4)
    x_at, y_at = _scale(0, last, LEFT, RIGHT), _scale(y_ticks[0], y_ticks[-1], BOTTOM, TOP)
    _draw_grid(chart, [tick for tick in find_ticks(0, last, 4) if tick <= last], x_at, y_ticks, y_at)
    for number, (name, line) in enumerate(lines.items()):
        group = add(chart, "g", f"run run-{number}")
        add(group, "title", "", name)
        for part in _finite_parts(line):
            pixels = [(x_at(step), y_at(figure)) for step, figure in part]
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in pixels)
            add(group, "polyline", "line", points=path, style=style_of(number))
            for x, y in pixels if has_dots or len(pixels) == 1 else ():
                add(group, "circle", "dot", cx=x, cy=y, r=2.5, style=f"fill: var(--line-{number % COLORS})")
    return chart


def _draw_grid(chart: Element, x_ticks: Sequence[float], x_at: Scale, y_ticks: Sequence[float], y_at: Scale) -> None:
    for tick, label in zip(y_ticks, label_ticks(y_ticks), strict=True):
        y = y_at(tick)
        add(chart, "line", "grid", x1=LEFT, x2=RIGHT, y1=y, y2=y)
        add(chart, "text", "tick", label, x=LEFT - 6, y=y + 4, text_anchor="end")
    for tick, label in zip(x_ticks, label_ticks(x_ticks), strict=True):
        x = x_at(tick)
        add(chart, "line", "grid", x1=x, x2=x, y1=TOP, y2=BOTTOM)
        add(chart, "text", "tick", label, x=x, y=BOTTOM + 16, text_anchor="middle")
    middle = (LEFT + RIGHT) / 2
    add(chart, "text", "title", "optimiser steps", x=middle, y=SIZE[1] - 6, text_anchor="middle")


def _scale(low: float, high: float, start: float, end: float) -> Scale:
    return lambda value: start + (end - start) * (value - low) / (high - low)


def _finite_parts(line: Line) -> Iterator[list[tuple[int, float]]]:
    """The stretches of a line without a figure that is not finite."""
    part: list[tuple[int, float]] = []
    for step, figure in line:
        if math.isfinite(figure):
            part.append((step, figure))
        elif part:
            yield part
            part = []
    if part:
        yield part
