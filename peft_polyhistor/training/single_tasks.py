# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Joins the results of single-task fine-tuning, which trains one model per task."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import PartialState

from ..hub.record import RESULTS
from .files import write_json


def join_tasks(folder: Path, runs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Joins results of single-task runs into those of one run; adds up parameters and seconds.

    Args:
        folder: Folder for the joint results.json, named like the method.
        runs: Results of the runs by task, all with the same settings and versions.
    """

    def join_steps(name: str, content: str) -> list[dict[str, Any]]:
        by_step: dict[int, dict[str, Any]] = {}
        for entry in (entry for run in runs.values() for entry in run[name]):
            by_step.setdefault(entry["step"], {}).update(entry[content])
        return [{"step": step, content: joined} for step, joined in sorted(by_step.items())]

    first = next(iter(runs.values()))
    results = {
        "method": folder.name,
        "parameters": {part: sum(run["parameters"][part] for run in runs.values()) for part in ("encoder", "all")},
        "scores": {task: run["scores"][task] for task, run in runs.items()},
        "history": join_steps("history", "scores"),
        "losses": join_steps("losses", "losses"),
        "classes": {task: run["classes"][task] for task, run in runs.items() if task in run["classes"]},
        "examples": {task: run["examples"][task] for task, run in runs.items()},
        "seconds": round(sum(run["seconds"] for run in runs.values()), 1),
        "settings": first["settings"],
        "inputs": first.get("inputs", {}),
        "versions": first.get("versions", {}),
    }
    if PartialState().is_main_process:
        write_json(folder / RESULTS, results)
    return results
