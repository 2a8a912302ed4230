# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The folder of a run, in which a run that was interrupted goes on.

- `checkpoints/step-N`: weights after step N; the newest has a folder `state` with all that a run needs to go on. A
  checkpoint is written as `step-N.tmp` and renamed, so one that has its name is whole.
- `last`, `best`: links to checkpoints; copies of their weights where the system allows no links.
- `results.json`: written when the run is finished, and not before.
- `lock`, `process.txt`: of the run that is in the folder.
"""

import json
import os
import platform
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from accelerate import Accelerator, PartialState
from filelock import FileLock, Timeout
from peft import PeftModel
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from ..evaluation import find_best
from ..methods.per_task import PerTaskEncoder, save_per_task
from ..models.image_processor import DenseImageProcessor
from ..version import __version__
from .files import beside, discard, explain_failure, flush, link, read_json, write_json


RESULTS, _PROGRESS = "results.json", "state/progress.json"
_PATIENCE = 10  # seconds; the workers of a killed run, which may hold its lock, outlive it by 5


@dataclass
class Progress:
    """What a run remembers beside weights, optimiser and schedule."""

    step: int = 0
    seconds: float = 0.0  # of training, up to the last checkpoint
    history: list[dict[str, Any]] = field(default_factory=list)  # scores and step of each evaluation
    losses: list[dict[str, Any]] = field(default_factory=list)  # mean losses and step of each entry of the log
    details: dict[str, Any] = field(default_factory=dict)  # of the last evaluation


class RunFolder:
    """The folder of a run. All processes call the same methods, and the main one writes.

    Args:
        folder: Its path.
        settings: Settings of the run; one that goes on must have the same.
        accelerator: The accelerator of this process.
        neutral: Names of settings that may differ when a run goes on, as they do not change what it learns.
    """

    def __init__(
        self, folder: Path, settings: Mapping[str, Any], accelerator: Accelerator, neutral: Collection[str] = ()
    ):
        self.folder, self.accelerator, self.neutral = folder, accelerator, neutral
        self.settings = {**settings, "processes": accelerator.num_processes}
        self._checkpoints = folder / "checkpoints"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Makes the folder and keeps other runs out of it; a run that is killed leaves no lock behind.

        Raises:
            BlockingIOError: Another run is in the folder.
            OSError: The folder cannot be written to.
        """
        if not self.accelerator.is_main_process:
            yield
            return
        lock, owner = FileLock(self.folder / "lock"), self.folder / "process.txt"
        with explain_failure(self.folder / "lock"):
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=_PATIENCE)
            except Timeout as error:
                other = owner.read_text(encoding="utf-8") if owner.is_file() else "which has just started"
                how = "Wait for its end, or give another --output_dir."
                raise BlockingIOError(f"{self.folder} is in use by another run, {other}. {how}") from error
        try:
            with explain_failure(owner):
                owner.write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")
            yield
        finally:
            lock.release()

    def open(self, resume: bool) -> dict[str, Any] | None:
        """Returns the results if the run to resume was finished before.

        A run that starts anew deletes the results of the one before, and at its first evaluation the checkpoints.

        Raises:
            ValueError: The run to resume was made with other settings or another number of processes.
        """
        results = self.folder / RESULTS
        if self.accelerator.is_main_process:
            for leftover in self._checkpoints.glob("*.tmp"):
                shutil.rmtree(leftover)
            for file in [] if resume else [results, *self._checkpoints.glob(f"*/{_PROGRESS}")]:
                file.unlink(missing_ok=True)
        self.accelerator.wait_for_everyone()
        if results.is_file():
            self._check_same(results)
            self.accelerator.print(f"{self.folder}: finished before, nothing to train.")
            return read_json(results)
        if last := self._find_last():
            self._check_same(last / _PROGRESS)
        elif resume:
            self.accelerator.print(f"{self.folder}: no checkpoint to resume from, so the run starts anew.")
        return None

    def resume(self, scheduler: LRScheduler) -> Progress:
        """Loads the last checkpoint, if there is one, and says at which step the run goes on.

        Args:
            scheduler: Schedule of the learning rate. Model, optimiser and loaders are those `accelerator` prepared.

        Raises:
            ValueError: The checkpoint is damaged.
        """
        self.accelerator.register_for_checkpointing(scheduler)
        last = self._find_last()
        if last is None:
            return Progress()
        try:
            self.accelerator.load_state(str(last / "state"))
            progress = Progress(**read_json(last / _PROGRESS)["progress"])
        except Exception as error:  # a file that was cut short raises one of many
            raise ValueError(f"{last} is damaged ({error}). Delete it to start the run anew.") from error
        if self.accelerator.is_main_process:
            self._tidy(last, progress)
        self.accelerator.print(f"{self.folder}: resumed at step {progress.step}.")
        return progress

    def save(self, model: nn.Module, progress: Progress) -> None:
        """Writes a checkpoint after an evaluation, the new `last`, and `best` if its scores are the best so far.

        Raises:
            OSError: It cannot be written; the checkpoints before are whole.
        """
        final = self._checkpoints / f"step-{progress.step}"
        fresh, accelerator = beside(final), self.accelerator
        with explain_failure(final, fresh):
            if accelerator.is_main_process:
                (fresh / "state").mkdir(parents=True)
                _save_weights(accelerator.unwrap_model(model), fresh)
                record = {"settings": self.settings, "progress": asdict(progress)}
                (fresh / _PROGRESS).write_text(json.dumps(record), encoding="utf-8")
            accelerator.wait_for_everyone()
            accelerator.save_state(str(fresh / "state"))
            for file in fresh.rglob("*.*"):
                flush(file)
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                if final.exists():  # of the run before, which this one replaces
                    discard(final)
                os.replace(fresh, final)
                self._tidy(final, progress)
        accelerator.wait_for_everyone()

    def finish(self, method: str, parameters: Mapping[str, int], progress: Progress) -> dict[str, Any]:
        """Writes the results of the run, results.json, closes the trackers, and returns the results."""
        packages = ("torch", "transformers", "peft", "accelerate", "datasets")
        versions = {"python": platform.python_version(), "peft-polyhistor": __version__}
        results = {
            "method": method,
            "parameters": parameters,
            "scores": progress.history[-1]["scores"],
            "history": progress.history,
            "losses": progress.losses,
            **progress.details,
            "seconds": round(progress.seconds, 1),
            "settings": self.settings,
            "versions": versions | {package: version(package) for package in packages},
        }
        if self.accelerator.is_main_process:
            write_json(self.folder / RESULTS, results)
        for tracker in self.accelerator.trackers:  # `end_training` would end the process group, which others need
            tracker.finish()
        return results

    def _find_last(self) -> Path | None:
        """The newest checkpoint that a run can go on from."""
        found = [file.parents[1] for file in self._checkpoints.glob(f"step-*[0-9]/{_PROGRESS}")]
        return max(found, key=lambda path: int(path.name[5:]), default=None)

    def _tidy(self, last: Path, progress: Progress) -> None:
        """Moves the links, and deletes what neither `last` nor `best` needs."""
        best = self._checkpoints / f"step-{progress.history[find_best(progress.history)]['step']}"
        for name, target in (("last", last), ("best", best)):
            link(self.folder / name, target)
        for path in self._checkpoints.iterdir():
            if path not in (best, last):
                discard(path)
            elif path != last:
                shutil.rmtree(path / "state", ignore_errors=True)

    def _check_same(self, file: Path) -> None:
        recorded = read_json(file)["settings"]
        differences = [
            f"{name} was {recorded.get(name)!r} and is {value!r}"
            for name, value in self.settings.items()
            if name not in self.neutral and recorded.get(name) != value
        ]
        if differences:
            how = "Give those it was made with, or another --output_dir."
            raise ValueError(f"{file} was made with other settings: {'; '.join(differences)}. {how}")


def join_tasks(folder: Path, runs: Mapping[str, Mapping[str, Any]], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Joins the results of runs on one task each as those of one run; parameters and seconds are summed.

    Args:
        folder: Folder of the joint results.json. Its name is that of the method.
        runs: Results by task.
        settings: Settings of the runs.
    """

    def join_steps(name: str, content: str) -> list[dict[str, Any]]:
        by_step: dict[int, dict[str, Any]] = {}
        for entry in (entry for run in runs.values() for entry in run[name]):
            by_step.setdefault(entry["step"], {}).update(entry[content])
        return [{"step": step, content: content_of} for step, content_of in sorted(by_step.items())]

    results = {
        "method": folder.name,
        "parameters": {part: sum(run["parameters"][part] for run in runs.values()) for part in ("encoder", "all")},
        "scores": {task: run["scores"][task] for task, run in runs.items()},
        "history": join_steps("history", "scores"),
        "losses": join_steps("losses", "losses"),
        "classes": {task: run["classes"][task] for task, run in runs.items() if task in run["classes"]},
        "pictures": {task: run["pictures"][task] for task, run in runs.items()},
        "seconds": round(sum(run["seconds"] for run in runs.values()), 1),
        "settings": settings,
    }
    if PartialState().is_main_process:
        write_json(folder / RESULTS, results)
    return results


def _save_weights(model: Any, folder: Path) -> None:
    """Saves adapters and decoders of an adapted model, else the whole model."""
    if isinstance(model, PeftModel):
        model.save_pretrained(str(folder), save_embedding_layers=False)  # there is no vocabulary to look up on the Hub
    elif isinstance(model.encoder, PerTaskEncoder):
        save_per_task(model, folder)
    else:
        model.save_pretrained(folder)
    DenseImageProcessor.save_for(model, folder)
