# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Trains several dense tasks on one frozen encoder, and scores them.

    accelerate launch recipes/train_pascal.py                                   # embedded scenes, minutes on a CPU
    accelerate launch recipes/train_pascal.py recipes/configs/pascal_swin_tiny_polyhistor_lite.yaml --data FOLDER

Settings come from a YAML file (the first argument) and from arguments, which win. Every method in `--methods` is
trained in turn with the same settings, each in a folder of its own under `--output-dir`: the checkpoints `best` and
`last`, results.json, predictions.png, and `state`, from which `--resume` goes on.
"""

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import count
from pathlib import Path

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import set_seed
from datasets import Dataset
from peft import PeftModel, get_peft_model
from settings import OPTIMIZERS, Settings, parse_settings, read_pairs
from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import get_scheduler

from peft_polyhistor import METHODS, TASKS, MultiTaskDenseModel, load_encoder, relative_change
from peft_polyhistor.data import JointTransform, collate, load_dense_dataset
from peft_polyhistor.data.synthetic import synthetic_scenes
from peft_polyhistor.evaluation import count_trainable, evaluate_tasks, headline
from peft_polyhistor.pictures import draw_grid


# ---------------------------------------------------------------------------------------------------------- build


def load_data(settings: Settings) -> dict[str, Dataset]:
    """The splits `train` and `val`, untransformed."""
    if settings.data == "scenes":
        return {split: synthetic_scenes(settings.tasks, split, num_proc=2) for split in ("train", "val")}
    return {split: load_dense_dataset(settings.data, settings.tasks, split) for split in ("train", "val")}


def make_loader(data: Dataset, transform: JointTransform, settings: Settings) -> DataLoader:
    return DataLoader(
        data.with_transform(transform),
        batch_size=settings.batch_size,
        shuffle=transform.train,
        drop_last=transform.train,
        collate_fn=collate,
        num_workers=settings.workers,
        persistent_workers=settings.workers > 0,
        # Of its own: a loader that starts anew after a resume must not draw from the generator of the dropout.
        generator=torch.Generator().manual_seed(settings.seed),
    )


def build_model(method: str, settings: Settings) -> nn.Module:
    """The dense model, with what `method` trains trainable and nothing else."""
    uniform = dict.fromkeys(settings.tasks, 1.0)
    model = MultiTaskDenseModel.from_encoder(
        load_encoder(settings.encoder),
        settings.tasks,
        decoder_width=settings.decoder_width,
        decoder_dropout=settings.decoder_dropout,
        loss_weights=uniform if settings.loss_weights == ["uniform"] else read_pairs(settings.loss_weights),
    )
    if method == "decoders":
        model.encoder.requires_grad_(False)
    elif method != "full":
        model = get_peft_model(model, METHODS[method](tasks=settings.tasks, **read_pairs(settings.method_settings)))
    if settings.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    return model


def make_optimizer(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    decoders = {name for name in parameters if "decoders." in name}
    groups = [
        {"params": [p for name, p in parameters.items() if name not in decoders], "lr": settings.learning_rate},
        {
            "params": [p for name, p in parameters.items() if name in decoders],
            "lr": settings.decoder_learning_rate or settings.learning_rate,
        },
    ]
    return OPTIMIZERS[settings.optimizer](
        [group for group in groups if group["params"]], weight_decay=settings.weight_decay
    )


# ----------------------------------------------------------------------------------------------------------- loop


@dataclass
class Progress:
    """What a run has to remember beside weights, optimiser and schedule."""

    step: int = 0
    best: float = -math.inf
    seconds: float = 0.0
    history: list[dict] = field(default_factory=list)

    def state_dict(self) -> dict:
        return asdict(self)

    def load_state_dict(self, state: dict) -> None:
        self.__dict__.update(state)


def train(method: str, settings: Settings) -> dict:
    """Trains one method and returns its results, which results.json in its folder repeats."""
    folder = Path(settings.output_dir) / method
    accelerator = Accelerator(
        mixed_precision=settings.mixed_precision,
        gradient_accumulation_steps=settings.gradient_accumulation,
        log_with=None if settings.tracker == "none" else settings.tracker,
        project_dir=folder,
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True),
    )
    set_seed(settings.seed)
    with accelerator.main_process_first():  # the others find the prepared data in the cache
        data = load_data(settings)
    transforms = {split: JointTransform(settings.image_size, split == "train", settings.seed) for split in data}
    loaders = {split: make_loader(data[split], transforms[split], settings) for split in data}
    model = build_model(method, settings)
    parameters = count_trainable(model)
    optimizer = make_optimizer(model, settings)
    model, optimizer, loaders["train"], loaders["val"] = accelerator.prepare(
        model, optimizer, loaders["train"], loaders["val"]
    )
    batches = len(loaders["train"])
    if batches < settings.gradient_accumulation:
        raise ValueError(
            f"{len(data['train'])} training pictures make {batches} batches of {settings.batch_size} per process, "
            f"fewer than gradient_accumulation={settings.gradient_accumulation}. Lower --batch_size."
        )
    steps_per_epoch = math.ceil(batches / settings.gradient_accumulation)
    total = settings.steps or math.ceil(settings.epochs * steps_per_epoch)
    scheduler = get_scheduler(settings.schedule, optimizer.optimizer, settings.warmup_steps, total)
    progress = Progress()
    accelerator.register_for_checkpointing(scheduler, progress)
    if settings.resume and (folder / "state").is_dir():
        accelerator.load_state(folder / "state")
    accelerator.init_trackers(method, config={k: v for k, v in asdict(settings).items() if not isinstance(v, list)})

    bar = tqdm(total=total, initial=progress.step, desc=method, disable=not accelerator.is_main_process)
    started = time.monotonic() - progress.seconds
    model.train()
    for epoch in count(progress.step // steps_per_epoch):
        if progress.step >= total:
            break
        transforms["train"].set_epoch(epoch)
        loaders["train"].set_epoch(epoch)
        done = progress.step % steps_per_epoch * settings.gradient_accumulation
        for batch in accelerator.skip_first_batches(loaders["train"], done):
            with accelerator.accumulate(model):
                output = model(**batch)
                accelerator.backward(output.loss)
                if accelerator.sync_gradients and settings.max_grad_norm > 0:
                    accelerator.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
            if not accelerator.sync_gradients:
                continue
            scheduler.step()
            progress.step += 1
            bar.update()
            losses = {f"loss/{task}": loss.item() for task, loss in output.losses.items()}
            accelerator.log(losses | {"learning_rate": scheduler.get_last_lr()[0]}, step=progress.step)
            if progress.step == total or progress.step % (settings.eval_every or steps_per_epoch) == 0:
                scores = evaluate_tasks(model, loaders["val"], settings.tasks, accelerator)
                progress.seconds = time.monotonic() - started
                progress.history.append({"step": progress.step, "scores": scores})
                accelerator.log({f"score/{task}": score for task, score in headline(scores).items()}, progress.step)
                save(accelerator, model, folder, progress)
            if progress.step == total:
                break
    bar.close()
    results = {
        "method": method,
        "parameters": parameters,
        "scores": progress.history[-1]["scores"],
        "history": progress.history,
        "seconds": round(progress.seconds, 1),
        "settings": asdict(settings),
    }
    if accelerator.is_main_process:
        (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")
        draw_predictions(accelerator.unwrap_model(model), data["val"].with_transform(transforms["val"])).save(
            folder / "predictions.png"
        )
    accelerator.end_training()
    accelerator.free_memory()
    return results


# ------------------------------------------------------------------------------------------------------ save, show


def save(accelerator: Accelerator, model: nn.Module, folder: Path, progress: Progress) -> None:
    """Writes `last`, `best` where this is the best so far, and `state`."""
    merit = sum(s if TASKS[t].higher_is_better else -s for t, s in headline(progress.history[-1]["scores"]).items())
    is_best, progress.best = merit > progress.best, max(merit, progress.best)
    unwrapped = accelerator.unwrap_model(model)
    if accelerator.is_main_process:
        for name in ["last", "best"] if is_best else ["last"]:
            replace_folder(folder / name, partial(save_weights, unwrapped))
    accelerator.wait_for_everyone()
    replace_folder(folder / "state", accelerator.save_state, accelerator)


def save_weights(model: nn.Module, folder: Path) -> None:
    """Adapter and decoders of an adapted model, else the whole model."""
    # There is no vocabulary to look up on the Hub.
    model.save_pretrained(folder, **({"save_embedding_layers": False} if isinstance(model, PeftModel) else {}))


def replace_folder(folder: Path, write: Callable[[Path], object], accelerator: Accelerator | None = None) -> None:
    """Writes beside `folder` first and swaps then, so that what stands there is always whole.

    With an accelerator, all processes write and the main one swaps.
    """
    fresh, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    swaps = accelerator is None or accelerator.is_main_process
    if swaps:
        for leftover in (fresh, old):
            shutil.rmtree(leftover, ignore_errors=True)
        fresh.mkdir(parents=True)
    if accelerator is not None:
        accelerator.wait_for_everyone()
    write(fresh)
    if accelerator is not None:
        accelerator.wait_for_everyone()
    if swaps:
        if folder.exists():
            os.replace(folder, old)
        os.replace(fresh, folder)
        shutil.rmtree(old, ignore_errors=True)


@torch.no_grad()
def draw_predictions(model: nn.Module, data: Dataset, pictures: int = 6):
    batch = collate([data[i] for i in range(min(pictures, len(data)))])
    model.eval()
    device = next(model.parameters()).device
    logits = model(batch["pixel_values"].to(device), full_resolution=False).logits
    return draw_grid(batch["pixel_values"], batch["labels"], logits)


def print_table(results: list[dict]) -> None:
    """One row per method: trainable parameters, scores, and the change against decoders only."""
    tasks = list(results[0]["scores"])
    units = {task: f"{TASKS[task].score} {'up' if TASKS[task].higher_is_better else 'down'}" for task in tasks}
    rows = [["method", "encoder", "all", *(f"{task} {units[task]}" for task in tasks), "change"]]
    reference = next((headline(r["scores"]) for r in results if r["method"] == "decoders"), None)
    for result in results:
        scores = headline(result["scores"])
        change = f"{relative_change(scores, reference):+.2f} %" if reference else "-"
        sizes = [f"{result['parameters'][part]:,}" for part in ("encoder", "all")]
        rows.append([result["method"], *sizes, *(f"{score:.2f}" for score in scores.values()), change])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *cells in rows:
        print(
            name.ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)),
            sep="  ",
        )
    print("encoder, all: trainable parameters. change: mean relative change of the scores against decoders only.")


def main(settings: Settings) -> list[dict]:
    results = [train(method, settings) for method in settings.methods]
    if Accelerator().is_main_process:
        print_table(results)
        print(f"Checkpoints, results and pictures are in {settings.output_dir}.")
    return results


if __name__ == "__main__":
    main(parse_settings(sys.argv[1:], __doc__))
