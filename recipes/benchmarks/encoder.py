# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Quality of frozen encoders: classification by nearest neighbours and a linear layer, segmentation by a linear probe.

    python recipes/benchmarks/encoder.py --encoders swin-mini runs/pretraining/encoder --data imagenette_128
    python recipes/benchmarks/encoder.py --encoders swin-mini local-dir:teacher --probe PASCAL_MT

Classification reads `train*.parquet` and `val*.parquet` of --data, with the columns `image` and `label`. The feature
of an image is the spatial mean of the encoder's last map. The 20 nearest neighbours by cosine vote with the weight
exp(cosine / 0.07), as in DINO (arXiv:2104.14294).

The linear probe trains one 1x1 convolution for `semseg` on the maps of stride 8, 16 and 32, and reports the mIoU. It
uses every second image of the splits train and val, squares of 192 px, and labels at a quarter of that size.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import timm
import torch
from datasets import Dataset, Image, load_dataset
from PIL.Image import Resampling
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.functional import normalize, pil_to_tensor, resize
from tqdm.auto import tqdm

from peft_polyhistor import TASKS, load_encoder
from peft_polyhistor.data import load_dense_dataset


BATCH = 32
PROBE_SIZE, PROBE_STRIDES, PROBE_EPOCHS = 192, (8, 16, 32), 20  # pixels, pixels, epochs


class FrozenEncoder(nn.Module):
    """Stage maps of an encoder of this package, or of a timm model named 'local-dir:...' or 'timm/...'."""

    def __init__(self, name: str):
        super().__init__()
        self.is_timm = name.startswith(("local-dir:", "timm/"))
        self.mean, self.std = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
        if self.is_timm:
            source = name.replace("timm/", "hf-hub:timm/", 1)
            self.encoder = timm.create_model(source, pretrained=True, features_only=True).float().eval()
            config = self.encoder.pretrained_cfg
            self.mean, self.std = config["mean"], config["std"]
        else:
            self.encoder = load_encoder(name).float().eval()

    @torch.no_grad()
    def forward(self, images: Tensor) -> list[Tensor]:
        """Computes maps `(batch, channels, h, w)` from images `(batch, 3, height, width)` with values from 0 to 1."""
        pixels = normalize(images, self.mean, self.std)
        return self.encoder(pixels) if self.is_timm else self.encoder.stage_maps(pixels)


def read_batches(data: Dataset, size: int) -> Iterator[tuple[Tensor, dict]]:
    """Yields images `(batch, 3, size, size)` with values from 0 to 1, and the rows of the batch by column."""
    for start in tqdm(range(0, len(data), BATCH), mininterval=10):
        rows = data[start : start + BATCH]
        images = [pil_to_tensor(resize(image.convert("RGB"), [size, size])) for image in rows["image"]]
        yield torch.stack(images) / 255, rows


def find_features(encoder: FrozenEncoder, data: Dataset, size: int) -> tuple[Tensor, Tensor]:
    """Computes the features `(images, channels)` and reads the labels `(images,)`."""
    parts = [
        (encoder(images)[-1].mean((2, 3)), torch.tensor(rows["label"])) for images, rows in read_batches(data, size)
    ]
    features, labels = zip(*parts, strict=True)
    return torch.cat(features), torch.cat(labels)


def neighbour_accuracy(train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor], count: int = 20) -> float:
    """Classifies each validation image by its nearest training images; returns the accuracy in percent."""
    known, asked = (F.normalize(features, dim=1) for features, _ in (train, val))
    similarity, rows = (asked @ known.T).topk(min(count, len(known)), dim=1)
    ballots = F.one_hot(train[1][rows]) * (similarity / 0.07).exp().unsqueeze(-1)
    return 100 * (ballots.sum(1).argmax(1) == val[1]).double().mean().item()


def linear_accuracy(train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor], steps: int = 100) -> float:
    """Trains a logistic regression on standardised features; returns its validation accuracy in percent."""
    std, mean = torch.std_mean(train[0], 0)
    known, asked = ((features - mean) / (std + 1e-6) for features, _ in (train, val))
    layer = nn.Linear(known.shape[1], int(train[1].max()) + 1)
    nn.init.zeros_(layer.weight)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=steps, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(layer(known), train[1]) + 1e-3 * layer.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return 100 * (layer(asked).argmax(1) == val[1]).double().mean().item()


def read_probe_split(encoder: FrozenEncoder, folder: Path, split: str) -> tuple[Tensor, Tensor]:
    """Computes the joined maps `(images, channels, 12, 12)` in float16, and reads the labels `(images, 48, 48)`."""
    data = load_dense_dataset(folder, ["semseg"], split)
    maps, labels = [], []
    for images, rows in read_batches(data.select(range(0, len(data), 2)), PROBE_SIZE):
        found = [stage for stage in encoder(images) if PROBE_SIZE / stage.shape[-1] in PROBE_STRIDES]
        if len(found) != len(PROBE_STRIDES):
            raise ValueError(
                f"The probe needs maps of the strides {PROBE_STRIDES}; the encoder has {len(found)} of them."
            )
        maps.append(torch.cat([to_stride_16(stage) for stage in found], dim=1).half())
        side = PROBE_SIZE // 4
        labels += [np.asarray(label.resize((side, side), Resampling.NEAREST)) for label in rows["semseg"]]
    return torch.cat(maps), torch.from_numpy(np.stack(labels)).long()


def to_stride_16(stage: Tensor) -> Tensor:
    side = PROBE_SIZE // 16
    return F.interpolate(stage, size=(side, side), mode="area" if stage.shape[-1] > side else "bilinear")


def probe(train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor], epochs: int = PROBE_EPOCHS) -> float:
    """Trains a 1x1 convolution on standardised maps; returns its validation mIoU in percent."""
    maps, labels = train
    steps = len(maps) // BATCH
    if not steps:
        raise ValueError(f"The probe trains on batches of {BATCH} images, got {len(maps)}. Give a larger dataset.")
    std, mean = torch.std_mean(maps.float(), (0, 2, 3), keepdim=True)
    torch.manual_seed(0)
    task, layer = TASKS["semseg"], nn.Conv2d(maps.shape[1], TASKS["semseg"].channels, 1)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=3e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=epochs * steps)

    def classify(given: Tensor) -> Tensor:
        return layer((given.float() - mean) / (std + 1e-5))

    for _ in tqdm(range(epochs), desc="probing", mininterval=10):
        for rows in torch.randperm(len(maps))[: steps * BATCH].view(-1, BATCH):
            task.loss(classify(maps[rows]), labels[rows]).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    metric = task.metric()
    with torch.no_grad():
        for given, expected in zip(*(part.split(BATCH) for part in val), strict=True):
            metric.add_batch(predictions=classify(given), references=expected)
    return metric.compute()["mIoU"]


def load_classes(folder: Path) -> Dataset:
    files = {split: sorted(map(str, folder.glob(f"{split}*.parquet"))) for split in ("train", "val")}
    if not all(files.values()):
        raise FileNotFoundError(f"--data {folder}: train*.parquet and val*.parquet are needed.")
    return load_dataset("parquet", data_files=files).cast_column("image", Image(mode="RGB"))


def main(arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    data = load_classes(arguments.data) if arguments.data else {}
    results: dict[str, dict[str, float]] = {}
    for name in arguments.encoders:
        encoder, scores = FrozenEncoder(name), results.setdefault(name, {})
        if data:
            train, val = (find_features(encoder, data[split], arguments.image_size) for split in ("train", "val"))
            scores |= {"neighbours": neighbour_accuracy(train, val), "linear": linear_accuracy(train, val)}
        if arguments.probe:
            scores["probe"] = probe(*(read_probe_split(encoder, arguments.probe, split) for split in ("train", "val")))
        print(name, {measure: f"{percent:.2f} %" for measure, percent in scores.items()}, flush=True)
    return results


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoders", nargs="+", required=True, help="Encoders for load_encoder, or models of timm.")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="Labelled images for classification.")
    parser.add_argument("--image_size", type=int, default=128, help="Side of the images in classification, in pixels.")
    parser.add_argument("--probe", type=Path, metavar="FOLDER", help="PASCAL_MT folder for the linear probe.")
    arguments = parser.parse_args(argv)
    if not arguments.data and not arguments.probe:
        parser.error("Nothing to measure. Give --data, --probe, or both.")
    return arguments


if __name__ == "__main__":
    main(parse_arguments())
