# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""A plot of change against trainable parameters, as in the paper's Figure 3 (Polyhistor, arXiv:2210.03265)."""

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple
from xml.etree.ElementTree import Element

from charts import LETTER, LINE_HEIGHT, add, find_ticks, label_ticks, new_chart

from peft_polyhistor.studies.tables import Results, change_of


WIDE, NARROW = 1000, 360  # pixels: of a desk, of a phone
MARGIN = 28  # between the frame and the outermost points
RADIUS = 5


class Point(NamedTuple):
    """A method in the plot: trainable parameters in the encoder, and its changes in percent, one per seed."""

    parameters: int
    changes: list[float]

    @property
    def mean(self) -> float:
        return sum(self.changes) / len(self.changes)


def find_points(results: Results) -> dict[str, Point]:
    """By method its place in the plot; a run without a finite change, such as a diverged one, has none."""
    changes = {method: change_of(results, method) for method in results}
    return {
        method: Point(results[method][0]["parameters"]["encoder"], values)
        for method, values in changes.items()
        if values and all(map(math.isfinite, values))
    }


class Axes:
    """Maps figures to pixels. A method without parameters in the encoder stands left of the logarithmic axis."""

    def __init__(self, points: list[Point], size: tuple[int, int]):
        self.left, self.top, self.right, self.bottom = 64, 12, size[0] - 12, size[1] - 52
        sizes = [math.log10(point.parameters) for point in points if point.parameters]
        self.low, self.high = (math.floor(min(sizes)), math.ceil(max(sizes))) if sizes else (0, 1)
        self.high = max(self.high, self.low + 1)
        self.has_zero = len(sizes) < len(points)
        self.start = self.left + (2.5 if self.has_zero else 1) * MARGIN
        changes = [change for point in points for change in point.changes]
        self.ticks = find_ticks(min(changes), max(changes), 6)

    def x(self, parameters: float) -> float:
        if not parameters:
            return self.left + MARGIN
        share = (math.log10(parameters) - self.low) / (self.high - self.low)
        return self.start + share * (self.right - MARGIN - self.start)

    def y(self, change: float) -> float:
        share = (change - self.ticks[0]) / (self.ticks[-1] - self.ticks[0])
        return self.bottom - MARGIN - share * (self.bottom - self.top - 2 * MARGIN)

    def encloses(self, box: tuple) -> bool:
        return box[0] > self.left and box[2] < self.right and box[1] > self.top and box[3] < self.bottom


def draw_plot(points: Mapping[str, Point], reference: str, width: int = WIDE) -> Element:
    """A point with the range of its seeds and a name per method; the more there are, the higher it is.

    Args:
        points: By name.
        reference: What changes are measured against, in words.
        width: WIDE or NARROW.
    """
    size = width, 320 + 12 * min(len(points), 20)
    chart = new_chart(*size, f"Change against {reference} by trainable parameters of {', '.join(points)}")
    axes = Axes(list(points.values()), size)
    _draw_axes(chart, axes)
    _draw_titles(chart, axes, reference, size)
    centres = {name: (axes.x(point.parameters), axes.y(point.mean)) for name, point in points.items()}
    taken = [(axes.left, axes.y(0) - 1, axes.right, axes.y(0) + 1)]
    for name, point in points.items():
        x, y = centres[name]
        top, bottom = axes.y(max(point.changes)), axes.y(min(point.changes))
        mark = add(chart, "g", "mark")
        add(mark, "title", "", f"{name}: {point.parameters:,} parameters, {point.mean:+.2f} percent")
        add(mark, "line", "range", x1=x, x2=x, y1=top, y2=bottom)
        add(mark, "circle", "centre", cx=x, cy=y, r=RADIUS)
        taken.append((x - RADIUS, min(top, y - RADIUS), x + RADIUS, max(bottom, y + RADIUS)))
    for name, centre in centres.items():
        taken.append(_draw_name(chart, axes, name, centre, taken))
    return chart


def _draw_axes(chart: Element, axes: Axes) -> None:
    for tick, label in zip(axes.ticks, label_ticks(axes.ticks, "+"), strict=True):
        y = axes.y(tick)
        add(chart, "line", "axis" if label == "0" else "grid", x1=axes.left, x2=axes.right, y1=y, y2=y)
        add(chart, "text", "tick", label, x=axes.left - 8, y=y + 4, text_anchor="end")
    for power in range(axes.low, axes.high + 1):
        x = axes.x(10**power)
        add(chart, "line", "grid", x1=x, x2=x, y1=axes.top, y2=axes.bottom)
        add(chart, "text", "tick", _power_of_ten(power), x=x, y=axes.bottom + 18, text_anchor="middle")
    if axes.has_zero:
        add(chart, "text", "tick", "0", x=axes.x(0), y=axes.bottom + 18, text_anchor="middle")
        middle = (axes.x(0) + axes.start) / 2
        for x in (middle - 3, middle + 3):  # the axis is broken here
            add(chart, "line", "axis", x1=x - 3, x2=x + 3, y1=axes.bottom + 6, y2=axes.bottom - 6)
    width, height = axes.right - axes.left, axes.bottom - axes.top
    add(chart, "rect", "axis", x=axes.left, y=axes.top, width=width, height=height)


def _power_of_ten(power: int) -> str:
    if power >= 6:
        return f"{10 ** (power - 6)} M"
    return f"{10 ** (power - 3)} k" if power >= 3 else str(10**power)


def _draw_titles(chart: Element, axes: Axes, reference: str, size: tuple[int, int]) -> None:
    x, y = (axes.left + axes.right) / 2, (axes.top + axes.bottom) / 2
    add(chart, "text", "title", "trainable parameters in the encoder", x=x, y=size[1] - 10, text_anchor="middle")
    title = f"change against {reference}, percent"
    add(chart, "text", "title", title, text_anchor="middle", transform=f"translate(14 {y}) rotate(-90)")


def _draw_name(chart: Element, axes: Axes, name: str, centre: tuple[float, float], taken: list[tuple]) -> tuple:
    """Writes a name where nothing is yet, with a line to its point where that is not beside it; returns its box."""
    x, y = centre
    width = LETTER * len(name)
    boxes = (box for box in _places(axes, x, y, width) if axes.encloses(box))
    free = (box for box in boxes if not any(_overlap(box, other) for other in taken))
    box = next(free, (x, y, x + width, y + LINE_HEIGHT))
    end = _nearest(box, x, y)
    if math.dist(centre, end) > 2 * RADIUS + 1:
        add(chart, "line", "leader", x1=x, y1=y, x2=end[0], y2=end[1])
    # A letter is narrower than it is taken for, so the name stands at the end of its box that is next to the point.
    middle = (box[0] + box[2]) / 2
    place, anchor = (box[0], "start") if box[0] > x else (box[2], "end") if box[2] < x else (middle, "middle")
    add(chart, "text", "name", name, x=place, y=box[3] - 3, text_anchor=anchor)
    return box


def _places(axes: Axes, x: float, y: float, width: float) -> Iterator[tuple[float, float, float, float]]:
    """Boxes for a name: beside its point, then all over the frame from near to far."""
    height = LINE_HEIGHT
    for distance in (2 * RADIUS, 3 * RADIUS):
        for dx, dy in ((1, 0), (-1, 0), (0, -1), (0, 1), (1, -1), (1, 1), (-1, -1), (-1, 1)):
            left = x + dx * distance - (width if dx < 0 else 0 if dx else width / 2)
            top = y + dy * distance - (height if dy < 0 else 0 if dy else height / 2)
            yield left, top, left + width, top + height
    lefts = range(axes.left + 1, int(axes.right - width), 2 * RADIUS)
    tops = range(axes.top + 1, axes.bottom - height, RADIUS)
    boxes = [(left, top, left + width, top + height) for left in lefts for top in tops]
    yield from sorted(boxes, key=lambda box: math.dist((x, y), _nearest(box, x, y)))


def _nearest(box: tuple, x: float, y: float) -> tuple[float, float]:
    """The point of a box that is nearest to another."""
    return min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3])


def _overlap(first: tuple, second: tuple) -> bool:
    return first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]
