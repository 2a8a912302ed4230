# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""What a run records beside its scores, for report.py: figures of classes, best and worst pictures, and losses.

classes     IoU of each class by task and name, percent; null where a class is neither labeled nor predicted, and for
            all of them where the model diverged
pictures    by task, the `best` and the `worst` pictures, each with its id, place in the data and own score
losses      by task, the mean since the entry before, each `log_every` steps and at evaluations

Classes and pictures are those of the last evaluation.
"""

import math
from collections.abc import Mapping, Sequence

from datasets import Dataset
from torch import Tensor

from peft_polyhistor import TASKS
from peft_polyhistor.evaluation import score_classes, score_pictures


ENDS = 3  # pictures at either end of the ranking


def find_details(statistics: Mapping[str, Tensor], data: Dataset) -> dict:
    """`classes` and `pictures` of an evaluation.

    Args:
        statistics: What `collect_statistics` returned.
        data: What was scored, in the order of the rows.
    """
    image_ids = data.with_format(None)["image_id"]
    classes = {
        task: {name: None if math.isnan(value) else value for name, value in values.items()}
        for task, values in score_classes(statistics).items()
    }
    pictures = {task: _find_ends(task, scores, image_ids) for task, scores in score_pictures(statistics).items()}
    return {"classes": classes, "pictures": pictures}


def _find_ends(task: str, scores: Sequence[float], image_ids: Sequence[str]) -> dict[str, list[dict]]:
    """Best and worst pictures, from the outermost; no picture is both, and none is without a score."""
    ranked = [index for index, score in enumerate(scores) if math.isfinite(score)]
    ranked.sort(key=lambda index: -scores[index] if TASKS[task].higher_is_better else scores[index])
    ends = {"best": ranked[:ENDS], "worst": ranked[ENDS:][-ENDS:][::-1]}
    return {
        end: [{"image_id": image_ids[index], "index": index, "score": scores[index]} for index in indices]
        for end, indices in ends.items()
    }


def join_runs(runs: Mapping[str, Mapping]) -> dict:
    """Results of runs on one task each, by task, as those of one run: parameters and seconds summed."""
    return {
        "parameters": {part: sum(run["parameters"][part] for run in runs.values()) for part in ("encoder", "all")},
        "scores": _join_tasks(runs, "scores"),
        "history": _join_steps(runs, "history", "scores"),
        "losses": _join_steps(runs, "losses", "losses"),
        "classes": _join_tasks(runs, "classes"),
        "pictures": _join_tasks(runs, "pictures"),
        "seconds": round(sum(run["seconds"] for run in runs.values()), 1),
    }


def _join_tasks(runs: Mapping[str, Mapping], name: str) -> dict:
    return {task: run[name][task] for task, run in runs.items() if task in run.get(name, {})}


def _join_steps(runs: Mapping[str, Mapping], name: str, content: str) -> list[dict]:
    by_step: dict[int, dict] = {}
    for run in runs.values():
        for entry in run.get(name, []):  # results of an older version have no losses
            by_step.setdefault(entry["step"], {}).update(entry[content])
    return [{"step": step, content: by_step[step]} for step in sorted(by_step)]
