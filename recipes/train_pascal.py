# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Trains adapters for several dense tasks on one frozen encoder, and evaluates them.

    accelerate launch recipes/train_pascal.py                                   # embedded scenes, minutes on a CPU
    accelerate launch recipes/train_pascal.py recipes/configs/pascal_swin_tiny_polyhistor_lite.yaml --data FOLDER

The first argument names a YAML file of settings, and `--name value` overrides them. Methods train one after another,
each in its own folder under --output_dir, with the checkpoints `best` and `last`, results.json, predictions.png and
`gallery`. `--resume True` continues an interrupted run. To change the training, copy this file.
"""

import math
import os
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from itertools import islice
from pathlib import Path

import torch
from accelerate import Accelerator, DataLoaderConfiguration, PartialState
from accelerate.tracking import get_available_trackers
from accelerate.utils import InitProcessGroupKwargs, set_seed
from tqdm.auto import tqdm
from transformers import get_scheduler

from peft_polyhistor import PASCAL_TASKS, DenseImageProcessor, MultiTaskDenseModel, declare_tasks, load, load_encoder
from peft_polyhistor.data import JointTransform
from peft_polyhistor.evaluation import collect_statistics, count_trainable, find_details, headline, score_tasks
from peft_polyhistor.studies.gallery import draw_examples
from peft_polyhistor.studies.tables import align, make_note, make_rows
from peft_polyhistor.training import (
    ON_BAD_STEP,
    RunFolder,
    StepGuard,
    add_gradients,
    arguments,
    join_tasks,
    key_of_data,
    key_of_weights,
    option,
)
from peft_polyhistor.training.loaders import (
    check_labels_exist,
    count_steps,
    load_splits,
    make_loader,
    rest_of_epoch,
    sample_labels,
)
from peft_polyhistor.training.methods import MethodChoice, adapt, parameter_groups, parse_methods, shares_pass
from peft_polyhistor.training.run_folder import RESULTS


DEFAULT_CONFIG = Path(__file__).parent / "configs" / "scenes_swin_mini_polyhistor_lite.yaml"
OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
CURVES = "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt"
# A resumed run may change these settings, because they do not affect the result.
NEUTRAL = ("workers", "preparation_workers", "log_every", "resume", "tracker", "output_dir", "on_bad_step")


@dataclass
class Settings:
    """The settings of a run. Optimiser and schedule default to those of Polyhistor (arXiv:2210.03265, Sec. 5.1)."""

    data: str = option("scenes", "'scenes' (embedded), a folder (PASCAL_MT, image files or parquet), or a Hub id")
    encoder: str = option("swin-mini", "'swin-mini' (embedded), or a folder or Hub id of transformers or timm")
    methods: list[str] = option(["polyhistor_lite"], "names, or mappings such as 'phm: {reduction_factor: 12}'")
    layout: list[str] = option([], "ours=theirs: names in the data of image, image_id, tasks and splits")
    tasks: list[str] = option(list(PASCAL_TASKS), "names, or mappings such as 'depth: {kind: regression, unit: m}'")
    loss_weights: list[str] = option([], "task=weight in the loss, or 'uniform' for 1; by default those of the tasks")
    image_size: int = option(512, "side of the images in pixels", at_least=32)  # the coarsest stride of the encoders
    augmentation: float = option(1.0, "strength of random rotations and scales; 0 only flips", at_least=0, below=4)
    decoder_width: int = option(256, "channels inside the decoders", at_least=1)
    decoder_dropout: float = option(0.1, "probability of zeroing a channel before the classifier", at_least=0, below=1)
    bias_images: int = option(0, "training images whose labels set the decoders' first biases; 0: zero", at_least=0)
    decoders: str = option("", "checkpoint, e.g. RUN/decoders/best, whose decoders the run starts from")
    epochs: float = option(60.0, "passes over the training images", at_least=0)
    steps: int = option(0, "optimiser steps, which replace --epochs; 0 uses --epochs", at_least=0)
    batch_size: int = option(12, "images per process and batch", at_least=1)
    gradient_accumulation: int = option(1, "batches per optimiser step", at_least=1)
    optimizer: str = option("adam", "optimiser of torch.optim", among=list(OPTIMIZERS))
    learning_rate: float = option(1e-4, "learning rate after the warm-up", at_least=1e-12)
    decoder_learning_rate: float = option(0.0, "learning rate of the decoders; 0 uses --learning_rate", at_least=0)
    weight_decay: float = option(1e-4, "weight decay of the optimiser", at_least=0)
    schedule: str = option("linear", "curve of the learning rate, from transformers", among=CURVES)
    warmup_steps: int = option(0, "optimiser steps of the warm-up", at_least=0)
    max_grad_norm: float = option(0.0, "norm that gradients are clipped to; 0 disables clipping", at_least=0)
    on_bad_step: str = option("stop", "reaction to a loss or gradient that is not finite", among=ON_BAD_STEP)
    mixed_precision: str = option("no", "precision of the forward pass", among=["no", "bf16", "fp16"])
    gradient_checkpointing: bool = option(False, "recompute the encoder in the backward pass to save memory")
    backward_per_task: bool = option(False, "one backward pass per task, for the same gradients in less memory")
    threads: int = option(0, "CPU threads of PyTorch per process; 0 keeps the number that it has", at_least=0)
    workers: int = option(min(4, os.cpu_count() or 1), "processes that load images", at_least=0)
    preparation_workers: int = option(2, "processes that prepare the data before its first use", at_least=1)
    holdout: float = option(0.0, "fraction of the training images used as the split val", at_least=0, below=1)
    left_out: float = option(0.0, "fraction of the training images that is not used", at_least=0, below=1)
    seed: int = option(0, "seed of weights, order and augmentation", at_least=0)
    eval_every: int = option(0, "optimiser steps between evaluations and checkpoints; 0: one epoch", at_least=0)
    log_every: int = option(10, "optimiser steps between recorded losses", at_least=1)
    resume: bool = option(False, "resume from the last checkpoint in the output folder, if any")
    tracker: str = option("none", "tracker of accelerate", among=["none", *map(str, get_available_trackers())])
    output_dir: str = option("runs/train_pascal", "folder of the results")

    def __post_init__(self):
        arguments.check_options(self)
        self.methods, self.tasks = arguments.read_items(self.methods), arguments.read_tasks(self.tasks)
        parse_methods(self.methods)
        arguments.read_layout(self.layout)
        arguments.read_loss_weights(self.loss_weights, declare_tasks(self.tasks))
        if self.steps == 0 and self.epochs == 0:
            raise ValueError("Nothing to train: epochs=0 and steps=0. Set one of them above 0.")
        if self.decoders and self.bias_images:
            raise ValueError(f"`decoders` brings biases: give bias_images=0 with it, got {self.bias_images}.")
        if self.warmup_steps and self.schedule == "constant":
            raise ValueError(f"`warmup_steps` {self.warmup_steps} needs a --schedule with a warm-up, got 'constant'.")
        if self.steps:
            self.check_warmup(self.steps)

    def check_warmup(self, steps: int) -> None:
        """Raises ValueError unless a run of that many optimiser steps goes on after the warm-up."""
        if self.warmup_steps >= steps:
            raise ValueError(
                f"`warmup_steps` must be below the optimiser steps of the run, {steps}, got {self.warmup_steps}. Give "
                "fewer, or more --steps or --epochs."
            )


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
    """Trains one model, from its last checkpoint if the run resumes."""
    label = folder.relative_to(settings.output_dir).as_posix()
    accelerator = Accelerator(
        mixed_precision=settings.mixed_precision,
        log_with=None if settings.tracker == "none" else settings.tracker,
        project_dir=folder,
        # The order of an epoch is that of `data_seed` + epoch, so seeds must be far apart.
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=settings.seed * 2**16),
        # The other processes wait while one process prepares the data.
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=6))],
    )
    run = RunFolder(folder, asdict(settings), accelerator, NEUTRAL, asdict(Settings()))
    with run.locked():
        torch.set_num_threads(settings.threads or torch.get_num_threads())

        # Data and encoder. Data is prepared for all tasks, so that single-task runs share what is prepared.
        set_seed(settings.seed)
        names, layout = declare_tasks(settings.tasks), arguments.read_layout(settings.layout)
        data = load_splits(
            settings.data,
            names,
            accelerator,
            holdout=settings.holdout,
            left_out=settings.left_out,
            workers=settings.preparation_workers,
            layout=layout,
        )
        data = {split: rows.select_columns(["image_id", "image", *tasks]) for split, rows in data.items()}
        check_labels_exist(data["train"], tasks)
        encoder = load_encoder(settings.encoder)
        trained = load(settings.decoders) if settings.decoders else None
        inputs = {f"the data of the split {split}": key_of_data(rows) for split, rows in data.items()}
        steps_per_epoch = count_steps(
            len(data["train"]), settings.batch_size, accelerator.num_processes, settings.gradient_accumulation
        )
        total = settings.steps or math.ceil(settings.epochs * steps_per_epoch)
        settings.check_warmup(total)
        inputs["the weights of the encoder"] = key_of_weights(encoder)
        if trained is not None:
            inputs["the weights of the decoders"] = key_of_weights(trained)
        if results := run.open(settings.resume, inputs):
            return results

        # Model: the encoder, a decoder per task, and the adapters of the method.
        model = MultiTaskDenseModel.from_encoder(
            encoder,
            tasks,
            decoder_width=settings.decoder_width,
            decoder_dropout=settings.decoder_dropout,
            shared_norms=shares_pass(choice.name),
            loss_weights=arguments.read_loss_weights(settings.loss_weights, names),
            image_size=settings.image_size,
        )
        if settings.bias_images:
            model.fit_biases(sample_labels(data["train"], settings.bias_images))
        if trained is not None:
            model.copy_decoders(trained)
        model = adapt(model, choice, tasks, settings.gradient_checkpointing)

        # Batches, normalised as the encoder expects them.
        processor = DenseImageProcessor.from_model(model)
        augment = JointTransform(processor, True, settings.seed, settings.augmentation)
        resize = JointTransform(processor, train=False)
        train_loader = make_loader(data["train"], augment, settings.batch_size, settings.workers, settings.seed)
        val_loader = make_loader(data["val"], resize, settings.batch_size, settings.workers, settings.seed)

        # Optimiser and schedule.
        groups = parameter_groups(model, settings.learning_rate, settings.decoder_learning_rate)
        optimizer = OPTIMIZERS[settings.optimizer](groups, weight_decay=settings.weight_decay)
        model, optimizer, train_loader, val_loader = accelerator.prepare(model, optimizer, train_loader, val_loader)
        set_seed(settings.seed + accelerator.process_index)  # each process draws its own dropout masks
        scheduler = get_scheduler(settings.schedule, optimizer.optimizer, settings.warmup_steps, total)
        progress = run.resume(scheduler)
        guard = StepGuard(model, optimizer, tasks, accelerator, settings.max_grad_norm, settings.on_bad_step)
        accelerator.init_trackers(label, config={name: str(value) for name, value in asdict(settings).items()})

        # Training. Losses are read before an evaluation, so that no model with a loss that is not finite is saved.
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
                    means = guard.take_means()
                    progress.losses += [{"step": progress.step, "losses": means}] if means else []
                    rate = {"learning_rate": scheduler.get_last_lr()[0]}
                    accelerator.log({f"loss/{task}": mean for task, mean in means.items()} | rate, progress.step)
                if is_scored:
                    statistics = collect_statistics(model, val_loader, tasks, accelerator)
                    scores = score_tasks(statistics)
                    accelerator.log({f"score/{task}": x for task, x in headline(scores).items()}, progress.step)
                    progress.history.append({"step": progress.step, "scores": scores})
                    progress.details = find_details(statistics, data["val"]["image_id"])
                    run.save(model, progress)

        # Results.
        bar.close()
        if accelerator.is_main_process:
            draw_examples(accelerator.unwrap_model(model), val_loader.dataset, progress.details, folder)
        results = run.finish(label, count_trainable(accelerator.unwrap_model(model)), progress)
    accelerator.free_memory()
    return results


def main(settings: Settings) -> list[dict]:
    results = [train(method, settings) for method in settings.methods]
    runs = {result["method"]: [result] for result in results}
    PartialState().print(align(make_rows(runs)), make_note(runs), f"Results are in {settings.output_dir}.", sep="\n")
    return results


if __name__ == "__main__":
    arguments.run_recipe(main, __doc__, DEFAULT_CONFIG, Settings)
