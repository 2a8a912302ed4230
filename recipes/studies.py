# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The finished runs of an output folder, of train_pascal.py or compare_methods.py, checked for what a page needs."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft_polyhistor import TASKS
from peft_polyhistor.studies.paper import PaperRow


NUMBER, ANY = int | float, object
COMPARISON, RESULTS = "comparison.json", "results.json"
# Shapes of JSON: {str: shape} is a mapping of any names, [shape] a list of any length.
SCORES = {str: {str: NUMBER}}
RUN = {
    "method": str,
    "parameters": {"encoder": int, "all": int},
    "scores": SCORES,
    "settings": {
        **dict.fromkeys(("data", "encoder"), str),
        **dict.fromkeys(("seed", "image_size", "batch_size", "gradient_accumulation"), int),
        "learning_rate": NUMBER,
    },
}
PICTURE = {"image_id": str, "index": int, "score": NUMBER}
DETAILS = {  # what a run may lack
    "history": [{"step": int, "scores": SCORES}],
    "losses": [{"step": int, "losses": {str: NUMBER}}],
    "classes": {str: {str: NUMBER | None}},
    "pictures": {str: {"best": [PICTURE], "worst": [PICTURE]}},
    "seconds": NUMBER,
    "versions": {str: str},
}
ROW = {
    **dict.fromkeys(("backbone", "pretraining", "method", "setting", "change"), str),
    "parameters": {str: str},
    "scores": {str: str},
    "table": int,
}


@dataclass(frozen=True)
class Study:
    """Runs with the same tasks and seeds.

    Args:
        results: By method, one per seed.
        folders: Where each of them lies.
        papers: By method the paper's row, for those that have one.
    """

    results: dict[str, list[dict]]
    folders: dict[str, list[Path]]
    papers: dict[str, PaperRow]

    @property
    def runs(self) -> list[dict]:
        return [run for runs in self.results.values() for run in runs]

    @property
    def tasks(self) -> list[str]:
        return list(self.runs[0]["scores"])


def read_study(folder: Path) -> Study:
    """The runs of a comparison, where the folder has one, else those of its subfolders.

    Raises:
        FileNotFoundError: The folder holds neither.
        ValueError: A file is damaged, or the runs differ in their tasks or seeds.
    """
    files = sorted(folder.glob(f"*/{RESULTS}"))
    if (folder / COMPARISON).is_file():
        study = _read_comparison(folder)
    elif files:
        runs = {file.parent.name: _check_run(_read_json(file), file) for file in files}
        study = Study({name: [run] for name, run in runs.items()}, {name: [folder / name] for name in runs}, {})
    else:
        raise FileNotFoundError(
            f"There is no {COMPARISON} and no METHOD/{RESULTS} in {folder}. Give the --output_dir of train_pascal.py "
            "or compare_methods.py, after a run is finished."
        )
    for what, found in (
        ("tasks", {str(sorted(run["scores"])) for run in study.runs}),
        ("seeds", {str([run["settings"]["seed"] for run in runs]) for runs in study.results.values()}),
    ):
        if len(found) > 1:
            raise ValueError(
                f"Runs in {folder} differ in their {what}, so no table compares them: {' and '.join(sorted(found))}. "
                "Keep them in different folders."
            )
    return study


def _read_comparison(folder: Path) -> Study:
    file = folder / COMPARISON
    methods = _check(_read_json(file), {"methods": {str: {"runs": [ANY], "grid": {str: ANY}}}}, file)["methods"]
    results, folders, papers = {}, {}, {}
    for method, content in methods.items():
        results[method] = [_check_run(run, file) for run in content["runs"]]
        # A rate that was chosen from a grid is part of the path, see compare_methods.py.
        rates = [repr(run["settings"]["learning_rate"]) if content["grid"] else "" for run in results[method]]
        seeds = [f"seed{run['settings']['seed']}" for run in results[method]]
        folders[method] = [folder / seed / rate / method for seed, rate in zip(seeds, rates, strict=True)]
        if content.get("paper"):
            papers[method] = PaperRow(**_check(content["paper"], ROW, file))
    if not any(results.values()):
        raise ValueError(f"{file} names no run. Give compare_methods.py at least one method and seed.")
    return Study(results, folders, papers)


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is no JSON: {error}. Run the recipe again, with --resume, or remove it.") from error


def _check_run(run: Any, file: Path) -> dict:
    present = {name: shape for name, shape in DETAILS.items() if isinstance(run, dict) and name in run}
    _check(run, RUN | present, file)
    for evaluation in [run["scores"], *(entry["scores"] for entry in run.get("history", []))]:
        for task, scores in evaluation.items():
            if task not in TASKS or TASKS[task].score not in scores:
                raise ValueError(f"{file}: {scores} are no scores of '{task}'; known tasks are {', '.join(TASKS)}.")
    if not run["scores"]:
        raise ValueError(f"{file} holds no scores. Run the recipe again, or remove the file.")
    return run


def _check(value: Any, shape: Mapping, file: Path) -> Any:
    """The value, if it is a mapping with every part of the shape."""
    wrong = [name for name in shape if not (isinstance(value, dict) and _fits(value.get(name), shape[name]))]
    if wrong:
        raise ValueError(f"{file}: {', '.join(wrong)} missing or damaged. Run the recipe again, or remove the file.")
    return value


def _fits(value: Any, shape: Any) -> bool:
    if isinstance(shape, list):
        return isinstance(value, list) and all(_fits(item, shape[0]) for item in value)
    if not isinstance(shape, dict):
        return isinstance(value, shape)
    if not isinstance(value, dict):
        return False
    if list(shape) == [str]:
        return all(_fits(item, shape[str]) for item in value.values())
    return all(_fits(value.get(name), part) for name, part in shape.items())
