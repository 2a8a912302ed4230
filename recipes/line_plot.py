# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""A plot of lines on logarithmic axes, each with its name at its end."""

import math
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont


SIZE = (1400, 900)  # pixels
LEFT, TOP, RIGHT, BOTTOM = 110, 40, 800, 810  # the frame
INK, GRID = "#222222", "#dddddd"
COLORS = ("#1f5fa8", "#d1495b", "#2e8b57", "#8e6bbf", "#e08e0b", "#00798c", "#7a7a7a", "#b5651d")
LINE_HEIGHT = 24


def draw_lines(lines: Mapping[str, Sequence[tuple[float, float]]], x_title: str, y_title: str) -> Image.Image:
    """Points `(x, y)` by name, all above zero, joined in their order.

    Names stand to the right in the order of the lines' ends.
    """
    sheet = Image.new("RGB", SIZE, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(18)
    x_at = _scale([x for line in lines.values() for x, _ in line], LEFT + 30, RIGHT - 30)
    y_at = _scale([y for line in lines.values() for _, y in line], BOTTOM - 30, TOP + 30)
    for x in sorted({x for line in lines.values() for x, _ in line}):
        draw.line([(x_at(x), TOP), (x_at(x), BOTTOM)], fill=GRID)
        draw.text((x_at(x), BOTTOM + 8), f"{x:g}", fill=INK, font=font, anchor="ma")
    for y in _ticks([y for line in lines.values() for _, y in line]):
        draw.line([(LEFT, y_at(y)), (RIGHT, y_at(y))], fill=GRID)
        draw.text((LEFT - 8, y_at(y)), f"{y:g}", fill=INK, font=font, anchor="rm")
    draw.rectangle([LEFT, TOP, RIGHT, BOTTOM], outline=INK)
    draw.text(((LEFT + RIGHT) / 2, SIZE[1] - 20), x_title, fill=INK, font=font, anchor="ms")
    draw.text((LEFT, TOP - 8), y_title, fill=INK, font=font, anchor="ls")
    below = TOP
    for i, (name, line) in enumerate(sorted(lines.items(), key=lambda item: -item[1][-1][1])):
        color = COLORS[i % len(COLORS)]
        points = [(x_at(x), y_at(y)) for x, y in line]
        draw.line(points, fill=color, width=3)
        for x, y in points:
            draw.ellipse([x - 4, y - 4, x + 4, y + 4], fill=color)
        below = max(below, min(points[-1][1], BOTTOM - LINE_HEIGHT * (len(lines) - i)))
        draw.line([points[-1], (RIGHT + 14, below)], fill=color)
        draw.text((RIGHT + 20, below), name, fill=color, font=font, anchor="lm")
        below += LINE_HEIGHT
    return sheet


def _scale(values: Sequence[float], start: float, end: float):
    low, high = math.log(min(values)), math.log(max(values))
    return lambda value: start + (end - start) * ((math.log(value) - low) / (high - low) if high > low else 0.5)


def _ticks(values: Sequence[float]) -> list[float]:
    """The figures 1, 2, 5 times a power of ten within the range of the values."""
    powers = range(math.floor(math.log10(min(values))), math.ceil(math.log10(max(values))) + 1)
    ticks = [float(f"{factor}e{power}") for power in powers for factor in (1, 2, 5)]
    return [tick for tick in ticks if min(values) <= tick <= max(values)]
