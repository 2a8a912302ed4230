# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The parts of a report's page, from the runs of a study to what page/report.html writes down."""

from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from charts import to_markup
from curves import Line, draw_curves, mean_line, thin
from markupsafe import Markup
from plot import NARROW, WIDE, draw_plot, find_points
from records import shared_settings, source_of
from studies import Study

from peft_polyhistor import TASKS
from peft_polyhistor.evaluation import headline
from peft_polyhistor.studies.gallery import GALLERY, file_name
from peft_polyhistor.studies.tables import REFERENCES, find_best, make_note, make_rows, reference_of, split_range


def distinct(values: Iterable) -> str:
    """What values there are, each once, in words."""
    return ", ".join(dict.fromkeys(map(str, values)))


def facts_of(study: Study) -> dict[str, str]:
    """What the runs have in common, for the top of the page."""
    settings = [shared_settings(run["settings"]) for run in study.runs]
    steps = [run["history"][-1]["step"] for run in study.runs if run.get("history")]
    seconds = sum(run.get("seconds", 0) for run in study.runs)
    versions = {f"{name} {version}": None for run in study.runs for name, version in run.get("versions", {}).items()}
    facts = {
        "data": distinct(source_of(run["settings"]["data"]).name for run in study.runs),
        "encoder": distinct(item["encoder"] for item in settings),
        "picture size": distinct(f"{item['image_size']} px" for item in settings),
        "optimiser steps": distinct(steps),
        "pictures per step": distinct(map(_count_pictures, study.runs)),
        "seeds": distinct(run["settings"]["seed"] for run in study.runs),
        "time": f"{seconds / 60:.1f} minutes for {len(study.runs)} runs" if seconds else "",
        "versions": distinct(versions),
    }
    return {name: text for name, text in facts.items() if text}


def _count_pictures(run: dict) -> int:
    settings = run["settings"]
    return settings["batch_size"] * settings["gradient_accumulation"] * settings.get("processes", 1)


def settings_of(study: Study) -> dict[str, str]:
    """Every setting, without the places of a machine, and its values over the runs."""
    settings = [shared_settings(run["settings"]) for run in study.runs]
    names = dict.fromkeys(name for values in settings for name in values if name != "methods")
    return {name: distinct(_words(values[name]) for values in settings if name in values) for name in names}


def _words(value: object) -> str:
    return " ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


def table_of(study: Study) -> dict:
    """The table of results, and what its columns mean: means apart from ranges, the best of each column marked."""
    header, *rows = make_rows(study.results, study.papers)
    own = [cells for name, *cells in rows if name in study.results]
    best = [find_best(title, [cells[column] for cells in own]) for column, title in enumerate(header[1:])]
    return {
        "header": [title.partition(" ") for title in header],
        "rows": [
            {
                "name": name,
                "of_paper": name not in study.results,
                "cells": [(*split_range(cell), cell in best[column]) for column, cell in enumerate(cells)],
            }
            for name, *cells in rows
        ],
        "note": make_note(study.results, study.papers).replace("\n", " "),
    }


def plot_of(study: Study) -> dict:
    """The plot of change against parameters, for wide and narrow screens, or why there is none."""
    points, reference = find_points(study.results), REFERENCES.get(reference_of(study.results))
    if len(study.results) == 1 or reference is None:
        return {"missing": f"It needs two methods, and one of {' and '.join(REFERENCES)} to measure changes against."}
    if not points:
        return {"missing": f"The scores of {reference} allow no change relative to them."}
    wide, narrow = (Markup(to_markup(draw_plot(points, reference, width))) for width in (WIDE, NARROW))
    left_out = [method for method in study.results if method not in points]
    return {"wide": wide, "narrow": narrow, "reference": reference, "left_out": left_out}


def curves_of(study: Study) -> list[dict]:
    """Losses, then scores: a chart for each task."""
    losses = {task: f"{task}, loss" for task in study.tasks}
    scores = {task: f"{task}, {TASKS[task].score} in {TASKS[task].unit}" for task in study.tasks}
    return [
        {
            "title": "Losses",
            "text": "Each point is the mean over the steps since the point before.",
            "charts": _draw_charts(study, losses, _losses, has_dots=False),
        },
        {
            "title": "Scores",
            "text": "One point per evaluation.",
            "charts": _draw_charts(study, scores, _scores, has_dots=True),
        },
    ]


def _draw_charts(study: Study, labels: dict[str, str], line_of: Callable[[dict, str], Line], has_dots: bool) -> list:
    charts = []
    for task, label in labels.items():
        lines = {name: thin(mean_line([line_of(run, task) for run in runs])) for name, runs in study.results.items()}
        chart = draw_curves(lines, label, has_dots)
        if chart is not None:
            charts.append({"caption": label, "chart": Markup(to_markup(chart))})
    return charts


def _losses(run: dict, task: str) -> Line:
    return [(entry["step"], entry["losses"][task]) for entry in run.get("losses", []) if task in entry["losses"]]


def _scores(run: dict, task: str) -> Line:
    scores = [(entry["step"], headline(entry["scores"])) for entry in run.get("history", [])]
    return [(step, values[task]) for step, values in scores if task in values]


def classes_of(study: Study) -> list[dict]:
    """By task with classes, a row per class: its colour, and the mean over seeds of each method that has it."""
    tables = []
    for task in study.tasks:
        runs = {name: [run.get("classes", {}).get(task) for run in runs] for name, runs in study.results.items()}
        runs = {name: figures for name, figures in runs.items() if all(figures)}
        rows = [
            {
                "name": name,
                "colour": "rgb({}, {}, {})".format(*colour),
                "figures": [_mean([figure.get(name) for figure in figures]) for figures in runs.values()],
            }
            for name, colour in zip(TASKS[task].class_names, TASKS[task].palette, strict=True)
        ]
        if runs and rows:
            tables.append({"task": task, "methods": list(runs), "rows": rows})
    return tables


def _mean(figures: list[float | None]) -> float | None:
    present = [figure for figure in figures if figure is not None]
    return sum(present) / len(present) if present else None


def galleries_of(study: Study) -> Iterator[dict]:
    """By method, the best and worst pictures of each task, of the first seed."""
    for method, (run, *_) in study.results.items():
        if run.get("pictures"):
            folder = study.folders[method][0]
            tasks = [
                {
                    "name": task,
                    "score": f"{TASKS[task].score} in {TASKS[task].unit}",
                    "ends": {
                        end: [
                            entry | {"source": _picture(folder, task, entry["index"])}
                            for entry in run["pictures"][task][end]
                        ]
                        for end in ("best", "worst")
                    },
                }
                for task in study.tasks
                if task in run["pictures"]
            ]
            yield {"method": method, "seed": run["settings"]["seed"], "tasks": tasks}


def _picture(folder: Path, task: str, index: int) -> str | None:
    """A picture of the gallery as a part of the page; runs on single tasks have a folder for each."""
    name = file_name(task, index)
    for file in (folder / GALLERY / name, folder / task / GALLERY / name):
        if file.is_file():
            return f"data:image/webp;base64,{b64encode(file.read_bytes()).decode()}"
    return None
