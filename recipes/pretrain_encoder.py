# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Pretrains a small Swin on labelled photographs; the encoder that ships with the package was made by this recipe.

    accelerate launch recipes/pretrain_encoder.py --data FOLDER --output-dir runs/encoder

`--data` is a folder with `train*.parquet` and `val*.parquet` (columns `image` and `label`), an image folder
(`train/<class>/*.jpg`, `val/<class>/*.jpg`), or the id of a Hub dataset. The output folder holds config.json,
model.safetensors and training.json (accuracy, command, settings).
"""

import argparse
import math
import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from datasets import DatasetDict, Image, load_dataset
from timm.data import create_transform
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import SwinConfig, SwinForImageClassification

from peft_polyhistor.training.run_folder import write_json


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder or Hub dataset, see above")
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--image-size", type=int, default=128, help="pixels")
    parser.add_argument("--embed-dim", type=int, default=24, help="channels of the first stage")
    parser.add_argument("--depths", type=int, nargs=4, default=[2, 2, 2, 2])
    parser.add_argument("--heads", type=int, nargs=4, default=[1, 2, 4, 8])
    parser.add_argument("--window", type=int, default=4, help="window size, tokens")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=64, help="per process")
    parser.add_argument("--learning-rate", type=float, default=8e-4)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--warmup-epochs", type=float, default=2)
    parser.add_argument("--drop-path", type=float, default=0.05)
    parser.add_argument("--label-smoothing", type=float, default=0.1)
    parser.add_argument("--auto-augment", default="none", help="timm's policy string, or 'none'")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    for name in ("image_size", "embed_dim", "window", "epochs", "batch_size"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {getattr(arguments, name)}.")
    if arguments.image_size < 32 * arguments.window:  # 32 is the stride of the last of four stages
        parser.error(
            f"--image-size must be at least 32 * --window = {32 * arguments.window}, got {arguments.image_size}, as "
            "one window has to fit the last map. Lower --window."
        )
    return arguments


def load_photographs(source: str) -> DatasetDict:
    """Splits `train` and `val` with an `image` and a `label` column, from any of the three sources.

    Raises:
        FileNotFoundError: `source` is neither a folder nor the id of a Hub dataset.
        ValueError: A split or column is missing, or there are fewer than two classes.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        if len(folder.parts) > 2 or folder.is_absolute() or source.startswith((".", "~")):
            raise FileNotFoundError(f"--data {source}: no such folder. Give a folder or the id of a Hub dataset.")
        data = load_dataset(source)
    elif any(folder.glob("train*.parquet")):
        files = {split: [str(path) for path in sorted(folder.glob(f"{split}*.parquet"))] for split in ("train", "val")}
        data = load_dataset("parquet", data_files=files)
    else:
        data = load_dataset("imagefolder", data_dir=str(folder), drop_labels=False)
    if "val" not in data and "validation" in data:
        data["val"] = data.pop("validation")
    for split in ("train", "val"):
        columns = data[split].column_names if split in data else []
        if not {"image", "label"} <= set(columns):
            raise ValueError(
                f"'{source}' has columns {columns} in split '{split}'; splits train and val with columns "
                "'image' and 'label' are needed."
            )
    classes = sorted(data["train"].unique("label"))
    if len(classes) < 2 or classes != list(range(len(classes))):
        raise ValueError(
            f"'{source}' has the labels {classes} in split 'train'; at least two are needed, numbered from 0 "
            "without a gap. Give photographs of more classes, or renumber them."
        )
    return data.cast_column("image", Image(mode="RGB"))


def make_loader(dataset, transform, arguments: argparse.Namespace, train: bool) -> DataLoader:
    def apply(batch: dict) -> dict:
        return {"pixel_values": [transform(image) for image in batch["image"]], "labels": batch["label"]}

    return DataLoader(
        dataset.with_transform(apply),
        batch_size=arguments.batch_size,
        shuffle=train,
        drop_last=train,
        num_workers=arguments.workers,
        persistent_workers=arguments.workers > 0,
    )


@torch.inference_mode()
def accuracy(model, loader: DataLoader, accelerator: Accelerator) -> float:
    """Top-1 accuracy in percent."""
    model.eval()
    correct = total = 0
    for batch in loader:
        hits = model(pixel_values=batch["pixel_values"]).logits.argmax(-1) == batch["labels"]
        hits = accelerator.gather_for_metrics(hits)
        correct, total = correct + int(hits.sum()), total + len(hits)
    model.train()
    return 100 * correct / total


def main(arguments: argparse.Namespace) -> dict:
    accelerator = Accelerator()
    set_seed(arguments.seed)
    data = load_photographs(arguments.data)
    classes = len(data["train"].unique("label"))
    size, policy = arguments.image_size, arguments.auto_augment
    augment = create_transform(
        size, is_training=True, scale=(0.35, 1.0), auto_augment=None if policy == "none" else policy, re_prob=0.0
    )
    train_loader = make_loader(data["train"], augment, arguments, train=True)
    val_loader = make_loader(data["val"], create_transform(size, crop_pct=1.0), arguments, train=False)

    model = SwinForImageClassification(
        SwinConfig(
            image_size=size,
            embed_dim=arguments.embed_dim,
            depths=arguments.depths,
            num_heads=arguments.heads,
            window_size=arguments.window,
            drop_path_rate=arguments.drop_path,
            num_labels=classes,
        )
    )
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": arguments.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=arguments.learning_rate,
    )
    model, optimizer, train_loader, val_loader = accelerator.prepare(model, optimizer, train_loader, val_loader)
    steps, warmup = arguments.epochs * len(train_loader), max(1, int(arguments.warmup_epochs * len(train_loader)))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * min(1.0, step / steps))),
    )

    started = time.time()
    bar = tqdm(total=steps, disable=not accelerator.is_main_process, desc="pretraining", mininterval=10)
    for epoch in range(arguments.epochs):
        for batch in train_loader:
            logits = model(pixel_values=batch["pixel_values"]).logits
            loss = torch.nn.functional.cross_entropy(
                logits, batch["labels"], label_smoothing=arguments.label_smoothing
            )
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            bar.update()
        score = accuracy(model, val_loader, accelerator)
        accelerator.print(f"epoch {epoch + 1}: loss {loss.item():.3f}, accuracy {score:.2f} %")
        save(accelerator, model, arguments, epoch + 1, score, time.time() - started)
    return {"accuracy": score}


def save(accelerator: Accelerator, model, arguments: argparse.Namespace, epochs: int, score: float, seconds: float):
    if not accelerator.is_main_process:
        return
    settings = {key: value for key, value in vars(arguments).items() if key != "output_dir"}
    settings["data"] = Path(arguments.data).name  # a folder's place on this machine is of no use elsewhere
    record = {"accuracy_percent": round(score, 2), "epochs_done": epochs, "seconds": round(seconds), **settings}
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=arguments.output_dir) as fresh:
        accelerator.unwrap_model(model).save_pretrained(fresh)
        write_json(Path(fresh) / "training.json", record)
        for file in Path(fresh).iterdir():
            os.replace(file, arguments.output_dir / file.name)


if __name__ == "__main__":
    main(parse_arguments())
