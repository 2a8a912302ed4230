# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""HTML report on finished runs: scores, change against parameters, curves, classes, best and worst images.

The page is one self-contained HTML file without scripts, for screens of any width, light and dark. It names the data
that the runs did not record.
"""

from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ..evaluation import format_score, headline
from ..hub.run_record import shared_settings, source_of
from ..tasks import TASKS
from ..training.files import write_text
from ..training.run_folder import GALLERY
from . import figures
from .gallery import file_name
from .results import Line, Study, mean_line, read_study, thin
from .tables import REFERENCES, find_best_methods, make_note, make_rows, reference_of, split_range


if TYPE_CHECKING:
    from matplotlib.figure import Figure


SIZES = ("encoder", "parameters"), ("all", "parameters")  # titles of two columns, and the small print below


def make_report(folder: Path, file: Path | None = None) -> Path:
    """Writes the report on an output folder, and returns its file.

    Args:
        folder: Output folder of train_pascal.py or compare_methods.py.
        file: File to write, which has a suffix, or a folder for report.html; `None` for the output folder.

    Raises:
        FileNotFoundError: The folder holds no finished run.
        ValueError: As in `read_study`.
    """
    folder = folder.expanduser()
    file = (file or folder).expanduser()
    file = file / "report.html" if file.is_dir() or not file.suffix else file
    page = make_page(read_study(folder), folder.resolve().name)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, page)
    return file


def make_page(study: Study, title: str) -> str:
    """Returns the page as HTML."""
    assets = figures.STYLE.parent
    environment = Environment(
        loader=FileSystemLoader(assets), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    style = "".join((assets / name).read_text(encoding="utf-8") for name in ("figures.css", "report.css"))
    return environment.get_template("report.html").render(
        title=title,
        style=Markup(style),  # a file of this package
        style_of=figures.style_of,
        methods=list(study.results),
        seeds=max(map(len, study.results.values())),
        facts=_facts(study),
        table=_table(study),
        plot=_changes(study),
        curves=_curves(study),
        classes=list(_classes(study)),
        galleries=list(_galleries(study)),
        settings=_settings(study),
    )


def _facts(study: Study) -> dict[str, str]:
    """Returns the facts at the top of the page."""
    settings = [shared_settings(run["settings"]) for run in study.runs]
    seeds = list(dict.fromkeys(item["seed"] for item in settings))
    seconds = sum(run.get("seconds", 0) for run in study.runs)
    per_step = [
        item["batch_size"] * item["gradient_accumulation"] * run["settings"].get("processes", 1)
        for item, run in zip(settings, study.runs, strict=True)
    ]
    facts = {
        "data": _distinct(source_of(run["settings"]["data"]).name for run in study.runs),
        "encoder": _distinct(item["encoder"] for item in settings),
        "image size": _distinct(f"{item['image_size']} px" for item in settings),
        "optimiser steps": _distinct(run["history"][-1]["step"] for run in study.runs if run.get("history")),
        "images per step": _distinct(per_step),
        "seeds" if len(seeds) > 1 else "seed": _distinct(seeds),
        "time": f"{seconds / 60:.1f} minutes for {len(study.runs)} runs" if seconds else "",
        "versions": _distinct(
            f"{name} {version}" for run in study.runs for name, version in run.get("versions", {}).items()
        ),
    }
    return {name: text for name, text in facts.items() if text}


def _distinct(values: Iterable[object]) -> str:
    return ", ".join(dict.fromkeys(map(str, values)))


def _settings(study: Study) -> dict[str, str]:
    """Returns every setting with its values over the runs."""
    settings = [shared_settings(run["settings"]) for run in study.runs]
    names = dict.fromkeys(name for values in settings for name in values if name != "methods")
    return {name: _distinct(_in_words(values[name]) for values in settings if name in values) for name in names}


def _in_words(value: object) -> str:
    return " ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


def _table(study: Study) -> dict[str, Any]:
    """Returns the table of results: means apart from ranges, the best of each column marked, and the note below."""
    _, *rows = make_rows(study.results, study.papers)
    best = find_best_methods(study.results)
    tasks = [(task, f"{TASKS[task].score} in {TASKS[task].unit}, {TASKS[task].better}") for task in study.tasks]
    return {
        "header": [("method", ""), ("rate", ""), *SIZES, *tasks, ("change", "percent, up")],
        "rows": [
            {
                "name": name,
                "of_paper": name not in study.results,
                "cells": [(*split_range(cell), name in methods) for cell, methods in zip(cells, best, strict=True)],
            }
            for name, *cells in rows
        ],
        "note": make_note(study.results, study.papers, study.grids).replace("\n", " "),
    }


def _changes(study: Study) -> dict[str, Any]:
    """Returns the figure of change against parameters for wide and narrow screens, or the reason for its absence."""
    points, reference = figures.find_points(study.results), REFERENCES.get(reference_of(study.results) or "")
    if len(study.results) == 1 or reference is None:
        return {"missing": f"It needs two methods, one of them {' or '.join(REFERENCES)} as the reference."}
    if not points:
        return {"missing": f"No change relative to the scores of {reference} exists."}
    label = f"Change against {reference} by trainable parameters of {', '.join(points)}"
    wide, narrow = (
        _markup(figures.draw_changes(points, reference, width), label) for width in (figures.WIDE, figures.NARROW)
    )
    left_out = [method for method in study.results if method not in points]
    return {"wide": wide, "narrow": narrow, "reference": reference, "left_out": left_out}


def _markup(figure: "Figure", label: str) -> Markup:
    return Markup(figures.to_svg(figure, label))  # all text is escaped there


def _curves(study: Study) -> list[dict[str, Any]]:
    """Returns losses, then scores: a figure for each task."""
    losses = {task: f"{task}, loss" for task in study.tasks}
    scores = {task: f"{task}, {TASKS[task].score} in {TASKS[task].unit}" for task in study.tasks}
    return [
        {
            "title": "Losses",
            "text": "Each point is the mean over the steps since the previous point.",
            "charts": list(_draw_curves(study, losses, _losses, has_dots=False)),
        },
        {
            "title": "Scores",
            "text": "One point per evaluation.",
            "charts": list(_draw_curves(study, scores, _scores, has_dots=True)),
        },
    ]


def _draw_curves(
    study: Study, labels: Mapping[str, str], line_of: Callable[[Mapping[str, Any], str], Line], has_dots: bool
) -> Iterator[dict[str, Any]]:
    for task, label in labels.items():
        lines = {name: thin(mean_line([line_of(run, task) for run in runs])) for name, runs in study.results.items()}
        figure = figures.draw_curves(lines, has_dots)
        if figure is not None:
            yield {"caption": label, "chart": _markup(figure, f"{label} by optimiser step of {', '.join(lines)}")}


def _losses(run: Mapping[str, Any], task: str) -> Line:
    return [(entry["step"], entry["losses"][task]) for entry in run.get("losses", []) if task in entry["losses"]]


def _scores(run: Mapping[str, Any], task: str) -> Line:
    scores = [(entry["step"], headline(entry["scores"])) for entry in run.get("history", [])]
    return [(step, values[task]) for step, values in scores if task in values]


def _classes(study: Study) -> Iterator[dict[str, Any]]:
    """Yields for each task with classes a row per class: its colour, and the mean over seeds of each method."""
    for task in study.tasks:
        runs = {name: [run.get("classes", {}).get(task) for run in runs] for name, runs in study.results.items()}
        runs = {name: scores for name, scores in runs.items() if all(scores)}
        rows = [
            {
                "name": name,
                "colour": "rgb({}, {}, {})".format(*colour),
                "figures": [_mean([score.get(name) for score in scores]) for scores in runs.values()],
            }
            for name, colour in zip(TASKS[task].class_names, TASKS[task].palette, strict=True)
        ]
        if runs and rows:
            yield {"task": task, "methods": list(runs), "rows": rows}


def _mean(values: Iterable[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None


def _galleries(study: Study) -> Iterator[dict[str, Any]]:
    """Yields for each method the best and worst images of each task, of the first seed."""
    for method, (run, *_) in study.results.items():
        if not run.get("examples"):
            continue
        folder = study.folders[method][0]
        tasks = [
            {
                "name": task,
                "score": f"{TASKS[task].score} in {TASKS[task].unit}",
                "ends": {
                    end: [_show(entry, task, folder) for entry in entries]
                    for end, entries in run["examples"][task].items()
                },
            }
            for task in study.tasks
            if task in run["examples"]
        ]
        yield {"method": method, "seed": run["settings"]["seed"], "tasks": tasks}


def _show(entry: Mapping[str, Any], task: str, folder: Path) -> dict[str, Any]:
    """Returns an entry of `find_details` with its score as text and its image."""
    score = format_score(entry["score"], unit=TASKS[task].unit)
    return {**entry, "score": score, "source": _read_image(folder, task, entry["index"])}


def _read_image(folder: Path, task: str, index: int) -> str | None:
    """Returns an image of the gallery as a data URL; runs on single tasks have a folder for each task."""
    name = file_name(task, index)
    for file in (folder / GALLERY / name, folder / task / GALLERY / name):
        if file.is_file():
            return f"data:image/webp;base64,{b64encode(file.read_bytes()).decode()}"
    return None
