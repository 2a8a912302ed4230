# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Trains several dense tasks on one frozen encoder, and scores them.

    accelerate launch recipes/train_pascal.py                                   # embedded scenes, minutes on a CPU
    accelerate launch recipes/train_pascal.py recipes/configs/pascal_swin_tiny_polyhistor_lite.yaml --data FOLDER

Settings: a YAML file (the first argument), then arguments, which win. Methods train in turn, each in a folder of its
own under `--output_dir`: checkpoints `best`, `last`, results.json, predictions.png, `gallery`, and `state`, where
`--resume` goes on. report.py makes a page of it.
"""

import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from accelerate import Accelerator, DataLoaderConfiguration, PartialState
from accelerate.utils import set_seed
from atomic import write_json
from checkpoints import Progress, open_folder, recorded, resume, save, versions
from details import find_details, join_runs
from gradients import add_gradients
from loaders import group, load_data, make_loader
from locks import lock_folder
from methods import build_model, own_items, tasks_of
from optimization import count_steps, make_optimizer
from settings import Settings, loss_weights, parse_settings
from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import get_scheduler
from watch import Watch

from peft_polyhistor.data import JointTransform
from peft_polyhistor.evaluation import collect_statistics, count_trainable, headline, score_tasks
from peft_polyhistor.studies.gallery import draw_pictures
from peft_polyhistor.studies.tables import align, make_note, make_rows


@dataclass
class Run:
    """What building leaves for the loop; `steps_per_epoch` and `total` count optimiser steps."""

    method: str
    settings: Settings
    tasks: list[str]
    accelerator: Accelerator
    model: nn.Module
    parameters: dict[str, int]
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
    parameters = count_trainable(model)
    model, optimizer, *loaders = accelerator.prepare(model, make_optimizer(model, settings), *loaders)
    loaders = dict(zip(data, loaders, strict=True))
    if accelerator.process_index:  # each process draws masks of dropout of its own
        set_seed(settings.seed + accelerator.process_index)
    steps = count_steps(loaders["train"], settings)
    scheduler = get_scheduler(settings.schedule, optimizer.optimizer, settings.warmup_steps, steps[1])
    return Run(
        method, settings, tasks, accelerator, model, parameters, optimizer, scheduler, transforms, loaders, *steps
    )


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
    results = {"method": "single_task", **join_runs(runs), "settings": asdict(settings)}
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
        is_scored = progress.step == run.total or progress.step % (settings.eval_every or run.steps_per_epoch) == 0
        if is_scored or progress.step % settings.log_every == 0:
            log_losses(run)  # before an evaluation too: what diverged is not saved, and what is saved has its losses
        if is_scored:
            evaluate(run, folder)
        if progress.step == run.total:
            return


def log_losses(run: Run) -> None:
    """Records and logs their means over steps and processes since the last entry, where a step was taken."""
    means = run.watch.take_means()
    if means:
        run.progress.losses.append({"step": run.progress.step, "losses": means})
    entries = {f"loss/{task}": mean for task, mean in means.items()}
    run.accelerator.log(entries | {"learning_rate": run.scheduler.get_last_lr()[0]}, run.progress.step)


def evaluate(run: Run, folder: Path) -> None:
    statistics = collect_statistics(run.model, run.loaders["val"], run.tasks, run.accelerator)
    scores = score_tasks(statistics)
    run.accelerator.log({f"score/{task}": score for task, score in headline(scores).items()}, run.progress.step)
    run.progress.add(scores, find_details(statistics, run.loaders["val"].dataset))
    save(run.accelerator, run.model, folder, run.progress, run.settings)


def finish(run: Run, folder: Path) -> dict:
    """Writes predictions.png and the gallery, then results.json, and lets go of the model."""
    results = {
        "method": run.method,
        "parameters": run.parameters,
        "scores": run.progress.history[-1]["scores"],
        "history": run.progress.history,
        "losses": run.progress.losses,
        **run.progress.details,
        "seconds": round(run.progress.seconds, 1),
        "settings": recorded(run.accelerator, run.settings),
        "versions": versions(),
    }
    if run.accelerator.is_main_process:
        model, data = run.accelerator.unwrap_model(run.model), run.loaders["val"].dataset
        draw_pictures(model, data, run.progress.details, folder)
        write_json(folder / "results.json", results)
    for tracker in run.accelerator.trackers:  # `end_training` would end the process group, which the next run needs
        tracker.finish()
    run.accelerator.free_memory()
    return results


def main(settings: Settings) -> list[dict]:
    results = [train(method, settings) for method in settings.methods]
    if PartialState().is_main_process:
        runs = {result["method"]: [result] for result in results}
        print(align(make_rows(runs)), make_note(runs), f"All of it is in {settings.output_dir}.", sep="\n")
    return results


if __name__ == "__main__":
    main(parse_settings(sys.argv[1:], __doc__))
    PartialState().destroy_process_group()
