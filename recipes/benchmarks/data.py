# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Images per second that one core decodes and augments for training: the library's path against plain float PIL.

    python recipes/benchmarks/data.py [--data FOLDER] [--image_size 512] [--output_dir runs/benchmark_data]

Both paths draw from the same ranges and give batches of the same tensors to the main process, each from one worker of
a DataLoader, in turns. What counts is CPU time of the worker, so other work on the machine disturbs little.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import random, uniform
from statistics import median

import numpy as np
import torch
from common import positive
from datasets import Dataset
from PIL import Image
from torch.utils.data import DataLoader

from peft_polyhistor.data import (
    DENSE_TASKS,
    IMAGENET_MEAN,
    IMAGENET_STD,
    JointTransform,
    collate,
    flip_normals,
    load_dense_dataset,
    rotate_normals,
    synthetic_scenes,
)
from peft_polyhistor.data.geometry import Draw
from peft_polyhistor.studies.tables import align


PARTS = ("decode", "augment", "hand over")


def parse_options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="scenes", help="'scenes', a PASCAL_MT or parquet folder, or a Hub id")
    parser.add_argument("--image_size", default=512, type=positive, help="side of the images in training, pixels")
    parser.add_argument("--images", default=96, type=positive, help="images of a round")
    parser.add_argument("--batch_size", default=12, type=positive, help="images; the first batch does not count")
    parser.add_argument("--rounds", default=5, type=positive, help="rounds of each path")
    parser.add_argument("--output_dir", default=Path("runs/benchmark_data"), type=Path)
    options = parser.parse_args(arguments)
    if options.images < 2 * options.batch_size:
        parser.error(f"--images must fill two batches of {options.batch_size}, got {options.images}.")
    return options


@dataclass
class TimedRows(torch.utils.data.Dataset):
    """Augmented rows, each with the CPU seconds that its decoding and its augmentation took."""

    data: Dataset
    augment: Callable[[dict], dict]

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[dict, tuple[float, float]]:
        start = time.process_time()
        row = self.data[index]
        decoded = time.process_time()
        sample = self.augment(row)
        return sample, (decoded - start, time.process_time() - decoded)


def collate_timed(rows: list) -> tuple[dict, np.ndarray, float]:
    """A batch, the seconds of its images by part, and the worker's CPU time after stacking."""
    samples, seconds = zip(*rows, strict=True)
    return collate(samples), np.sum(seconds, axis=0), time.process_time()


def run_library(row: dict, transform: JointTransform) -> dict:
    return {name: values[0] for name, values in transform({name: [value] for name, value in row.items()}).items()}


def run_float_pil(row: dict, image_size: int) -> dict:
    return float_pil(row, image_size, Draw(random() < 0.5, uniform(-20, 20), uniform(0.75, 1.25)))


def float_pil(row: dict, image_size: int, draw: Draw) -> dict:
    """The usual way: all of a row to float32 at once, then every channel through one operation after the other."""
    maps = {name: np.asarray(row[name], np.float32) for name in ("image", *DENSE_TASKS)}
    maps["normals"] = (maps["normals"] / 127.5 - 1) * maps["normals"].any(axis=-1, keepdims=True)
    move = partial(move_channels, image_size=image_size, draw=draw)
    moved = {name: torch.from_numpy(move(pixels, name in ("image", "normals"))) for name, pixels in maps.items()}
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    human_parts = moved["human_parts"][0].long()
    normals = rotate_normals(flip_normals(moved["normals"]) if draw.flip else moved["normals"], draw.degrees)
    return {
        "pixel_values": (moved["image"].clamp(0, 255) / 255 - mean) / std,
        "semseg": moved["semseg"][0].long(),
        "human_parts": human_parts if human_parts.any() else human_parts.fill_(255),
        "saliency": (moved["saliency"] / 255 > 0.5).float(),
        "normals": normals / normals.square().sum(dim=0).sqrt().clamp(min=1e-6),
    }


def move_channels(pixels: np.ndarray, is_cubic: bool, image_size: int, draw: Draw) -> np.ndarray:
    """Flip, rotation, scale and resize of `(height, width)` or `(height, width, channels)`; channels come first."""
    kernel = Image.Resampling.BICUBIC if is_cubic else Image.Resampling.NEAREST
    height, width = pixels.shape[:2]
    step = 1 / draw.scale
    scale = (step, 0, (1 - step) * width / 2, 0, step, (1 - step) * height / 2)
    moved = []
    for plane in np.moveaxis(pixels.reshape(height, width, -1), -1, 0):
        channel = Image.fromarray(np.ascontiguousarray(plane))
        if draw.flip:
            channel = channel.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        # Each on the same canvas: a scale below 1 shows that the turn cut off corners.
        channel = channel.rotate(draw.degrees, kernel).transform(
            (width, height), Image.Transform.AFFINE, scale, kernel
        )
        moved.append(np.asarray(channel.resize((image_size, image_size), kernel)))
    return np.stack(moved)


def measure(data: Dataset, augment: Callable[[dict], dict], batch_size: int) -> tuple[dict[str, float], float]:
    """CPU milliseconds per image by part, in a worker, and the bytes of an image that it hands over."""
    loader = DataLoader(TimedRows(data, augment), batch_size, num_workers=1, collate_fn=collate_timed, drop_last=True)
    (batch, _, start), *batches = loader
    seconds = sum(seconds for _, seconds, _ in batches)
    rest = batches[-1][-1] - start - seconds.sum()
    images = len(batches) * batch_size
    nbytes = sum(values.nbytes for values in (batch["pixel_values"], *batch["labels"].values()))
    return dict(zip(PARTS, 1e3 * np.array([*seconds, rest]) / images, strict=True)), nbytes / batch_size


def load(source: str, images: int) -> Dataset:
    if source == "scenes":
        return synthetic_scenes(count=images, image_size=(375, 500))  # as most of PASCAL's
    data = load_dense_dataset(source, DENSE_TASKS, "train")
    if len(data) < images:
        raise ValueError(f"{source} has {len(data)} images to train on; give --images of at most that.")
    return data.select(range(images))


def summarize(values: list[float]) -> dict[str, float]:
    return {"median": round(median(values), 2), "lowest": round(min(values), 2), "highest": round(max(values), 2)}


def main(arguments: Sequence[str]) -> dict:
    options = parse_options(arguments)
    data, transform = load(options.data, options.images), JointTransform(options.image_size, train=True)
    paths = {
        "library": partial(run_library, transform=transform),
        "float PIL": partial(run_float_pil, image_size=options.image_size),
    }
    parts, sizes = {name: [] for name in paths}, {}
    for epoch in range(options.rounds):
        transform.set_epoch(epoch)
        for name, augment in paths.items():
            milliseconds, sizes[name] = measure(data, augment, options.batch_size)
            parts[name].append(milliseconds)
    speeds = {name: [1e3 / sum(milliseconds.values()) for milliseconds in rounds] for name, rounds in parts.items()}
    ratios = [ours / theirs for ours, theirs in zip(*speeds.values(), strict=True)]
    results = {
        "images_per_second_and_core": {name: summarize(values) for name, values in speeds.items()},
        "library_over_float_pil": summarize(ratios),
        "milliseconds_per_image": {
            name: {part: summarize([r[part] for r in rounds]) for part in PARTS} for name, rounds in parts.items()
        },
        "bytes_per_image": sizes,
        "options": {name: str(value) for name, value in vars(options).items()},
    }
    options.output_dir.mkdir(parents=True, exist_ok=True)
    (options.output_dir / "results.json").write_text(json.dumps(results, indent=2))
    report(results)
    return results


def report(results: dict) -> None:
    rows = [["path", "images/s and core", "from", "to", *(f"{part} ms" for part in PARTS), "MB per image"]]
    for name, speed in results["images_per_second_and_core"].items():
        parts = [f"{part['median']:.1f}" for part in results["milliseconds_per_image"][name].values()]
        figures = [f"{speed[key]:.1f}" for key in ("median", "lowest", "highest")]
        rows.append([name, *figures, *parts, f"{results['bytes_per_image'][name] / 1e6:.2f}"])
    print(align(rows))
    print("library / float PIL: {median} (from {lowest} to {highest})".format(**results["library_over_float_pil"]))


if __name__ == "__main__":
    main(sys.argv[1:])
