# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Pretrains a small Swin by distillation: it learns the outputs of a teacher for crops of photographs.

    accelerate launch recipes/pretrain_encoder.py --data FOLDER=3 OTHER=1 --teacher timm/tf_efficientnet_lite2.in1k \\
        --teacher_outputs runs/teacher_outputs --output_dir runs/pretraining

First the teacher computes its outputs. Each file in --teacher_outputs is a shard of crops with the teacher's logits
and its last maps of stride 8, 16 and 32. A timm teacher also classifies each position of its last map ("token
labelling", arXiv:2104.10858). The teacher sees each crop once, and any number of runs can learn from its outputs
("fast knowledge distillation", arXiv:2112.01528). A larger --shards adds shards; without --data no shards are made.
Without --teacher the shards hold the column `label` in place of outputs.

Then the student trains. With several folders of --teacher_outputs, e.g. of crops of several sizes, each step takes the
next folder in turn. `encoder` in --output_dir holds the best student in float16, with its settings and losses. The
same command resumes an interrupted run from its last save. With --decay_steps 0 the learning rate stays constant after
the warm-up, and more --steps prolong the run. --start_from branches off such a run, e.g. to let the learning rate
fall. --student starts a run from the weights of a Swin; a command that resumes or branches off this run needs the same
--student, and takes the weights of the last save. --steps 0 only computes the teacher's outputs.
"""

import argparse
import math
import os
import time
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, send_to_device
from distillation.shards import Shard, draw_batch, load_folders, write_shards
from distillation.student import Distillation, make_student
from tqdm.auto import trange

from peft_polyhistor.training.arguments import list_changes
from peft_polyhistor.training.files import locked, replacing, write_json
from peft_polyhistor.training.keys import key_of_tensors


AT_LEAST_ONE = ["embed_dim", "window", "batch_size", "shards", "shard_size", "teacher_size", "image_size"]
AT_LEAST_ONE += ["teacher_batch_size"]
FOLDERS = ("teacher_outputs", "output_dir", "start_from")  # arguments that the record of a run leaves out
STUDENT_SETTINGS = ("embed_dim", "depths", "heads", "window")  # of a student that starts at random
# A resumed run must have the same: they determine its steps before the learning rate falls, and the held-out losses.
FIXED = (*STUDENT_SETTINGS, "student", "batch_size", "learning_rate", "warmup_steps", "temperature", "seed")


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def add(name: str, default: object = None, **options) -> None:
        options["help"] += "" if default is None else " (default: %(default)s)"
        parser.add_argument(name, default=default, **options)

    text = "folder of the shards, or several to train on in turn; the first shard of each is held out for validation"
    add("--teacher_outputs", type=Path, required=True, nargs="+", help=text)
    add("--output_dir", type=Path, required=True, help="folder of the run")
    metavar, text = "FOLDER[=SHARE]", "photographs (train*.parquet with the column `image`, or an image folder)"
    add("--data", default=[], nargs="+", metavar=metavar, help=f"{text} and their share of the crops")
    add("--teacher", help="folder or Hub id of transformers, or of timm as 'local-dir:...' or 'timm/...'")
    add("--shards", type=int, default=100, help="number of shards")
    add("--shard_size", type=int, default=512, help="crops per shard, about 180 KB each")
    add("--teacher_size", type=int, default=192, help="side of the crops for the teacher in pixels")
    add("--image_size", type=int, default=128, help="side of the crops for the student in pixels")
    add("--smallest_crop", type=float, default=0.25, help="smallest fraction of the photograph's area in a crop")
    add("--teacher_batch_size", type=int, default=16, help="crops per batch of the teacher")
    add("--start_from", type=Path, help="output folder of a run to branch off")
    add("--student", help="folder or Hub id of a Swin whose weights the student starts from, not random ones")
    add("--embed_dim", type=int, default=32, help="channels of the student's first stage")
    add("--depths", type=int, nargs=4, default=[2, 2, 4, 2], help="blocks per stage of the student")
    add("--heads", type=int, nargs=4, default=[2, 4, 8, 16], help="attention heads per stage of the student")
    add("--window", type=int, default=4, help="side of the student's windows in tokens")
    add("--steps", type=int, default=20_000, help="optimiser steps; 0 only computes the teacher's outputs")
    add("--warmup_steps", type=int, default=300, help="first steps, in which the learning rate rises")
    add("--decay_steps", type=int, default=4_000, help="last steps, in which the learning rate falls to 0")
    add("--batch_size", type=int, default=32, help="crops per step and process of the student")
    add("--learning_rate", type=float, default=1e-3, help="learning rate after the warm-up")
    add("--weight_decay", type=float, default=0.05, help="weight decay of weight matrices")
    add("--temperature", type=float, default=1.0, help="temperature of the teacher's and the student's logits")
    add("--save_minutes", type=float, default=10, help="minutes between saves")
    add("--seed", type=int, default=0, help="seed of the student and its batches")
    arguments = parser.parse_args(argv)
    if arguments.data and (count := len(arguments.teacher_outputs)) > 1:
        parser.error(f"--data fills one folder of --teacher_outputs, got {count}. Fill one after the other.")
    for name in AT_LEAST_ONE:
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(arguments, name)}.")
    if arguments.student:
        for name in STUDENT_SETTINGS:
            if getattr(arguments, name) != parser.get_default(name):
                parser.error(f"--{name} has no effect with --student, whose config gives it.")
            delattr(arguments, name)
    return arguments


def main(arguments: argparse.Namespace) -> dict | None:
    """Writes the shards and trains the student; returns the progress of the run.

    Raises:
        ValueError: Several processes were started that do not train together.
        BlockingIOError: Another run uses one of the folders.
    """
    # The other processes wait while one process writes the shards.
    accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=7))])
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != accelerator.num_processes:  # each process would train alone, and write the same files
        raise ValueError(
            f"{started} processes were started, and accelerate joins {accelerator.num_processes}. Start one, or on a "
            "CPU use `accelerate launch --cpu`."
        )
    if arguments.data and accelerator.is_main_process:
        write_shards(arguments, accelerator.device)
    accelerator.wait_for_everyone()
    if not arguments.steps:
        return None
    with locked(arguments.output_dir) if accelerator.is_main_process else nullcontext():
        return train(arguments, accelerator)


def train(arguments: argparse.Namespace, accelerator: Accelerator) -> dict:
    """Trains the student from the start, or from the last save of the run."""
    folders = load_folders(arguments.teacher_outputs)
    held_out = [shards.pop(0) for shards in folders]
    labels = [int(shard["labels"].max()) for shards in (held_out, *folders) for shard in shards if "labels" in shard]
    classes = 1 + max(labels) if labels else held_out[0]["logits"].shape[1]
    torch.manual_seed(arguments.seed)
    student = make_student(arguments, held_out[0]["images"].shape[-1], classes)
    distillation = Distillation(student, held_out[0], arguments.temperature)
    groups = [
        {"params": [p for p in distillation.parameters() if p.ndim >= 2], "weight_decay": arguments.weight_decay},
        {"params": [p for p in distillation.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=arguments.learning_rate, betas=(0.9, 0.98), fused=True)
    fixed = {name: vars(arguments)[name] for name in FIXED if name in vars(arguments)}
    outputs = {f"{number} {name}": tensor for number, shard in enumerate(held_out) for name, tensor in shard.items()}
    fixed["held-out crops"] = key_of_tensors(outputs)
    progress = restore(distillation, optimizer, arguments, fixed)
    model, optimizer = accelerator.prepare(distillation, optimizer)
    saved = time.time()
    bar = trange(progress["step"], arguments.steps, disable=not accelerator.is_main_process, mininterval=10)
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, arguments)
        rng = np.random.default_rng((arguments.seed, step, accelerator.process_index))  # the same in a resumed run
        shards = folders[step % len(folders)]
        batch, flip = send_to_device(draw_batch(shards, arguments.batch_size, rng), accelerator.device)
        losses = model(batch, flip)
        accelerator.backward(sum(losses.values()))
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        is_due = step + 1 == arguments.steps or time.time() - saved > 60 * arguments.save_minutes
        if is_due and accelerator.is_main_process:
            scores = validate(distillation, held_out, arguments.batch_size)
            progress |= {"step": step + 1, "seconds": progress["seconds"] + time.time() - saved}
            saved = time.time()
            save(arguments, distillation, optimizer, progress, scores, fixed)
            bar.write(f"step {step + 1}: held-out losses {scores}")
    return progress


def learning_rate_at(step: int, arguments: argparse.Namespace) -> float:
    """Returns the learning rate of a step: it rises, stays and falls ("warm-up, stable, decay", arXiv:2404.06395)."""
    rise = (step + 1) / max(1, arguments.warmup_steps)
    fall = (arguments.steps - step) / max(1, arguments.decay_steps)
    return arguments.learning_rate * min(1.0, rise, fall)


@torch.inference_mode()
def validate(distillation: Distillation, shards: list[Shard], batch_size: int) -> dict[str, float]:
    """Returns the mean losses over the held-out shards."""
    device = next(distillation.parameters()).device
    distillation.eval()
    sums, crops = {}, 0
    for shard in shards:
        for tensors in zip(*(tensor.to(device).split(batch_size) for tensor in shard.values()), strict=True):
            batch, count = dict(zip(shard, tensors, strict=True)), len(tensors[0])
            losses = distillation(batch, torch.zeros(count, device=device).bool())
            sums = {name: sums.get(name, 0.0) + count * loss.item() for name, loss in losses.items()}
            crops += count
    distillation.train()
    return {name: round(total / crops, 4) for name, total in sums.items()}


def save(
    arguments: argparse.Namespace,
    distillation: Distillation,
    optimizer: torch.optim.Optimizer,
    progress: dict,
    losses: dict[str, float],
    fixed: dict,
) -> None:
    """Writes the state of the run, and before it the student if it is the best so far.

    Raises:
        FloatingPointError: A loss is not finite. The files of the last save stay.
    """
    total = sum(losses.values())
    if not math.isfinite(total):
        raise FloatingPointError(f"The held-out losses are {losses}. Lower --learning_rate; the last save is whole.")
    is_best = total < progress["best"]
    progress["best"] = min(total, progress["best"])
    # state.pt calls the weights of the student and its heads "lesson".
    state = {"lesson": distillation.state_dict(), "optimizer": optimizer.state_dict()}
    state |= {"progress": progress, "fixed": fixed}
    if is_best:
        settings = {name: value for name, value in vars(arguments).items() if name not in FOLDERS}
        weights = {name: weight.half() for name, weight in distillation.student.state_dict().items()}
        with replacing(arguments.output_dir / "encoder") as folder:
            distillation.student.save_pretrained(folder, state_dict=weights)  # loads in float32, as the config says
            write_json(folder / "training.json", {**progress, "losses": losses, **settings})
    with replacing(arguments.output_dir / "state.pt") as file:
        torch.save(state, file)


def restore(
    distillation: Distillation, optimizer: torch.optim.Optimizer, arguments: argparse.Namespace, fixed: dict
) -> dict:
    """Loads the state of the run, or of the run it branches off, and returns its progress.

    Args:
        fixed: What a resumed run must have in common with its earlier commands; a branch may differ.

    Raises:
        FileNotFoundError: The run to branch off has no state.
        ValueError: The earlier command differs in `fixed`, or the run to branch off has another student.
    """
    for folder in (arguments.output_dir, arguments.start_from):
        if folder and (folder / "state.pt").exists():
            state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
            is_branch = folder == arguments.start_from
            if not is_branch and "fixed" in state and (changes := list_changes(state["fixed"], fixed)):
                how = f"Give the earlier settings, or branch off with --start_from {folder} and another --output_dir."
                raise ValueError(f"{folder} has a run with other settings: {'; '.join(changes)}. {how}")
            try:
                distillation.load_state_dict(state["lesson"])
            except RuntimeError as error:
                how = "Give the arguments of its student, and outputs of its teacher"
                raise ValueError(f"{folder} has another student or other heads: {error}. {how}.") from error
            decays = [group["weight_decay"] for group in optimizer.param_groups]
            optimizer.load_state_dict(state["optimizer"])
            for group, decay in zip(optimizer.param_groups, decays, strict=True):
                group["weight_decay"] = decay  # of this command; the state has that of the earlier one
            return state["progress"] | ({"best": math.inf} if is_branch else {})
    if arguments.start_from:
        raise FileNotFoundError(f"--start_from {arguments.start_from}: no state.pt. Give the --output_dir of a run.")
    return {"step": 0, "seconds": 0.0, "best": math.inf}


if __name__ == "__main__":
    main(parse_arguments())
