# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Trains several dense tasks on one frozen encoder, and scores them.

    accelerate launch recipes/train_pascal.py                                   # embedded scenes, minutes on a CPU
    accelerate launch recipes/train_pascal.py recipes/configs/pascal_swin_tiny_polyhistor_lite.yaml --data FOLDER

Settings: a YAML file (the first argument), then arguments, which win. Methods train in turn, each in a folder of its
own under `--output_dir`: checkpoints `best`, `last`, results.json, predictions.png, `state`, where `--resume` goes on.
"""

import sys
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator, DataLoaderConfiguration, PartialState
from accelerate.utils import set_seed
from atomic import replace_file, write_json
from checkpoints import Progress, open_folder, recorded, resume, save, versions
from datasets import Dataset
from gradients import add_gradients
from loaders import group, load_data, make_loader
from locks import lock_folder
from methods import build_model, own_items, tasks_of
from optimization import count_steps, make_optimizer
from settings import Settings, loss_weights, parse_settings
from tables import align, make_note, make_rows
from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import get_scheduler
from watch import Watch

from peft_polyhistor.data import JointTransform, collate
from peft_polyhistor.evaluation import count_trainable, evaluate_tasks, headline
from peft_polyhistor.pictures import draw_grid


@dataclass
class Run:
    """What building leaves for the loop; `steps_per_epoch` and `total` count optimiser steps."""

    method: str
    settings: Settings
    tasks: list[str]
    accelerator: Accelerator
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    transforms: dict[str, JointTransform]
    loaders: dict[str, DataLoader]
    steps_per_epoch: int
    total: int
    progress: Progress = field(default_factory=Progress)
    watch: Watch = field(init=False)


def build(method: str, settings: Settings, accelerator: Accelerator) -> Run:
    set_seed(settings.seed)
    tasks = tasks_of(method, settings)
    data = load_data(settings, tasks, accelerator)
    transforms = {split: JointTransform(settings.image_size, split == "train", settings.seed) for split in data}
    loaders = [make_loader(data[split], transforms[split], settings) for split in data]
    model = build_model(method, settings, loss_weights(settings))
    model, optimizer, *loaders = accelerator.prepare(model, make_optimizer(model, settings), *loaders)
    loaders = dict(zip(data, loaders, strict=True))
    steps = count_steps(loaders["train"], settings)
    scheduler = get_scheduler(settings.schedule, optimizer.optimizer, settings.warmup_steps, steps[1])
    return Run(method, settings, tasks, accelerator, model, optimizer, scheduler, transforms, loaders, *steps)


def train(method: str, settings: Settings) -> dict:
    """Trains one method and returns its results, which results.json in its folder repeats."""
    if method == "single_task":
        return train_single_tasks(settings)
    settings = replace(settings, methods=[method.partition("/")[0]], method_settings=own_items(method, settings))
    folder = Path(settings.output_dir) / method
    accelerator = Accelerator(
        mixed_precision=settings.mixed_precision,
        log_with=None if settings.tracker == "none" else settings.tracker,
        project_dir=folder,
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True),
    )
    with lock_folder(accelerator, folder):
        return open_folder(accelerator, folder, settings) or train_in(folder, method, settings, accelerator)


def train_in(folder: Path, method: str, settings: Settings, accelerator: Accelerator) -> dict:
    """Trains one method from the state in the folder, or from the start."""
    run = build(method, settings, accelerator)
    accelerator.register_for_checkpointing(run.scheduler, run.progress)
    if settings.resume:
        resume(accelerator, folder, run.progress, run.total)
    run.watch = Watch(run.model, run.optimizer, run.tasks, settings, accelerator)  # which keeps what was resumed
    accelerator.init_trackers(method, config={name: str(value) for name, value in asdict(settings).items()})
    run.progress.start_clock()
    run.model.train()
    with tqdm(total=run.total, initial=run.progress.step, desc=method, disable=not accelerator.is_main_process) as bar:
        while run.progress.step < run.total:
            train_epoch(run, folder, bar)
    return finish(run, folder)


def train_single_tasks(settings: Settings) -> dict:
    """Trains a model for each task, with the steps of any other run, and returns them as one: parameters summed."""
    runs = {task: train(f"single_task/{task}", settings) for task in settings.tasks}
    results = {
        "method": "single_task",
        "parameters": {part: sum(run["parameters"][part] for run in runs.values()) for part in ("encoder", "all")},
        "scores": {task: run["scores"][task] for task, run in runs.items()},
        "seconds": round(sum(run["seconds"] for run in runs.values()), 1),
        "settings": asdict(settings),
    }
    if PartialState().is_main_process:
        write_json(Path(settings.output_dir) / "single_task" / "results.json", results)
    return results


def train_epoch(run: Run, folder: Path, bar: tqdm) -> None:
    """The rest of an epoch, which is all of it but after a resume, with the evaluations that fall into it."""
    settings, accelerator, progress, loader = run.settings, run.accelerator, run.progress, run.loaders["train"]
    epoch, done = divmod(progress.step, run.steps_per_epoch)
    run.transforms["train"].set_epoch(epoch)
    loader.set_epoch(epoch)
    if done:  # a loader that skips has workers of its own: whole epochs keep to the one whose workers persist
        loader = accelerator.skip_first_batches(loader, done * settings.gradient_accumulation)
    for batches in group(loader, settings.gradient_accumulation):
        losses = add_gradients(run.model, batches, run.tasks, settings.backward_per_task, accelerator)
        run.watch.step(progress.step + 1, losses)
        run.scheduler.step()
        progress.step += 1
        bar.update()
        if progress.step % settings.log_every == 0:
            log_losses(run)
        if progress.step == run.total or progress.step % (settings.eval_every or run.steps_per_epoch) == 0:
            evaluate(run, folder)
        if progress.step == run.total:
            return


def log_losses(run: Run) -> None:
    """Logs their means over steps and processes since the last entry."""
    entries = {f"loss/{task}": mean for task, mean in run.watch.take_means().items()}
    run.accelerator.log(entries | {"learning_rate": run.scheduler.get_last_lr()[0]}, run.progress.step)


def evaluate(run: Run, folder: Path) -> None:
    run.watch.look()  # a model that diverged replaces no checkpoint
    scores = evaluate_tasks(run.model, run.loaders["val"], run.tasks, run.accelerator)
    run.accelerator.log({f"score/{task}": score for task, score in headline(scores).items()}, run.progress.step)
    run.progress.add(scores)
    save(run.accelerator, run.model, folder, run.progress, run.settings)


def finish(run: Run, folder: Path) -> dict:
    """Writes predictions.png, then results.json, and lets go of the model."""
    results = {
        "method": run.method,
        "parameters": count_trainable(run.accelerator.unwrap_model(run.model)),
        "scores": run.progress.history[-1]["scores"],
        "history": run.progress.history,
        "seconds": round(run.progress.seconds, 1),
        "settings": recorded(run.accelerator, run.settings),
        "versions": versions(),
    }
    if run.accelerator.is_main_process:
        picture = draw_predictions(run.accelerator.unwrap_model(run.model), run.loaders["val"].dataset)
        replace_file(folder / "predictions.png", partial(picture.save, format="png"))
        write_json(folder / "results.json", results)
    for tracker in run.accelerator.trackers:  # `end_training` would end the process group, which the next run needs
        tracker.finish()
    run.accelerator.free_memory()
    return results


@torch.no_grad()
def draw_predictions(model: nn.Module, data: Dataset, pictures: int = 6):
    batch = collate([data[i] for i in range(min(pictures, len(data)))])
    model.eval()
    logits = model(batch["pixel_values"].to(model.device), full_resolution=False).logits
    return draw_grid(batch["pixel_values"], batch["labels"], logits)


def main(settings: Settings) -> list[dict]:
    results = [train(method, settings) for method in settings.methods]
    if PartialState().is_main_process:
        runs = {result["method"]: [result] for result in results}
        print(align(make_rows(runs)), make_note(runs), f"All of it is in {settings.output_dir}.", sep="\n")
    return results


if __name__ == "__main__":
    main(parse_settings(sys.argv[1:], __doc__))
    PartialState().destroy_process_group()
