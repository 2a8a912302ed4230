# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Reads the results of finished runs from the output folder of `train_pascal.py` or `compare_methods.py`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..hub.record import RESULTS
from ..tasks import TASKS, declare_tasks
from ..training.files import read_json
from .paper import PaperRow


COMPARISON = "comparison.json"
DATA = "data", "layout", "holdout", "left_out"  # settings that choose the images
Line = Sequence[tuple[int, float]]  # optimiser step and figure
Grid = dict[float, dict[str, float]]  # headline score by learning rate and task


@dataclass(frozen=True)
class Study:
    """Runs with the same tasks and seeds.

    Args:
        results: Results by method, one per seed.
        folders: Folders of the runs, in the same order.
        papers: Rows of the paper by method, for methods that have one.
        grids: Scores on held-out images by method and learning rate, for methods that chose their rate.
    """

    results: dict[str, list[dict[str, Any]]]
    folders: dict[str, list[Path]]
    papers: dict[str, PaperRow] = field(default_factory=dict)
    grids: dict[str, Grid] = field(default_factory=dict)

    @property
    def runs(self) -> list[dict[str, Any]]:
        """All runs, method by method."""
        return [run for runs in self.results.values() for run in runs]

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks."""
        return list(self.runs[0]["scores"])


def read_study(folder: Path) -> Study:
    """Reads the comparison in a folder if it has one, else the runs in its subfolders.

    Raises:
        FileNotFoundError: The folder has neither.
        ValueError: A file is damaged, or the runs differ in their tasks, seeds or data, or in the weights that they
            start from.
    """
    if (folder / COMPARISON).is_file():
        study = _read_comparison(folder)
    elif files := sorted(folder.glob(f"*/{RESULTS}")):
        runs = {file.parent.name: [_check_run(read_json(file), file)] for file in files}
        study = Study(runs, {name: [folder / name] for name in runs})
    else:
        raise FileNotFoundError(
            f"There is no {COMPARISON} and no METHOD/{RESULTS} in {folder}. Give the --output_dir of train_pascal.py "
            "or compare_methods.py, after a run is finished."
        )
    records = [run["inputs"] for run in study.runs if run.get("inputs")]
    names = dict.fromkeys(name for record in records for name in record)
    for what, found in (
        ("their tasks", {str(sorted(run["scores"])) for run in study.runs}),
        ("their seeds", {str([run["settings"]["seed"] for run in runs]) for runs in study.results.values()}),
        ("their data", {str({name: run["settings"].get(name) or None for name in DATA}) for run in study.runs}),
        *((name, {record.get(name, "none") for record in records}) for name in names),
    ):
        if len(found) > 1:
            raise ValueError(
                f"Runs in {folder} differ in {what}, so they cannot be compared: {' and '.join(sorted(found))}. "
                "Move them to different folders."
            )
    return study


def mean_line(lines: Sequence[Line]) -> Line:
    """Returns the mean of the runs at each step that all runs have."""
    figures = [dict(line) for line in lines]
    steps = set(figures[0]).intersection(*figures[1:]) if figures else set()
    return [(step, sum(figure[step] for figure in figures) / len(figures)) for step in sorted(steps)]


def thin(line: Line, most: int = 150) -> Line:
    """Thins a line to at most `most` points: means over groups of neighbours, each at the last step of its group."""
    group = math.ceil(len(line) / most)
    parts = [line[start : start + group] for start in range(0, len(line), group or 1)]
    return [(part[-1][0], sum(figure for _, figure in part) / len(part)) for part in parts]


def _read_comparison(folder: Path) -> Study:
    file, study = folder / COMPARISON, Study({}, {})
    try:
        for method, content in read_json(file)["methods"].items():
            runs = study.results[method] = [_check_run(run, file) for run in content["runs"]]
            # compare_methods.py adds the learning rate to the folder name if it was chosen from a grid.
            rates = [repr(run["settings"]["learning_rate"]) if content["grid"] else "" for run in runs]
            seeds = [f"seed{run['settings']['seed']}" for run in runs]
            study.folders[method] = [folder / seed / rate / method for seed, rate in zip(seeds, rates, strict=True)]
            study.grids[method] = {float(rate): scores for rate, scores in content["grid"].items()}
            if content.get("paper"):
                study.papers[method] = PaperRow(**content["paper"])
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged: {error!r}. Run the recipe again, or remove the file.") from error
    if not any(study.results.values()):
        raise ValueError(f"{file} names no run. Give compare_methods.py at least one method and seed.")
    return study


def _check_run(run: Any, file: Path) -> dict[str, Any]:
    given = run if isinstance(run, dict) else {}
    missing = [name for name in ("method", "parameters", "scores", "settings") if not given.get(name)]
    if missing:
        raise ValueError(f"{file} has no {', '.join(missing)}. Run the recipe again, or remove the file.")
    declare_tasks(given["settings"].get("tasks", []))
    for evaluation in [given["scores"], *(entry["scores"] for entry in given.get("history", []))]:
        for task, scores in evaluation.items():
            if task not in TASKS or TASKS[task].score not in scores:
                raise ValueError(
                    f"{file}: {scores} are no scores of '{task}'; known tasks are {', '.join(TASKS)}. Run the recipe "
                    "again, or remove the file."
                )
    return given
