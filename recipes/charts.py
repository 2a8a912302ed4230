# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""What charts share: SVG that takes its colours from page/charts.css, light or dark as the reader's screen."""

import math
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element


STYLE = Path(__file__).parent / "page" / "charts.css"
LETTER = 6.9  # pixels that a letter takes, at most on average: 12 px, sans-serif
LINE_HEIGHT = 14


def new_chart(width: int, height: int, label: str) -> Element:
    """An empty chart of that size in pixels, which grows with its place; `label` says what it shows."""
    return Element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "viewBox": f"0 0 {width} {height}",
            "class": "chart",
            "role": "img",
            "aria-label": label,
        },
    )


def add(parent: Element, tag: str, kind: str, text: str | None = None, **attributes: float | str) -> Element:
    """Adds an element of a class `kind` of charts.css; underscores of attributes stand for dashes."""
    element = ElementTree.SubElement(parent, tag, {"class": kind})
    for name, value in attributes.items():
        element.set(name.replace("_", "-"), f"{value:.1f}" if isinstance(value, float) else str(value))
    element.text = text
    return element


def to_markup(chart: Element) -> str:
    """The chart as a part of a page, all text escaped."""
    return ElementTree.tostring(chart, encoding="unicode")


def save_chart(chart: Element, file: Path) -> None:
    """Writes the chart as a file of its own, with its style and background."""
    style, background = Element("style"), Element("rect", {"class": "paper", "width": "100%", "height": "100%"})
    style.text = STYLE.read_text(encoding="utf-8")
    whole = Element("svg", chart.attrib)
    whole.extend([style, background, *chart])
    file.write_text(to_markup(whole) + "\n", encoding="utf-8")


def find_ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round figures that enclose the range, at least two."""
    step = _round_step((high - low) / count)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * i for i in range(first, max(last, first + 1) + 1)]


def _round_step(width: float) -> float:
    """The least of 1, 2, 5 times a power of ten that is no smaller."""
    power = 10.0 ** math.floor(math.log10(max(width, 1e-3)))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= width)


def label_ticks(ticks: Sequence[float], sign: str = "") -> list[str]:
    """The figures as text, with as many digits as tell them apart; `sign` as in a format."""
    step = ticks[1] - ticks[0]
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return ["0" if abs(tick) < step / 2 else f"{tick:{sign},.{digits}f}" for tick in ticks]
