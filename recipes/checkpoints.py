# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""What a run leaves in its folder, and how it goes on from there.

last, best      weights at the last and at the best evaluation
state           all that a run needs to go on, as of the last evaluation, and the settings it was made with
results.json    written when the run is finished, and not before
"""

import json
import math
import os
import platform
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from pickle import UnpicklingError

from accelerate import Accelerator
from atomic import beside, read_json, recover, replace_folder
from peft import PeftModel
from safetensors import SafetensorError
from settings import Settings
from torch import nn

from peft_polyhistor import TASKS, __version__
from peft_polyhistor.evaluation import headline
from peft_polyhistor.methods.per_task import PerTaskEncoder, save_per_task


# A run may go on with other values of these: they change what is around it, not what it learns.
NEUTRAL = (
    *("methods", "workers", "preparation_workers", "log_every", "resume", "tracker", "output_dir"),
    "on_bad_step",  # a state is from before the first bad step, or from after those that were skipped
)

READ_ERRORS = (OSError, RuntimeError, EOFError, UnpicklingError, SafetensorError)  # of files cut short


@dataclass
class Progress:
    """What a run has to remember beside weights, optimiser and schedule."""

    step: int = 0
    best: tuple[int, float] | None = None
    seconds: float = 0.0
    history: list[dict] = field(default_factory=list)
    losses: list[dict] = field(default_factory=list)
    details: dict = field(default_factory=dict)  # of the last evaluation, see details.py

    def start_clock(self) -> None:
        self._started = time.monotonic() - self.seconds

    def add(self, scores: Mapping[str, Mapping[str, float]], details: dict) -> None:
        self.seconds, self.details = time.monotonic() - self._started, details
        self.history.append({"step": self.step, "scores": scores})

    def state_dict(self) -> dict:
        return asdict(self)

    def load_state_dict(self, state: dict) -> None:
        self.__dict__.update(state)


def merit(scores: Mapping[str, Mapping[str, float]]) -> tuple[int, float]:
    """Ranks evaluations: how many headline scores are finite, then their sum, minus where lower is better.

    A score is NaN where the model diverged, or where no picture of the split has a label for it. Counting first keeps
    a diverged model from winning because an error is missing from its sum.
    """
    signed = [score if TASKS[task].higher_is_better else -score for task, score in headline(scores).items()]
    finite = [score for score in signed if math.isfinite(score)]
    return len(finite), sum(finite)


def save(accelerator: Accelerator, model: nn.Module, folder: Path, progress: Progress, settings: Settings) -> None:
    """Writes `last`, `best` where this is the first evaluation or the best so far, and `state`."""
    if accelerator.is_main_process:
        now = merit(progress.history[-1]["scores"])
        is_best = progress.best is None or now > progress.best
        if is_best:
            progress.best = now  # of the main process, which is the one that saves it
        for name in ["last", "best"] if is_best else ["last"]:
            replace_folder(folder / name, partial(_save_weights, accelerator.unwrap_model(model)))
    accelerator.wait_for_everyone()
    replace_folder(folder / "state", partial(_save_state, accelerator, settings), accelerator)


def _save_weights(model: nn.Module, folder: Path) -> None:
    """Adapters and decoders of an adapted model, else the whole model."""
    if isinstance(model, PeftModel):
        model.save_pretrained(folder, save_embedding_layers=False)  # there is no vocabulary to look up on the Hub
    elif isinstance(model.encoder, PerTaskEncoder):
        save_per_task(model, folder)
    else:
        model.save_pretrained(folder)


def _save_state(accelerator: Accelerator, settings: Settings, folder: Path) -> None:
    accelerator.save_state(folder)
    if accelerator.is_main_process:
        (folder / "settings.json").write_text(json.dumps(recorded(accelerator, settings), indent=2), encoding="utf-8")


def recorded(accelerator: Accelerator, settings: Settings) -> dict:
    """What a run was made with; a batch is that of a process."""
    return asdict(settings) | {"processes": accelerator.num_processes}


def versions() -> dict[str, str]:
    """Of what a run computes with."""
    packages = ("torch", "transformers", "peft", "accelerate", "datasets")
    own = {"python": platform.python_version(), "peft-polyhistor": __version__}
    return own | {package: version(package) for package in packages}


def open_folder(accelerator: Accelerator, folder: Path, settings: Settings) -> dict | None:
    """Makes the folder ready for a run, and returns the results if the run was finished before.

    To resume, what an interruption left between two names is put back. A run that starts anew drops the state and
    results of the one before; `best` and `last` stay until its first evaluation.

    Raises:
        ValueError: The run to resume was made with other settings or another number of processes.
    """
    state, results = folder / "state", folder / "results.json"
    if accelerator.is_main_process:
        for path in (folder / "last", folder / "best", state):
            recover(path)
        if not settings.resume:
            results.unlink(missing_ok=True)
        if state.is_dir() and not (settings.resume and (state / "settings.json").is_file()):
            os.replace(state, beside(state, "dropped"))  # at once: half a state would look like one
        shutil.rmtree(beside(state, "dropped"), ignore_errors=True)
    accelerator.wait_for_everyone()
    if results.is_file():
        _check_same(results, recorded(accelerator, settings))
        accelerator.print(f"{folder}: finished before, nothing to train.")
        return read_json(results)
    if state.is_dir():
        _check_same(state / "settings.json", recorded(accelerator, settings))
    return None


def _check_same(file: Path, given: dict) -> None:
    recorded = read_json(file)
    recorded = recorded.get("settings", recorded)
    differences = [
        f"{name} was {recorded.get(name)!r} and is {value!r}"
        for name, value in given.items()
        if name not in NEUTRAL and recorded.get(name) != value
    ]
    if differences:
        raise ValueError(
            f"{file} was made with other settings: {'; '.join(differences)}. Give those it was made with, or another "
            "--output_dir."
        )


def resume(accelerator: Accelerator, folder: Path, progress: Progress, total: int) -> None:
    """Loads the state in the folder, if there is one, and says at which step the run goes on.

    Raises:
        ValueError: The state is damaged.
    """
    state = folder / "state"
    if state.is_dir():
        try:
            accelerator.load_state(state)
        except READ_ERRORS as error:
            raise ValueError(f"{state} is damaged ({error}). Delete it to start the run anew.") from error
        accelerator.print(f"{folder}: resumed at step {progress.step} of {total}.")
    else:
        accelerator.print(f"{folder}: no state to resume from, so the run starts anew.")
