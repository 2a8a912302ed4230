# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Trains adapters for several dense tasks on one frozen encoder, and evaluates them.

    accelerate launch recipes/train_pascal.py                                   # embedded scenes, minutes on a CPU
    accelerate launch recipes/train_pascal.py recipes/configs/pascal_swin_tiny_polyhistor_lite.yaml --data FOLDER

The first argument names a YAML file of settings, and `--name value` overrides them. Methods train one after another,
each in its own folder under --output_dir, with the checkpoints `best` and `last`, results.json, predictions.png and
`gallery`. `--resume True` continues an interrupted run. To change the training, copy this file; a subclass of
`Settings` in the copy adds settings.
"""

from dataclasses import asdict, replace
from datetime import timedelta
from itertools import islice
from pathlib import Path

import torch
from accelerate import Accelerator, DataLoaderConfiguration, PartialState
from accelerate.utils import InitProcessGroupKwargs, set_seed
from datasets import Dataset
from torch import nn
from tqdm.auto import tqdm
from transformers import get_scheduler

from peft_polyhistor import DenseImageProcessor, MultiTaskDenseModel, declare_tasks, load, load_encoder
from peft_polyhistor.data import JointTransform
from peft_polyhistor.evaluation import collect_statistics, count_trainable
from peft_polyhistor.hub.record import RESULTS
from peft_polyhistor.studies.gallery import draw_examples
from peft_polyhistor.studies.tables import align, make_note, make_rows
from peft_polyhistor.training.arguments import read_layout, read_loss_weights, run_recipe
from peft_polyhistor.training.gradients import add_gradients
from peft_polyhistor.training.guard import StepGuard
from peft_polyhistor.training.keys import keys_of_inputs
from peft_polyhistor.training.loaders import check_labels_exist, load_splits, make_loader, rest_of_epoch, sample_labels
from peft_polyhistor.training.methods import MethodChoice, adapt, parameter_groups, parse_methods, shares_pass
from peft_polyhistor.training.run_folder import RunFolder
from peft_polyhistor.training.settings import NEUTRAL, OPTIMIZERS, Settings
from peft_polyhistor.training.single_tasks import join_tasks


DEFAULT_CONFIG = Path(__file__).parent / "configs" / "scenes_swin_mini_polyhistor_lite.yaml"


def train(method: str | dict, settings: Settings) -> dict:
    """Trains one method of `settings.methods`, and returns the results that results.json holds."""
    settings, [choice] = replace(settings, methods=[method]), parse_methods([method])
    folder, tasks = Path(settings.output_dir) / choice.label, declare_tasks(settings.tasks)
    if choice.name != "single_task":
        return train_in(folder, choice, settings, tasks)
    if not settings.resume:
        (folder / RESULTS).unlink(missing_ok=True)  # of all tasks, written when the last one is trained
    runs = {task: train_in(folder / task, choice, settings, [task]) for task in tasks}
    return join_tasks(folder, runs)


def train_in(folder: Path, choice: MethodChoice, settings: Settings, tasks: list[str]) -> dict:
    """Builds one model, trains it, and saves it; a run that resumes starts from its last checkpoint."""
    accelerator = make_accelerator(folder, settings)
    run = RunFolder(folder, asdict(settings), accelerator, NEUTRAL, asdict(Settings()))
    with run.locked():
        torch.set_num_threads(settings.threads or torch.get_num_threads())
        set_seed(settings.seed)
        data, encoder = load_data(settings, accelerator), load_encoder(settings.encoder)
        check_labels_exist(data["train"], tasks)
        trained = load(settings.decoders) if settings.decoders else None
        steps_per_epoch, total = settings.count_steps(len(data["train"]), accelerator.num_processes)
        if results := run.open(settings.resume, keys_of_inputs(data, encoder, trained)):
            return results
        data = {split: rows.select_columns(["image_id", "image", *tasks]) for split, rows in data.items()}
        model = build_model(encoder, trained, data["train"], choice, settings, tasks)
        results = fit(model, data, run, settings, tasks, steps_per_epoch, total)
    accelerator.free_memory()
    return results


def make_accelerator(folder: Path, settings: Settings) -> Accelerator:
    return Accelerator(
        mixed_precision=settings.mixed_precision,
        log_with=None if settings.tracker == "none" else settings.tracker,
        project_dir=folder,
        # The order of an epoch is that of `data_seed` + epoch, so seeds must be far apart.
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=settings.seed * 2**16),
        # The other processes wait while one process prepares the data.
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=6))],
    )


def load_data(settings: Settings, accelerator: Accelerator) -> dict[str, Dataset]:
    """Loads the splits `train` and `val` with all tasks, so that single-task runs share what is prepared."""
    return load_splits(
        settings.data,
        declare_tasks(settings.tasks),
        accelerator,
        holdout=settings.holdout,
        left_out=settings.left_out,
        workers=settings.preparation_workers,
        layout=read_layout(settings.layout),
    )


def build_model(
    encoder: nn.Module, trained: nn.Module | None, rows: Dataset, choice: MethodChoice, settings: Settings, tasks: list
) -> nn.Module:
    """Makes the model to train: the encoder, a decoder per task, and the adapters of the method."""
    model = MultiTaskDenseModel.from_encoder(
        encoder,
        tasks,
        decoder_width=settings.decoder_width,
        decoder_dropout=settings.decoder_dropout,
        shared_norms=shares_pass(choice.name),
        loss_weights=read_loss_weights(settings.loss_weights, declare_tasks(settings.tasks)),
        image_size=settings.image_size,
    )
    if settings.bias_images:
        model.fit_biases(sample_labels(rows, settings.bias_images))
    if trained is not None:
        model.copy_decoders(trained)
    return adapt(model, choice, tasks, settings.gradient_checkpointing)


def make_loaders(model: nn.Module, data: dict[str, Dataset], settings: Settings) -> tuple:
    """Makes the loaders of both splits, and returns them after the transform of the training images."""
    processor = DenseImageProcessor.from_model(model)  # images are normalised as the encoder expects them
    augment = JointTransform(processor, True, settings.seed, settings.augmentation, settings.flip)
    resize = JointTransform(processor, train=False)
    train_loader = make_loader(data["train"], augment, settings.batch_size, settings.workers, settings.seed)
    val_loader = make_loader(data["val"], resize, settings.batch_size, settings.workers, settings.seed)
    return augment, train_loader, val_loader


def fit(
    model: nn.Module, data: dict, run: RunFolder, settings: Settings, tasks: list, steps_per_epoch: int, total: int
) -> dict:
    """Trains up to the optimiser step `total`, saves the model after each evaluation, and writes the results."""
    accelerator, label = run.accelerator, run.folder.relative_to(settings.output_dir).as_posix()
    augment, train_loader, val_loader = make_loaders(model, data, settings)
    groups = parameter_groups(model, settings.learning_rate, settings.decoder_learning_rate)
    optimizer = OPTIMIZERS[settings.optimizer](groups, weight_decay=settings.weight_decay)
    model, optimizer, train_loader, val_loader = accelerator.prepare(model, optimizer, train_loader, val_loader)
    set_seed(settings.seed + accelerator.process_index)  # each process draws its own dropout masks
    scheduler = get_scheduler(settings.schedule, optimizer.optimizer, settings.warmup_steps, total)
    progress = run.resume(scheduler)
    guard = StepGuard(model, optimizer, tasks, accelerator, settings.max_grad_norm, settings.on_bad_step)
    accelerator.init_trackers(label, config={name: str(value) for name, value in asdict(settings).items()})

    bar = tqdm(total=total, initial=progress.step, desc=label, disable=not accelerator.is_main_process)
    model.train()
    while progress.step < total:
        epoch, done = divmod(progress.step, steps_per_epoch)
        augment.set_epoch(epoch)
        steps = rest_of_epoch(train_loader, epoch, done, settings.gradient_accumulation, accelerator)
        for batches in islice(steps, total - progress.step):
            losses = add_gradients(model, batches, tasks, accelerator, settings.backward_per_task)
            progress.step += 1
            guard.step(progress.step, losses)
            scheduler.step()
            bar.update()
            is_scored = progress.step == total or progress.step % (settings.eval_every or steps_per_epoch) == 0
            if is_scored or progress.step % settings.log_every == 0:
                progress.add_losses(guard.take_means(), scheduler.get_last_lr()[0], accelerator)
            if is_scored:  # after `take_means`, which raises an error if a loss is not finite
                statistics = collect_statistics(model, val_loader, tasks, accelerator)
                progress.add_scores(statistics, data["val"]["image_id"], accelerator)
                run.save(model, progress)

    bar.close()
    if accelerator.is_main_process:
        draw_examples(accelerator.unwrap_model(model), val_loader.dataset, progress.details, run.folder)
    return run.finish(label, count_trainable(accelerator.unwrap_model(model)), progress)


def main(settings: Settings) -> list[dict]:
    results = [train(method, settings) for method in settings.methods]
    runs = {result["method"]: [result] for result in results}
    PartialState().print(align(make_rows(runs)), make_note(runs), f"Results are in {settings.output_dir}.", sep="\n")
    return results


if __name__ == "__main__":
    run_recipe(main, __doc__, DEFAULT_CONFIG, Settings)
