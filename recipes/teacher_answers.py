# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Writes crops of photographs, and what a teacher answers to each, for pretrain_encoder.py to learn from.

    python recipes/teacher_answers.py --data FOLDER=3 OTHER=1 --teacher timm/tf_efficientnet_lite2.in1k \
        --output-dir runs/answers

The answers are the logits and the last maps of stride 8, 16 and 32. The teacher works once for every crop, whatever
learns from it and for how long ("fast knowledge distillation", arXiv:2112.01528). Without `--teacher` the answers are
the column `label`. An interrupted run goes on with the next shard, and a larger `--shards` adds to those there are.
"""

import argparse
import os
from pathlib import Path

import numpy as np
import timm
import torch
from accelerate import Accelerator
from datasets import Dataset, Image, load_dataset
from safetensors.torch import save_file
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.functional import pil_to_tensor, resize
from tqdm.auto import trange
from transformers import AutoImageProcessor, AutoModelForImageClassification


BICUBIC = InterpolationMode.BICUBIC


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data",
        required=True,
        nargs="+",
        metavar="FOLDER[=SHARE]",
        help="photographs: train*.parquet with the column `image`, or an image folder; its share of the crops",
    )
    parser.add_argument("--teacher", help="folder or Hub id of transformers; of timm as 'local-dir:...' or 'timm/...'")
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--shards", type=int, default=100)
    parser.add_argument("--shard-size", type=int, default=512, help="crops of a shard, about 170 KB each")
    parser.add_argument("--teacher-size", type=int, default=192, help="pixels of a crop as the teacher sees it")
    parser.add_argument("--image-size", type=int, default=128, help="pixels of a crop as it is written")
    parser.add_argument("--smallest-crop", type=float, default=0.25, help="its share of the photograph's area")
    parser.add_argument("--batch-size", type=int, default=16, help="of the teacher")
    arguments = parser.parse_args(argv)
    for name in ("shards", "shard_size", "teacher_size", "image_size", "batch_size"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {getattr(arguments, name)}.")
    return arguments


def load_photographs(source: str, columns: list[str]) -> Dataset:
    """The photographs to train on in one folder.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: A column is missing.
    """
    if not Path(source).is_dir():
        raise FileNotFoundError(f"--data {source}: no such folder. Give FOLDER or FOLDER=SHARE.")
    files = sorted(str(path) for path in Path(source).glob("train*.parquet"))
    data = load_dataset("parquet", data_files=files) if files else load_dataset("imagefolder", data_dir=source)
    if missing := sorted(set(columns) - set(data["train"].column_names)):
        raise ValueError(f"'{source}' lacks the columns {missing}; it has {data['train'].column_names}.")
    return data["train"].select_columns(columns).cast_column("image", Image(mode="RGB"))


def split_shares(sources: list[str]) -> dict[str, float]:
    """The share of each folder, which is in proportion to the numbers given; 1 where there is none.

    Raises:
        ValueError: A share is no number above 0.
    """
    shares = {}
    for source in sources:
        folder, _, share = source.partition("=")
        try:
            shares[folder] = float(share or 1)
        except ValueError:
            shares[folder] = 0.0
        if not 0 < shares[folder] < float("inf"):
            raise ValueError(f"--data {source}: '{share}' is no share. Give a number above 0, e.g. {folder}=2.")
    return {folder: share / sum(shares.values()) for folder, share in shares.items()}


class Teacher:
    """A frozen classifier of timm or transformers."""

    def __init__(self, source: str, device: torch.device):
        self.is_timm = source.startswith(("local-dir:", "hf-hub:", "timm/"))
        if self.is_timm:
            model = timm.create_model(source.replace("timm/", "hf-hub:timm/", 1), pretrained=True).float()
            mean, std = model.pretrained_cfg["mean"], model.pretrained_cfg["std"]
        else:
            model = AutoModelForImageClassification.from_pretrained(source, dtype=torch.float32)
            processor = AutoImageProcessor.from_pretrained(source)
            mean, std = processor.image_mean, processor.image_std
        self.model = model.eval().to(device, memory_format=torch.channels_last)
        self.mean, self.std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (mean, std))

    @torch.inference_mode()
    def __call__(self, crops: Tensor) -> dict[str, Tensor]:
        """The logits and the last map of each stride, in float16.

        Args:
            crops: Integers from 0 to 255, of shape (batch, 3, size, size).

        Raises:
            ValueError: An answer does not fit float16.
        """
        pixels = (crops.to(self.mean.device) / 255 - self.mean) / self.std
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        if self.is_timm:
            last, maps = self.model.forward_intermediates(pixels)
            logits = self.model.forward_head(last)
        else:
            output = self.model(pixels, output_hidden_states=True)
            logits, maps = output.logits, output.get("reshaped_hidden_states", output.hidden_states)
        by_stride = {crops.shape[-1] // m.shape[-1]: m for m in maps if m.ndim == 4}  # the last one of each stays
        answers = {f"map{stride}": by_stride[stride] for stride in (8, 16, 32) if stride in by_stride}
        answers = {name: answer.half().cpu().contiguous() for name, answer in (answers | {"logits": logits}).items()}
        if wrong := [name for name, answer in answers.items() if not answer.isfinite().all()]:
            raise ValueError(f"The teacher's {wrong} hold numbers that are no finite float16. Choose another teacher.")
        return answers


def make_shard(number: int, data: list[Dataset], shares: list[float], teacher: Teacher | None, arguments):
    """The crops of a shard, which depend on its number alone, and their answers."""
    torch.manual_seed(number)  # for the crops
    rng = np.random.default_rng(number)
    chosen = [data[folder] for folder in rng.choice(len(data), arguments.shard_size, p=shares)]
    rows = [photographs[int(rng.integers(len(photographs)))] for photographs in chosen]
    crop = RandomResizedCrop(arguments.teacher_size, (arguments.smallest_crop, 1), interpolation=BICUBIC)
    crops = [crop(row["image"]) for row in rows]
    small = [pil_to_tensor(resize(image, [arguments.image_size] * 2, BICUBIC)) for image in crops]
    if teacher is None:
        return {"images": torch.stack(small), "labels": torch.tensor([row["label"] for row in rows])}
    batches = torch.stack([pil_to_tensor(image) for image in crops]).split(arguments.batch_size)
    answers = [teacher(batch) for batch in batches]
    return {"images": torch.stack(small)} | {name: torch.cat([a[name] for a in answers]) for name in answers[0]}


def main(arguments: argparse.Namespace) -> None:
    shares = split_shares(arguments.data)
    columns = ["image"] if arguments.teacher else ["image", "label"]
    data = [load_photographs(folder, columns) for folder in shares]
    teacher = Teacher(arguments.teacher, Accelerator().device) if arguments.teacher else None
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    for number in trange(arguments.shards, desc="shards"):
        file = arguments.output_dir / f"{number:05}.safetensors"
        if not file.exists():
            save_file(make_shard(number, data, list(shares.values()), teacher, arguments), f"{file}.part")
            os.replace(f"{file}.part", file)


if __name__ == "__main__":
    main(parse_arguments())
