# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Reports a benchmark: tables for the terminal and in Markdown, a plot over the number of tasks, and JSON."""

import argparse
import json
import platform
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

import peft
import torch
import transformers

from peft_polyhistor.studies.figures import draw_lines, save_svg
from peft_polyhistor.studies.tables import align, to_markdown


PEAK = "product of two matrices"
NOTE = f"""\
seconds: median and range of the rounds; on a CPU, process time summed over all threads.
of the peak: floating-point operations per second, in percent of those of '{PEAK}'.
operations: calls of operators. saved: tensors kept for the backward pass. peak: memory above that before the step.
... to STEP: the figure relative to that of STEP; where the step is done in two ways, to the lower figure."""


class Reference(NamedTuple):
    """The figure and the steps that a column of ratios refers to; of several steps, the lowest figure counts."""

    figure: str  # "seconds", or a figure of `measure_cost`
    steps: tuple[str, ...]


References = Mapping[str, Reference]  # by title of the column


def name_setting(result: Mapping) -> str:
    return f"{result['encoder']}, {result['image_size']} px, {result['mode']}"


def make_rows(figures: Mapping[str, Mapping]) -> list[list[str]]:
    """Returns the cells of the table of figures, row by row; the first row is the header, and "-" is not measured."""
    rows = [["", "seconds", "range", "of the peak", "GFLOP", "operations", "saved MB", "peak MB"]]
    for name, own in figures.items():
        low, high = own["range"]
        cells = [f"{own['seconds']:.4g}", f"{low:.4g} to {high:.4g}", find_share(own, figures.get(PEAK))]
        cells += [f"{own['flops'] / 1e9:,.1f}", f"{own['operations']:,}" if "operations" in own else "-"]
        cells += [f"{own[key] / 1e6:,.0f}" if key in own else "-" for key in ("saved_bytes", "peak_bytes")]
        rows.append([name, *cells])
    return rows


def make_ratios(figures: Mapping[str, Mapping], references: References) -> list[list[str]]:
    """Returns the cells of the table of ratios, with a row for each step and a column for each reference."""
    rows = [["", *references]]
    for name in figures:
        rows.append([name, *(find_ratio(name, figures, reference) for reference in references.values())])
    return rows


def find_ratio(name: str, figures: Mapping[str, Mapping], reference: Reference) -> str:
    figure, steps = reference
    least = min((figures[step][figure] for step in steps if figure in figures.get(step, {})), default=0)
    if name == PEAK or figure not in figures[name] or not least:
        return "-"
    return f"{figures[name][figure] / least:.3f}"


def find_share(own: Mapping, peak: Mapping | None) -> str:
    if not peak:
        return "-"
    return f"{100 * own['flops'] / own['seconds'] / (peak['flops'] / peak['seconds']):.0f} %"


def make_remarks(result: Mapping) -> list[str]:
    return [f"not measured: {name}: {reason}" for name, reason in result["failures"].items()]


def print_result(result: Mapping, references: References) -> None:
    print(f"\n{name_setting(result)}, tasks: {result['tasks']}")
    figures = result["figures"]
    tables = [align(make_rows(figures)), "", align(make_ratios(figures, references))]
    print("\n".join([*tables, *make_remarks(result)]), flush=True)


def compare_numbers_of_tasks(results: Sequence[Mapping]) -> str:
    """Returns Markdown tables of the seconds by number of tasks, for settings with several numbers."""
    parts = []
    for setting, group in groupby(results, name_setting):
        figures = {result["tasks"]: result["figures"] for result in group}
        steps = dict.fromkeys(name for of_steps in figures.values() for name in of_steps)
        if len(figures) > 1:
            rows = [["seconds, by number of tasks", *map(str, figures)]]
            for step in steps:
                taken = (of_steps.get(step) for of_steps in figures.values())
                rows.append([step, *(f"{own['seconds']:.4g}" if own else "-" for own in taken)])
            parts.append(f"## {setting}, by number of tasks\n\n{to_markdown(rows, '')}")
    return "\n".join(parts)


def write_report(name: str, options: argparse.Namespace, results: Sequence[Mapping], references: References) -> None:
    """Writes the results so far as JSON, Markdown and SVG; files of the same name are replaced."""
    is_cuda = options.device.type == "cuda"
    device = torch.cuda.get_device_name(options.device) if is_cuda else platform.machine()
    versions = {module.__name__: module.__version__ for module in (torch, transformers, peft)}
    folder = options.output_dir
    folder.mkdir(parents=True, exist_ok=True)
    report = {"settings": vars(options), "machine": {"device": device, **versions}, "results": results}
    (folder / f"{name}.json").write_text(json.dumps(report, indent=2, default=str), encoding="utf-8")

    machine = ", ".join([device, *(f"{key} {version}" for key, version in versions.items())])
    sizes = f"{options.dtype}, batch of {options.batch_size}, CPU threads: {options.threads}, {options.rounds} rounds"
    parts = [f"# {name}\n\n{machine}; {sizes}.\n\n{NOTE}\n"]
    for result in results:
        remarks = "\n".join(f"- {remark}" for remark in make_remarks(result))
        tables = [
            to_markdown(make_rows(result["figures"]), ""),
            to_markdown(make_ratios(result["figures"], references), remarks),
        ]
        parts.append("\n".join([f"## {name_setting(result)}, tasks: {result['tasks']}\n", *tables]))
    text = "\n".join([*parts, compare_numbers_of_tasks(results)])
    (folder / f"{name}.md").write_text(text, encoding="utf-8")

    has_several = len(set(map(name_setting, results))) > 1
    lines: dict[str, list[tuple[float, float]]] = {}
    for result in results:
        for step, figures in result["figures"].items():
            name_of_line = f"{step}, {name_setting(result)}" if has_several else step
            lines.setdefault(name_of_line, []).append((result["tasks"], figures["seconds"]))
    if lines:
        title = f"Seconds by tasks of {', '.join(lines)}"
        save_svg(draw_lines(lines, "tasks", "seconds"), title, folder / f"{name}.svg")
    print(f"\nWrote {folder / name}.json, .md and .svg.", flush=True)
