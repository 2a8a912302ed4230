# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""A plot of change against trainable parameters, as in the paper's Figure 3 (Polyhistor, arXiv:2210.03265)."""

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont


SIZE = (1200, 800)  # pixels
LEFT, TOP, RIGHT, BOTTOM = 110, 40, 1160, 700  # the frame
MARGIN = 50  # between the frame and the outermost points
RADIUS = 8
INK, GRID, BLUE = "#222222", "#dddddd", "#1f5fa8"


class Point(NamedTuple):
    """A method in the plot: trainable parameters in the encoder, and its changes in percent, one per seed."""

    parameters: int
    changes: list[float]

    @property
    def mean(self) -> float:
        return sum(self.changes) / len(self.changes)


class Axes:
    """Maps figures to pixels. A method without parameters in the encoder stands left of the logarithmic axis."""

    def __init__(self, points: list[Point]):
        sizes = [math.log10(point.parameters) for point in points if point.parameters]
        self.low, self.high = (math.floor(min(sizes)), math.ceil(max(sizes))) if sizes else (0, 1)
        self.high = max(self.high, self.low + 1)
        self.has_zero = len(sizes) < len(points)
        self.start = LEFT + (120 if self.has_zero else MARGIN)
        changes = [change for point in points for change in point.changes]
        self.step = _round_step((max(changes) - min(changes)) / 6)
        self.bottom = math.floor(min(changes) / self.step) * self.step
        self.top = max(math.ceil(max(changes) / self.step) * self.step, self.bottom + self.step)

    def x(self, parameters: float) -> float:
        if not parameters:
            return LEFT + MARGIN
        share = (math.log10(parameters) - self.low) / (self.high - self.low)
        return self.start + share * (RIGHT - MARGIN - self.start)

    def y(self, change: float) -> float:
        share = (change - self.bottom) / (self.top - self.bottom)
        return BOTTOM - MARGIN - share * (BOTTOM - TOP - 2 * MARGIN)


def _round_step(width: float) -> float:
    """The least of 1, 2, 5 times a power of ten that is no smaller."""
    power = 10 ** math.floor(math.log10(max(width, 1e-3)))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= width)


def draw_plot(points: Mapping[str, Point], reference: str) -> Image.Image:
    """A point with the range of its seeds and a name per method.

    Args:
        points: By name.
        reference: What changes are measured against, in words.
    """
    sheet = Image.new("RGB", SIZE, "white")
    draw, axes = ImageDraw.Draw(sheet), Axes(list(points.values()))
    _draw_axes(draw, axes)
    _draw_titles(sheet, draw, reference)
    centres = {name: (axes.x(point.parameters), axes.y(point.mean)) for name, point in points.items()}
    taken = [(LEFT, axes.y(0) - 2, RIGHT, axes.y(0) + 2)]
    for name, point in points.items():
        x, y = centres[name]
        top, bottom = axes.y(max(point.changes)), axes.y(min(point.changes))
        draw.line([(x, top), (x, bottom)], fill=BLUE, width=3)
        draw.ellipse([x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS], fill=BLUE)
        taken.append((x - RADIUS, min(top, y - RADIUS), x + RADIUS, max(bottom, y + RADIUS)))
    for name, centre in centres.items():
        taken.append(_draw_name(draw, name, centre, taken))
    return sheet


def _font(size: int = 20) -> ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _draw_axes(draw: ImageDraw.ImageDraw, axes: Axes) -> None:
    ticks = round((axes.top - axes.bottom) / axes.step)
    for i in range(ticks + 1):
        change = axes.bottom + i * axes.step
        is_zero, y = abs(change) < axes.step / 2, axes.y(change)
        draw.line([(LEFT, y), (RIGHT, y)], fill=INK if is_zero else GRID)
        text = "0" if is_zero else f"{change:+.{_digits(axes.step)}f}"
        draw.text((LEFT - 12, y), text, fill=INK, font=_font(), anchor="rm")
    for power in range(axes.low, axes.high + 1):
        x = axes.x(10**power)
        draw.line([(x, TOP), (x, BOTTOM)], fill=GRID)
        draw.text((x, BOTTOM + 8), _power_of_ten(power), fill=INK, font=_font(), anchor="ma")
    if axes.has_zero:
        draw.text((axes.x(0), BOTTOM + 8), "0", fill=INK, font=_font(), anchor="ma")
        middle = (axes.x(0) + axes.start) / 2
        for x in (middle - 4, middle + 4):  # the axis is broken here
            draw.line([(x - 4, BOTTOM + 8), (x + 4, BOTTOM - 8)], fill=INK, width=2)
    draw.rectangle([LEFT, TOP, RIGHT, BOTTOM], outline=INK)


def _digits(step: float) -> int:
    return max(0, -math.floor(math.log10(step)))


def _power_of_ten(power: int) -> str:
    if power >= 6:
        return f"{10 ** (power - 6)} M"
    return f"{10 ** (power - 3)} k" if power >= 3 else str(10**power)


def _draw_titles(sheet: Image.Image, draw: ImageDraw.ImageDraw, reference: str) -> None:
    middle = ((LEFT + RIGHT) / 2, SIZE[1] - 20)
    draw.text(middle, "trainable parameters in the encoder", fill=INK, font=_font(22), anchor="ms")
    title = Image.new("RGB", (BOTTOM - TOP, 32), "white")
    text = f"change against {reference}, percent"
    ImageDraw.Draw(title).text((title.width / 2, 16), text, fill=INK, font=_font(22), anchor="mm")
    sheet.paste(title.rotate(90, expand=True), (4, TOP))


def _draw_name(draw: ImageDraw.ImageDraw, name: str, centre: tuple[float, float], taken: list[tuple]) -> tuple:
    """Writes a name where nothing is yet, with a line to its point where that is not beside it; returns its box."""
    *_, width, height = draw.textbbox((0, 0), name, font=_font())
    boxes = [
        box
        for box in _places(*centre, width, height)
        if box[0] > LEFT and box[2] < RIGHT and box[1] > TOP and box[3] < BOTTOM
    ]
    box = next((box for box in boxes if not any(_overlap(box, other) for other in taken)), boxes[0])
    x, y = centre
    end = (min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3]))
    if math.dist(centre, end) > 2 * RADIUS + 1:
        draw.line([centre, end], fill=INK)
    draw.text(box[:2], name, fill=INK, font=_font())
    return box


def _places(x: float, y: float, width: float, height: float) -> Iterator[tuple[float, float, float, float]]:
    """Boxes for a name, from beside its point to ever further away."""
    for distance in range(2 * RADIUS, SIZE[1], RADIUS):
        for dx, dy in ((1, 0), (-1, 0), (0, -1), (0, 1), (1, -1), (1, 1), (-1, -1), (-1, 1)):
            left = x + dx * distance - (width if dx < 0 else 0 if dx else width / 2)
            top = y + dy * distance - (height if dy < 0 else 0 if dy else height / 2)
            yield left, top, left + width, top + height


def _overlap(first: tuple, second: tuple) -> bool:
    return first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]
