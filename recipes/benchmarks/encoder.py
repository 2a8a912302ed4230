# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""How well the features of frozen encoders tell classes apart: the accuracy of nearest neighbours and a linear layer.

    python recipes/benchmarks/encoder.py --data imagenette_128 --encoders swin-micro runs/pretraining/encoder

`--data` holds `train*.parquet` and `val*.parquet` with the columns `image` and `label`. The features of a photograph
are the last map of the encoder, averaged over its places. The neighbours vote as in DINO (arXiv:2104.14294): the 20
nearest by cosine, weighted by exp(cosine / 0.07).
"""

import argparse
from pathlib import Path

import timm
import torch
from datasets import Dataset, Image, load_dataset
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.functional import normalize, pil_to_tensor, resize
from tqdm.auto import tqdm

from peft_polyhistor import load_encoder


class LastMap(nn.Module):
    """The averaged last map of an encoder of this package, or of a timm model named 'local-dir:...' or 'timm/...'."""

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

    def forward(self, images: Tensor) -> Tensor:
        """(batch, channels), of images from 0 to 1."""
        pixels = normalize(images, self.mean, self.std)
        maps = self.encoder(pixels) if self.is_timm else self.encoder.stage_maps(pixels)
        return maps[-1].mean((2, 3))


@torch.no_grad()
def features_of(encoder: nn.Module, photographs: Dataset, size: int) -> tuple[Tensor, Tensor]:
    """The features of shape (photographs, channels) and the labels."""
    features, labels = [], []
    for start in tqdm(range(0, len(photographs), 32), mininterval=10):
        rows = photographs[start : start + 32]
        images = torch.stack([pil_to_tensor(resize(image, [size, size])) for image in rows["image"]]) / 255
        features.append(encoder(images))
        labels += rows["label"]
    return torch.cat(features), torch.tensor(labels)


def neighbour_accuracy(train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor], count: int = 20) -> float:
    """Percent of the validation photographs whose neighbours among the training ones vote for their class."""
    known, asked = (F.normalize(features, dim=1) for features, _ in (train, val))
    similarity, rows = (asked @ known.T).topk(min(count, len(known)), dim=1)
    ballots = F.one_hot(train[1][rows]) * (similarity / 0.07).exp().unsqueeze(-1)
    return 100 * (ballots.sum(1).argmax(1) == val[1]).double().mean().item()


def linear_accuracy(train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor], steps: int = 100) -> float:
    """Percent of the validation photographs that a logistic regression on normalised features gets right."""
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


def main(arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    files = {split: sorted(map(str, arguments.data.glob(f"{split}*.parquet"))) for split in ("train", "val")}
    if not all(files.values()):
        raise FileNotFoundError(f"--data {arguments.data}: train*.parquet and val*.parquet are needed.")
    data = load_dataset("parquet", data_files=files).cast_column("image", Image(mode="RGB"))
    results = {}
    for name in arguments.encoders:
        encoder = LastMap(name)
        train, val = (features_of(encoder, data[split], arguments.image_size) for split in ("train", "val"))
        results[name] = {"neighbours": neighbour_accuracy(train, val), "linear": linear_accuracy(train, val)}
        print(name, {measure: f"{percent:.2f} %" for measure, percent in results[name].items()}, flush=True)
    return results


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--encoders", nargs="+", required=True, help="as of load_encoder, or models of timm")
    parser.add_argument("--image-size", type=int, default=128, help="pixels")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main(parse_arguments())
