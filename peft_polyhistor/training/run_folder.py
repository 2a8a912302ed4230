# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The folder of a run, from which an interrupted run resumes.

- `checkpoints/step-N`: weights after step N. The newest checkpoint has a folder `state`, from which the run resumes.
  A checkpoint is written as `step-N.tmp` and then renamed, so that `step-N` is always complete.
- `last`, `best`: links to checkpoints; copies of their weights if the system allows no links.
- `results.json`: written when the run is finished.
- `lock`, `process.txt`: lock and process of the run in the folder.
"""

import json
import platform
import shutil
import time
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from peft import PeftModel
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from ..evaluation import find_best
from ..hub.record import PREVIEW, RESULTS, differing_inputs
from ..methods.per_task import save_per_task
from ..methods.per_task_encoder import PerTaskEncoder
from ..models.image_processor import DenseImageProcessor
from ..version import __version__
from .arguments import list_changes
from .files import beside, delete, discard, explain_failure, link, locked, read_json, replacing, write_json
from .progress import Progress


_PROGRESS = "state/progress.json"
GALLERY = "gallery"  # folder of example images


class RunFolder:
    """The folder of a run. All processes call the same methods, and the main process writes.

    Args:
        folder: Path of the folder.
        settings: Settings of the run. A resumed run must have the same settings.
        accelerator: The accelerator of this process.
        neutral: Names of settings that a resumed run may change, because they do not affect the result.
        defaults: Settings of a run that did not record them, because its version did not have them.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        accelerator: Accelerator,
        neutral: Collection[str] = (),
        defaults: Mapping[str, Any] | None = None,
    ):
        self.folder, self.accelerator, self.neutral, self.defaults = folder, accelerator, neutral, defaults or {}
        self.settings = {**settings, "processes": accelerator.num_processes}
        self._inputs: dict[str, str] = {}
        self._checkpoints = folder / "checkpoints"
        self._starts_anew = False

    def locked(self) -> AbstractContextManager[None]:
        """Makes the folder and locks it against other runs, see `files.locked`."""
        return locked(self.folder) if self.accelerator.is_main_process else nullcontext()

    def open(self, resume: bool, inputs: Mapping[str, str] | None = None) -> dict[str, Any] | None:
        """Prepares the folder for a run, and returns the results if the run to resume is finished.

        A new run deletes the results of an earlier run, and at its first evaluation the earlier checkpoints. Until
        then the earlier run can be resumed.

        Args:
            resume: Continue an earlier run in the folder, if there is one.
            inputs: Keys of what the run starts from, from `keys_of_inputs`. A resumed run must have the same.

        Raises:
            ValueError: The run to resume had other settings, other inputs or another number of processes.
        """
        self._inputs = dict(inputs or {})
        results = self.folder / RESULTS
        if self.accelerator.is_main_process:
            for leftover in self._checkpoints.glob("*.tmp"):
                delete(leftover)
            if not resume and (results.is_file() or self._find_last()):
                when = "Its first evaluation replaces the earlier run, which --resume True continues until then."
                print(f"{self.folder}: the run starts at step 0. {when}")
                results.unlink(missing_ok=True)
        self.accelerator.wait_for_everyone()
        self._starts_anew = not resume
        if results.is_file():
            self._check_same(results)
            self.accelerator.print(f"{self.folder}: the run is finished, nothing to train.")
            return read_json(results)
        if last := self._find_last():
            self._check_same(last / _PROGRESS)
        elif resume:
            self.accelerator.print(f"{self.folder}: no checkpoint to resume from, so the run starts at step 0.")
        return None

    def resume(self, scheduler: LRScheduler) -> Progress:
        """Loads the last checkpoint, if there is one, into the objects that `accelerator` prepared; starts the clock.

        Args:
            scheduler: Schedule of the learning rate, which is loaded too.

        Raises:
            ValueError: The checkpoint is damaged.
        """
        self.accelerator.register_for_checkpointing(scheduler)
        self._started = time.monotonic()
        last = self._find_last()
        if last is None:
            return Progress()
        try:
            self.accelerator.load_state(str(last / "state"))
            progress = Progress(**read_json(last / _PROGRESS)["progress"])
        except Exception as error:  # a truncated file can raise many kinds of errors
            raise ValueError(f"{last} is damaged ({error}). Delete it to start the run again.") from error
        if self.accelerator.is_main_process:
            self._tidy(last, progress)
        self._started -= progress.seconds
        self.accelerator.print(f"{self.folder}: resumed at step {progress.step}.")
        return progress

    def save(self, model: nn.Module, progress: Progress) -> None:
        """Writes a checkpoint after an evaluation, and links it as `last`, and as `best` if its scores are the best.

        Raises:
            OSError: The checkpoint cannot be written. Earlier checkpoints are complete.
        """
        final, accelerator = self._checkpoints / f"step-{progress.step}", self.accelerator
        progress.seconds = time.monotonic() - self._started
        with explain_failure(final):
            with replacing(final) if accelerator.is_main_process else nullcontext(beside(final)) as fresh:
                if accelerator.is_main_process:
                    (fresh / "state").mkdir(parents=True)
                    _save_weights(accelerator.unwrap_model(model), fresh)
                    record = {"settings": self.settings, "inputs": self._inputs, "progress": asdict(progress)}
                    (fresh / _PROGRESS).write_text(json.dumps(record), encoding="utf-8")
                accelerator.wait_for_everyone()
                accelerator.save_state(str(fresh / "state"))
                accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                self._tidy(final, progress)
        accelerator.wait_for_everyone()

    def finish(self, method: str, parameters: Mapping[str, int], progress: Progress) -> dict[str, Any]:
        """Writes results.json, closes the trackers, and returns the results."""
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
            "inputs": self._inputs,
            "versions": versions | {package: version(package) for package in packages},
        }
        if self.accelerator.is_main_process:
            write_json(self.folder / RESULTS, results)
        for tracker in self.accelerator.trackers:  # `end_training` would end the process group too
            tracker.finish()
        return results

    def _find_last(self) -> Path | None:
        """Returns the newest checkpoint with a `state`; `None` in a new run."""
        if self._starts_anew:
            return None
        # There are two where a run was killed before `_tidy`; that of an earlier run may have the higher number.
        found = list(self._checkpoints.glob(f"step-*[0-9]/{_PROGRESS}"))
        return max(found, key=lambda file: file.stat().st_mtime_ns).parents[1] if found else None

    def _tidy(self, last: Path, progress: Progress) -> None:
        """Updates the links, and deletes other checkpoints, the state of `best`, and images of an earlier run."""
        best = self._checkpoints / f"step-{progress.history[find_best(progress.history)]['step']}"
        for name, target in (("last", last), ("best", best)):
            link(self.folder / name, target)
        for path in self._checkpoints.glob("step-*[0-9]"):
            if path not in (best, last):
                discard(path)
            elif path != last:
                shutil.rmtree(path / "state", ignore_errors=True)
        (self.folder / PREVIEW).unlink(missing_ok=True)
        shutil.rmtree(self.folder / GALLERY, ignore_errors=True)

    def _check_same(self, file: Path) -> None:
        record = read_json(file)
        kept = {name: value for name, value in self.settings.items() if name not in self.neutral}
        if changes := list_changes({**self.defaults, **record["settings"]}, kept):
            how = "Give the earlier settings, or another --output_dir."
            raise ValueError(f"{file} was made with other settings: {'; '.join(changes)}. {how}")
        if changed := differing_inputs(record.get("inputs", {}), self._inputs):
            how = "Restore what was there, or give another --output_dir."
            raise ValueError(f"{file} was made before {' and '.join(changed)} changed. {how}")


def _save_weights(model: Any, folder: Path) -> None:
    """Saves adapters and decoders of an adapted model, or all of another model."""
    if isinstance(model, PeftModel):
        model.save_pretrained(str(folder), save_embedding_layers=False)  # else PEFT asks the Hub
    elif isinstance(model.encoder, PerTaskEncoder):
        save_per_task(model, folder)
    else:
        model.save_pretrained(folder)
    for card in folder.rglob("README.md"):  # PEFT's, of blanks to fill in; `publish` writes one from the record
        card.unlink()
    DenseImageProcessor.save_for(model, folder)
