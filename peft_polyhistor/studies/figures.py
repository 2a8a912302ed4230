# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Figures of a study, drawn by matplotlib: SVG that follows the light or dark scheme of the reader's screen.

matplotlib draws with stand-in colours, which `to_svg` replaces by the CSS variables of assets/figures.css.
"""

import math
import re
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from ..extras import needs_extra
from ..training.files import write_text
from .results import Line
from .tables import Results, change_of


with needs_extra("train"):
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullLocator, StrMethodFormatter


SVG = "http://www.w3.org/2000/svg"
ElementTree.register_namespace("", SVG)
ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")

STYLE = Path(__file__).parents[1] / "assets" / "figures.css"
WIDE, MEDIUM, NARROW = 1000, 760, 360  # pixels: width of a desktop page, of a Markdown document, and of a phone
NAME_HEIGHT = 15  # pixels of a line of text
LINEAR_CHANGE = 10  # percent: changes beyond it are drawn on a logarithmic axis
CHANGE_TICKS = (-300, -100, -30, -10, -5, -2, 0, 2, 5, 10, 30, 100, 300)
INK, SOFT, GRID, ACCENT, PAPER = "#010101", "#010102", "#010103", "#010104", "#010105"  # stand-in colours
LINES = tuple(f"#0101{number}0" for number in range(8))
VARIABLES = {INK: "ink", SOFT: "soft", GRID: "grid", ACCENT: "accent", PAPER: "paper"}
VARIABLES |= {colour: f"line-{number}" for number, colour in enumerate(LINES)}
DASHES = ((), (4, 2), (1, 2), (6, 2, 1, 2))  # in units of the line width; dashes tell lines of one colour apart
SETTINGS: Any = {
    **{"figure.dpi": 72, "svg.fonttype": "none", "font.size": 12, "axes.formatter.useoffset": False},
    "text.parse_math": False,  # names may contain `$`
    **{"text.color": INK, "axes.labelcolor": SOFT, "axes.edgecolor": SOFT, "xtick.labelcolor": INK},
    **{"ytick.labelcolor": INK, "xtick.color": SOFT, "ytick.color": SOFT, "grid.color": GRID, "axes.grid": True},
}


class Point(NamedTuple):
    """A method in the figure: trainable parameters in the encoder, and its changes in percent, one per seed."""

    parameters: int
    changes: list[float]

    @property
    def mean(self) -> float:
        """Mean change over the seeds, percent."""
        return sum(self.changes) / len(self.changes)


def find_points(results: Results) -> dict[str, Point]:
    """Returns the place of each method in the figure.

    A method without a finite change, such as a diverged one, has none.
    """
    changes = {method: change_of(results, method) for method in results}
    return {
        method: Point(results[method][0]["parameters"]["encoder"], values)
        for method, values in changes.items()
        if values and all(map(math.isfinite, values))
    }


@matplotlib.rc_context(SETTINGS)
def draw_changes(points: Mapping[str, Point], reference: str, width: int = WIDE) -> Figure:
    """Draws change against trainable parameters, as in the paper's Figure 3 (Polyhistor, arXiv:2210.03265).

    Each method has a point, a bar over the range of its seeds, and its name at the side.

    Args:
        points: Points by the name of the method; at least one.
        reference: Name of the reference method in the axis title.
        width: Width in pixels. The height grows with the number of methods.
    """
    height = 320 + 12 * min(len(points), 20)
    figure, axes = _new_figure(width, height)
    sizes = [point.parameters for point in points.values()]
    lowest = math.floor(math.log10(min(filter(None, sizes), default=1)))
    powers = range(lowest, math.floor(math.log10(max(*sizes, 10))) + 1)
    axes.set_xscale("symlog", linthresh=10**lowest, linscale=0.7)  # linear from 0 to 10**lowest, logarithmic above
    axes.set_xticks([size for size in (0, *(10**power for power in powers)) if size or 0 in sizes])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda change, _: f"{change:+g}" if change else "0"))
    axes.set_xlabel("trainable parameters in the encoder")
    axes.set_ylabel(f"change against {reference}, percent")
    axes.axhline(0, color=SOFT, linewidth=1)
    for number, (name, (parameters, changes)) in enumerate(points.items()):
        mean = points[name].mean
        axes.vlines(parameters, min(changes), max(changes), color=ACCENT, linewidth=2)
        text = f"{name}: {parameters:,} parameters, {mean:+.2f} percent"
        axes.plot(parameters, mean, "o", color=ACCENT, markersize=9, gid=f"mark-{number}", label=text)
    axes.margins(x=0.06, y=0.06)
    _write_names(axes, height, {name: (point.parameters, point.mean) for name, point in points.items()}, [INK])
    return figure


@matplotlib.rc_context(SETTINGS)
def draw_curves(lines: Mapping[str, Line], has_dots: bool) -> Figure | None:
    """Draws figures by optimiser step, a line per run; lines break where a figure is not finite.

    Args:
        lines: Lines by the name of the run, with rising steps. The position of a name makes the colour of its line.
        has_dots: Whether every figure is marked, and not only those that stand alone.

    Returns:
        `None` where there are finite figures of fewer than two steps.
    """
    if len({step for line in lines.values() for step, value in line if math.isfinite(value)}) < 2:
        return None
    figure, axes = _new_figure(280, 200)
    for number, (name, line) in enumerate(lines.items()):
        values = [math.nan, *(value if math.isfinite(value) else math.nan for _, value in line), math.nan]
        alone = [i for i in range(len(line)) if math.isnan(values[i]) and math.isnan(values[i + 2])]
        axes.plot(
            [step for step, _ in line],
            values[1:-1],
            color=LINES[number % len(LINES)],
            dashes=DASHES[number // len(LINES) % len(DASHES)],
            marker="o",
            markersize=5,
            markevery=None if has_dots else alone,
            gid=f"run-{number}",
            label=name,
        )
    axes.set_xlim(left=0)
    axes.locator_params(nbins=4)
    axes.set_xlabel("optimiser steps")
    return figure


def style_of(number: int) -> str:
    """Returns the CSS of the line of this number in `draw_curves`, for a legend."""
    dashes = " ".join(str(2 * length) for length in DASHES[number // len(LINES) % len(DASHES)])
    return f"stroke: var(--line-{number % len(LINES)}); stroke-dasharray: {dashes or 'none'}"


@matplotlib.rc_context(SETTINGS)
def draw_lines(lines: Mapping[str, Sequence[tuple[float, float]]], x_title: str, y_title: str) -> Figure:
    """Draws points `(x, y)`, all above zero, on logarithmic axes, joined by a line with its name at the side.

    Args:
        lines: Points by the name of their line.
        x_title: Title of the axis.
        y_title: Title of the axis.
    """
    height = max(400, 80 + NAME_HEIGHT * len(lines))
    figure, axes = _new_figure(WIDE, height)
    axes.set_xscale("log")
    axes.set_yscale("log")
    for number, line in enumerate(lines.values()):
        axes.plot(*zip(*line, strict=True), "o-", color=LINES[number % len(LINES)], markersize=5)
    axes.set_xticks(sorted({x for line in lines.values() for x, _ in line}))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.set_xlabel(x_title)
    axes.set_ylabel(y_title)
    _write_names(axes, height, {name: line[-1] for name, line in lines.items()}, LINES)
    return figure


@matplotlib.rc_context(SETTINGS)
def draw_rates(rates: Mapping[str, Mapping[float, Sequence[float]]], reference: str, width: int = WIDE) -> Figure:
    """Draws change by learning rate: a line per method through its means, and bars over the ranges of the seeds.

    A line breaks at a rate without a finite change in each run, such as one at which a run diverged.

    Args:
        rates: Changes in percent, one per seed, by the name of the method and the learning rate.
        reference: Name of the reference method in the axis title.
        width: Width in pixels. The height grows with the number of methods.
    """
    height = max(400, 80 + NAME_HEIGHT * len(rates))
    figure, axes = _new_figure(width, height)
    axes.set_xscale("log")
    axes.set_yscale("symlog", linthresh=LINEAR_CHANGE, linscale=2)
    ticks = sorted({rate for row in rates.values() for rate in row})
    axes.set_xlim(0.8 * ticks[0], 1.25 * ticks[-1])
    ends, colours = {}, []
    for number, (name, row) in enumerate(rates.items()):
        means = {rate: sum(changes) / len(changes) for rate, changes in sorted(row.items())}  # NaN if one is
        if finite := [rate for rate, mean in means.items() if math.isfinite(mean)]:
            ends[name] = (finite[-1], means[finite[-1]])
            colours.append(LINES[number % len(LINES)])
            dashes = DASHES[number // len(LINES) % len(DASHES)]
            axes.plot(list(means), list(means.values()), color=colours[-1], dashes=dashes, marker="o", markersize=5)
            ranges = [(min(row[rate]), max(row[rate])) for rate in finite]
            axes.vlines(finite, *zip(*ranges, strict=True), color=colours[-1])
    axes.axhline(0, color=SOFT, linewidth=1)
    axes.set_xticks(ticks)
    lowest, highest = axes.get_ylim()
    axes.set_yticks([change for change in CHANGE_TICKS if lowest <= change <= highest])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda change, _: f"{change:+g}" if change else "0"))
    axes.set_xlabel("learning rate")
    axes.set_ylabel(f"change against {reference}, percent")
    _write_names(axes, height, ends, colours)
    return figure


def _new_figure(width: int, height: int) -> tuple[Figure, Axes]:
    """Returns an empty figure of this size in pixels, and its axes."""
    figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
    return figure, figure.add_subplot()


def _write_names(axes: Axes, height: int, ends: Mapping[str, tuple[float, float]], colours: Sequence[str]) -> None:
    """Writes names to the right of the axes, each with a line to its point, in the order of the points' heights."""
    to_axes = axes.transScale + axes.transLimits  # to fractions of the axes
    axes.autoscale_view()
    heights = {name: to_axes.transform(point)[1] for name, point in ends.items()}
    names = sorted(ends, key=lambda name: -heights[name])
    gap = min(NAME_HEIGHT / (height - 60), 1 / max(1, len(names) - 1))  # ticks and title take 60 pixels
    places: list[float] = []
    for number, name in enumerate(names):
        room_below = gap * (len(names) - 1 - number)
        places.append(min(max(heights[name], room_below), places[-1] - gap if places else 1))
    for name, place in zip(names, places, strict=True):
        axes.annotate(
            name,
            ends[name],
            (1.03, place),
            textcoords="axes fraction",
            verticalalignment="center",
            color=colours[list(ends).index(name) % len(colours)],
            arrowprops={"arrowstyle": "-", "color": SOFT, "linewidth": 0.5, "relpos": (0, 0.5), "shrinkB": 5},
        )


def to_svg(figure: Figure, label: str) -> str:
    """Returns a figure as an SVG element for a page that has the style of assets/figures.css.

    An artist with a `gid` such as `run-3` becomes a group of the classes `run` and `run-3`, and its label is shown
    when the pointer rests on it.

    Args:
        figure: The figure.
        label: Alternative text of the figure.
    """
    titles = {artist.get_gid(): str(artist.get_label()) for artist in figure.findobj() if artist.get_gid()}
    for artist in figure.findobj():
        artist.set_clip_on(False)  # all data lies inside the axes, and clip paths would need names in the page
    buffer = StringIO()
    with matplotlib.rc_context(SETTINGS | {"svg.hashsalt": f"{label} {figure.get_figwidth()}"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(buffer.getvalue())
    width, height = (round(size * 72) for size in figure.get_size_inches())
    root.attrib = {"viewBox": f"0 0 {width} {height}", "class": "chart", "role": "img", "aria-label": label}
    used = set(re.findall(r'href="#([^"]+)"', buffer.getvalue()))
    for parent in list(root.iter()):
        for child in [child for child in parent if child.tag.endswith(("metadata", "style"))]:
            parent.remove(child)
        name = parent.get("id", "")
        if name not in used:
            parent.attrib.pop("id", None)
        if name in titles:
            parent.set("class", f"{name.partition('-')[0]} {name}")
            title = ElementTree.Element(f"{{{SVG}}}title")
            title.text = titles[name]
            parent.insert(0, title)
    text = ElementTree.tostring(root, encoding="unicode")
    text = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font: \1 system-ui, sans-serif", text)
    return re.sub(f"(?<=: )({'|'.join(VARIABLES)})", lambda colour: f"var(--{VARIABLES[colour[0]]})", text)


def save_svg(figure: Figure, label: str, file: Path) -> None:
    """Writes a figure as an SVG file with its own style and background. `label` is that of `to_svg`."""
    start, _, rest = to_svg(figure, label).partition(">")
    width, height = (round(size * 72) for size in figure.get_size_inches())
    start = f'{start} width="{width}" height="{height}">'  # a document shows it in this size
    style = f"<style>{STYLE.read_text(encoding='utf-8')}</style>"
    background = '<rect width="100%" height="100%" style="fill: var(--paper)" />'
    write_text(file, f"{start}{style}{background}{rest}\n")
