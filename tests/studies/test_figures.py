# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Figures of a study: what is in them, and that they can be read."""

import math
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.text import Annotation

from peft_polyhistor.studies import figures
from peft_polyhistor.studies.paper import read_rows


PAPER = Path(__file__).parents[2] / "recipes" / "paper" / "tables.csv"
ODD = '#010101 <b> & "$x_1$"'


def points_of(figure):
    """`(x, y)` and label of each point."""
    marks = [line for line in figure.axes[0].lines if (line.get_gid() or "").startswith("mark")]
    return {line.get_label(): (line.get_xdata()[0], line.get_ydata()[0]) for line in marks}


def names_of(figure):
    """Annotations of the figure's names, by name."""
    return {text.get_text(): text for text in figure.axes[0].texts if isinstance(text, Annotation)}


@pytest.mark.parametrize("changes", [[0.0], [1e-9, 2e-9], [-1e4, 1e4]])
@pytest.mark.parametrize("parameters", [0, 1, 10**8])
def test_a_plot_of_one_method_shows_its_point_range_and_name(parameters, changes):
    figure = figures.draw_changes({"only": figures.Point(parameters, changes)}, "decoders alone")
    mean, [axes] = sum(changes) / len(changes), figure.axes
    assert points_of(figure) == {f"only: {parameters:,} parameters, {mean:+.2f} percent": (parameters, mean)}
    [[bar]] = [collection.get_segments() for collection in axes.collections]
    assert bar.tolist() == [[parameters, min(changes)], [parameters, max(changes)]]
    assert names_of(figure)["only"].xy == (parameters, mean)
    figure.draw_without_rendering()
    low, high = axes.get_ylim()
    assert low < min(changes) <= max(changes) < high and axes.get_xlim()[0] < parameters < axes.get_xlim()[1]
    ticks = [label.get_text() for label in axes.get_xticklabels()]
    assert (ticks[0] == "0") == (parameters == 0) and len(set(ticks)) == len(ticks)
    assert "+0" not in [label.get_text() for label in axes.get_yticklabels()]
    assert axes.get_xlabel() == "trainable parameters in the encoder"
    assert axes.get_ylabel() == "change against decoders alone, percent"


@pytest.mark.parametrize("width", [figures.WIDE, figures.MEDIUM, figures.NARROW])
def test_names_in_the_plot_overlap_nothing_and_stand_inside(width):
    rows = [row for row in read_rows(PAPER) if row.table == 1]
    points = {
        row.method: figures.Point(
            round(1e6 * float(row.parameters["encoder"])), [float(row.change) - 1, float(row.change)]
        )
        for row in rows
    }
    figure = figures.draw_changes(points, "decoders alone", width)
    figure.draw_without_rendering()
    names = names_of(figure)
    # The text alone: the box of the annotation would hold the line to its point too.
    boxes = sorted((super(Annotation, name).get_window_extent() for name in names.values()), key=lambda box: box.y0)
    assert len(names) == 17 and all(low.y1 <= high.y0 for low, high in pairwise(boxes))
    axes, height = figure.axes[0].get_window_extent(), figure.bbox.height
    assert all(box.x0 > axes.x1 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height for box in boxes)


def test_a_diverged_method_has_no_point():
    run = {"settings": {}, "parameters": {"encoder": 7, "all": 9}}
    results = {
        name: [{**run, "scores": {"semseg": {"mIoU": score}}}]
        for name, score in (("decoders", 10.0), ("full", math.nan))
    }
    assert figures.find_points(results) == {"decoders": (7, [0.0])}


def test_rates_have_a_line_per_method_through_finite_means_and_bars_over_the_seeds():
    rates = {
        "a": {1e-2: [-50.0, -70.0], 1e-4: [1.0, 3.0], 1e-3: [1.0, math.nan]},  # rates in any order
        "diverged": {1e-4: [math.nan], 1e-3: [math.nan], 1e-2: [math.nan]},
        "b": {1e-4: [0.5], 1e-3: [0.5], 1e-2: [math.nan]},
    }
    figure = figures.draw_rates(rates, "decoders alone", figures.MEDIUM)
    figure.draw_without_rendering()
    [axes] = figure.axes
    first, second, zero = axes.lines
    assert first.get_xdata().tolist() == second.get_xdata().tolist() == [1e-4, 1e-3, 1e-2]
    np.testing.assert_array_equal(first.get_ydata(), [2, math.nan, -60])  # lines break at NaN
    np.testing.assert_array_equal(second.get_ydata(), [0.5, 0.5, math.nan])
    assert names_of(figure)["b"].xy == (1e-3, 0.5)
    assert list(zero.get_ydata()) == [0, 0]
    bars = [segment.tolist() for collection in axes.collections for segment in collection.get_segments()]
    assert bars[0] == [[1e-4, 1], [1e-4, 3]] and len(bars) == 4
    assert {name: text.get_color() for name, text in names_of(figure).items()} == {
        "a": first.get_color(),
        "b": second.get_color(),
    }
    assert axes.get_xticks().tolist() == [1e-4, 1e-3, 1e-2]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.0001", "0.001", "0.01"]


@pytest.mark.parametrize(("changes", "expected"), [([1.0, 4.0], [0, 2]), ([6, 8], [0, 2, 5]), ([-200, -400], [0])])
def test_the_axis_of_rates_has_ticks_in_its_range_with_zero(changes, expected):
    figure = figures.draw_rates({"a": {1e-3: changes}}, "decoders alone")
    ticks = figure.axes[0].get_yticks().tolist()
    assert set(expected) <= set(ticks) and len(ticks) > 1


def test_curves_break_where_a_figure_is_not_finite():
    gap = [(1, 1.0), (2, 2.0), (3, math.inf), (4, 3.0)]
    figure = figures.draw_curves({"a": gap}, has_dots=False)
    [curve] = figure.axes[0].lines
    assert [math.isnan(value) for value in curve.get_ydata()] == [False, False, True, False]
    assert curve.get_markevery() == [3]  # it stands alone
    assert figures.draw_curves({"a": [(5, 1.0)], "b": [(5, 2.0)]}, has_dots=True) is None


def test_lines_of_a_figure_differ_in_colour_or_dashes_as_the_legend_does():
    lines = {str(number): [(1, 1.0), (2, 2.0)] for number in range(20)}
    curves = figures.draw_curves(lines, has_dots=True).axes[0].lines
    assert (
        len({(curve.get_color(), curve._dash_pattern[1] and tuple(curve._dash_pattern[1])) for curve in curves}) == 20
    )
    assert len({figures.style_of(number) for number in range(20)}) == 20


def test_svg_takes_its_colours_from_the_page_and_holds_any_name():
    markup = figures.to_svg(figures.draw_curves({ODD: [(1, 1.0), (2, 2.0)]}, has_dots=True), f"losses of {ODD}")
    root = ElementTree.fromstring(markup)
    assert root.get("role") == "img" and root.get("aria-label") == f"losses of {ODD}"
    [run] = [element for element in root.iter() if element.get("class") == "run run-0"]
    assert run[0].tag.endswith("title") and run[0].text == ODD
    assert (
        "var(--line-0)" in markup and "var(--ink)" in markup and markup.count("#0101") == 2
    )  # in the title and in the label
    assert "#000000" not in markup and "url(" not in markup and "<style" not in markup
    used = {value[1:] for element in root.iter() for name, value in element.items() if name.endswith("href")}
    assert {element.get("id") for element in root.iter()} - {None} == used


def test_a_saved_figure_brings_its_style_and_background(tmp_path):
    lines = {"a": [(1, 0.01), (4, 0.1)], "b": [(1, 0.02), (4, 2)]}
    figure = figures.draw_lines(lines, "tasks", "seconds")
    assert figure.axes[0].get_xscale() == figure.axes[0].get_yscale() == "log"
    figure.draw_without_rendering()
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels(which="both")]
    assert "0.02" in labels and not any("$" in label for label in labels)
    assert set(names_of(figure)) == {"a", "b"} and figure.axes[0].get_xticks().tolist() == [1, 4]
    assert names_of(figure)["b"].xyann[1] > names_of(figure)["a"].xyann[1]  # as their ends
    figures.save_svg(figure, "seconds by tasks", tmp_path / "lines.svg")
    root = ElementTree.parse(tmp_path / "lines.svg").getroot()
    assert root.get("viewBox") == f"0 0 {root.get('width')} {root.get('height')}" and root.get("width") == "1000"
    assert root[0].tag.endswith("style") and "prefers-color-scheme: dark" in root[0].text
    assert root[1].get("style") == "fill: var(--paper)"
    assert {"a", "b", "tasks", "seconds"} <= {element.text for element in root.iter() if element.tag.endswith("text")}
