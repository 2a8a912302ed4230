# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""What the folder of a finished run tells the card of its checkpoint."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import yaml
from checkpoints import NEUTRAL, merit
from settings import DEFAULT_CONFIG, Settings

from peft_polyhistor import TrainingRecord
from peft_polyhistor.hub.record import PREVIEW


RESULTS, TRAINING = "results.json", "training.yaml"
COMMAND = "accelerate launch recipes/train_pascal.py"


@dataclass(frozen=True)
class Source:
    """Data of a run: what it is called, and whose it is."""

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


def shared_settings(settings: Mapping) -> dict:
    """Settings of a run that are of use to others: without the places of its machine."""
    known = {field.name for field in fields(Settings)} - {"output_dir", "resume"}
    shared = {name: value for name, value in settings.items() if name in known}
    for name in ("data", "encoder"):
        if Path(shared[name]).expanduser().exists():
            shared[name] = Path(shared[name]).name
    return shared


def record_of(
    results: Mapping, checkpoint: str, others: Sequence[Mapping] = (), config: Path | None = None
) -> TrainingRecord:
    """The record of a checkpoint of a finished run.

    Args:
        results: Its results.json.
        checkpoint: `best` or `last`.
        others: Results of runs with other seeds.
        config: The file of settings that the run was started with; `None` for the one that `write_files` writes.

    Raises:
        ValueError: The checkpoint is neither of the two, or another run differs in more than its seed.
    """
    if checkpoint not in ("best", "last"):
        raise ValueError(f"A run leaves the checkpoints 'best' and 'last', got '{checkpoint}'. Give one of them.")
    settings = results["settings"]
    for other in others:
        _check_same_but_seed(settings, other["settings"])
    entry, source = evaluation_of(results, checkpoint), source_of(settings["data"])
    evaluations, last = len(results["history"]), results["history"][-1]["step"]
    chosen = (f"It is the best of {evaluations} evaluations on the split that its scores are of.",)
    runs = {run["settings"]["seed"]: evaluation_of(run, checkpoint)["scores"] for run in (results, *others)}
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
        limits=source.limits + (chosen if checkpoint == "best" and evaluations > 1 else ()),
        preview=f"Pictures of the split, with labels and with predictions after the last step, {last}.",
    )


def record_without_run(settings: Settings, config: Path) -> TrainingRecord:
    """What a config says of a checkpoint that no recorded run has made yet."""
    source = source_of(settings.data)
    return TrainingRecord(
        dataset_name=source.name,
        dataset_type=source.type,
        dataset_is_on_hub=source.is_on_hub,
        dataset_license=source.license,
        split="val",
        image_size=settings.image_size,
        command=command_of(vars(settings), config),
        seed=settings.seed,
        steps=0,
        versions={},
        scores={},
        limits=source.limits,
    )


def evaluation_of(results: Mapping, checkpoint: str) -> dict:
    """The entry of the run's history that a checkpoint is of: `best` is the first of the highest merit."""
    history = results["history"]
    return max(history, key=lambda entry: merit(entry["scores"])) if checkpoint == "best" else history[-1]


def command_of(settings: Mapping, config: Path | None) -> str:
    """The command that repeats a run, from the top of a clone; `None` for a config beside the checkpoint."""
    processes = settings.get("processes", 1)
    launch = COMMAND if processes == 1 else COMMAND.replace("launch", f"launch --num_processes {processes}")
    if config is None:
        return f"{launch} {TRAINING}"
    command = launch if config == DEFAULT_CONFIG else f"{launch} recipes/configs/{config.name}"
    command += "" if settings["data"] == "scenes" else f" --data {Path(settings['data']).name}"
    return command + (f" --seed {settings['seed']}" if settings["seed"] else "")


def _check_same_but_seed(settings: Mapping, other: Mapping) -> None:
    names = (settings.keys() | other.keys()) - {"seed", *NEUTRAL}
    differing = sorted(name for name in names if settings.get(name) != other.get(name))
    if differing or settings["seed"] == other["seed"]:
        raise ValueError(
            f"Runs of one mean must differ in their seed and in nothing else; seeds are {settings['seed']} and "
            f"{other['seed']}, and these differ too: {differing}. Leave the other run out."
        )


def write_files(run: Path, results: Mapping, folder: Path) -> dict[str, Path]:
    """Writes results and settings without the places of this machine to `folder`; these and the picture, by name."""
    settings = shared_settings(results["settings"])
    (folder / TRAINING).write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    shared = {**results, "settings": settings | {"processes": results["settings"].get("processes", 1)}}
    (folder / RESULTS).write_text(json.dumps(shared, indent=2) + "\n", encoding="utf-8")
    files = {TRAINING: folder / TRAINING, RESULTS: folder / RESULTS}
    return files | ({PREVIEW: run / PREVIEW} if (run / PREVIEW).is_file() else {})
