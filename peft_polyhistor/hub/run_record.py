# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The record of a run of recipes/train_pascal.py, for the card of its checkpoint."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..evaluation import find_best
from ..tasks import declare_tasks
from .record import PREVIEW, TrainingRecord


TRAINING = "training.yaml"
COMMAND = "accelerate launch recipes/train_pascal.py"


@dataclass(frozen=True)
class Source:
    """Name, licence and limits of the data of a run."""

    name: str
    type: str
    license: str
    limits: tuple[str, ...] = ()
    is_on_hub: bool = False


SCENES = Source(
    "the embedded scenes of peft-polyhistor",
    "peft-polyhistor-scenes",
    "drawn by peft-polyhistor, which is under Apache-2.0",
    ("The scenes are drawn by a computer. They show that it learns, not how well it does on photographs.",),
)
PASCAL = Source(
    "PASCAL-Context (PASCAL_MT)",
    "pascal-context",
    "photographs of PASCAL VOC 2010 from Flickr, under Flickr's terms of use; for the labels, ask their authors",
)


def source_of(data: str) -> Source:
    """What is known of the `data` of a run."""
    path = Path(data).expanduser()
    if data == "scenes":
        return SCENES
    if not data or path.name == "PASCAL_MT":
        return PASCAL
    if path.exists() or data.count("/") != 1:
        return Source(path.name, path.name.lower(), "not recorded: of a folder of whoever trained this")
    return Source(data, data, f"see https://huggingface.co/datasets/{data}", is_on_hub=True)


def shared_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a run that are of use to others, without the paths of the machine."""
    shared = {name: value for name, value in settings.items() if name not in ("output_dir", "resume", "processes")}
    for name in ("data", "encoder"):
        if Path(shared[name]).expanduser().exists():
            shared[name] = Path(shared[name]).name
    return shared


def record_of(
    results: Mapping[str, Any],
    checkpoint: str,
    others: Sequence[Mapping[str, Any]] = (),
    config: Path | None = None,
    neutral: Collection[str] = (),
) -> TrainingRecord:
    """Builds the record of a checkpoint.

    Args:
        results: Results of the finished run; with an empty `history` those of a run that is still to be made.
        checkpoint: `best` or `last`.
        others: Results of runs with other seeds.
        config: The file of settings that the run was started with; `None` for the one that `write_files` writes.
        neutral: Names of settings that may differ between seeds, as they do not change what a run learns.

    Raises:
        ValueError: The checkpoint is neither of the two, or another run differs in more than its seed.
    """
    if checkpoint not in ("best", "last"):
        raise ValueError(f"A run leaves the checkpoints 'best' and 'last', got '{checkpoint}'. Give one of them.")
    settings, history = results["settings"], results["history"]
    declare_tasks(settings.get("tasks", []))
    for other in others:
        _check_same_but_seed(settings, other["settings"], neutral)
    entry, source = _find_evaluation(results, checkpoint), source_of(settings["data"])
    chosen = (f"It is the best of {len(history)} evaluations on the split that its scores are of.",)
    runs = {run["settings"]["seed"]: _find_evaluation(run, checkpoint)["scores"] for run in (results, *others)}
    return TrainingRecord(
        dataset_name=source.name,
        dataset_type=source.type,
        dataset_is_on_hub=source.is_on_hub,
        dataset_license=source.license,
        split=f"train, {settings['holdout']:g} of it held out" if settings["holdout"] else "val",
        image_size=settings["image_size"],
        command=command_of(settings, config),
        seed=settings["seed"],
        steps=entry["step"],
        versions=results.get("versions", {}),
        scores=entry["scores"],
        scores_by_seed=dict(sorted(runs.items())) if others else {},
        limits=source.limits + (chosen if checkpoint == "best" and len(history) > 1 else ()),
        preview=f"Pictures of the split, with labels and with predictions after the last step, {history[-1]['step']}."
        if history
        else "",
    )


def _find_evaluation(results: Mapping[str, Any], checkpoint: str) -> Mapping[str, Any]:
    """The entry of the history that a checkpoint belongs to."""
    history = results["history"] or [{"step": 0, "scores": {}}]
    return history[find_best(history) if checkpoint == "best" else -1]


def command_of(settings: Mapping[str, Any], config: Path | None) -> str:
    """The command that repeats a run, from the top of a clone; `None` for a config beside the checkpoint."""
    processes = settings.get("processes", 1)
    launch = COMMAND if processes == 1 else COMMAND.replace("launch", f"launch --num_processes {processes}")
    if config is None:
        return f"{launch} {TRAINING}"
    command = f"{launch} recipes/configs/{config.name}"
    command += "" if settings["data"] == "scenes" else f" --data {Path(settings['data']).name}"
    return command + (f" --seed {settings['seed']}" if settings["seed"] else "")


def _check_same_but_seed(settings: Mapping[str, Any], other: Mapping[str, Any], neutral: Collection[str]) -> None:
    names = (settings.keys() | other.keys()) - {"seed", *neutral}
    differing = sorted(name for name in names if settings.get(name) != other.get(name))
    if differing or settings["seed"] == other["seed"]:
        raise ValueError(
            f"Runs of one mean must differ in their seed and in nothing else; seeds are {settings['seed']} and "
            f"{other['seed']}, and these differ too: {differing}. Leave the other run out."
        )


def write_files(run: Path, results: Mapping[str, Any], folder: Path) -> dict[str, Path]:
    """Writes results and settings, without the paths of this machine, to `folder`.

    Returns:
        These files and the picture of the run, by name.
    """
    settings = shared_settings(results["settings"])
    files = {TRAINING: folder / TRAINING, "results.json": folder / "results.json"}
    files[TRAINING].write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    shared = {**results, "settings": settings | {"processes": results["settings"].get("processes", 1)}}
    files["results.json"].write_text(json.dumps(shared, indent=2) + "\n", encoding="utf-8")
    return files | ({PREVIEW: run / PREVIEW} if (run / PREVIEW).is_file() else {})
