# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Shards: files of crops of photographs, with the teacher's outputs or with labels.

A folder of shards holds `00000.safetensors`, `00001.safetensors` and so on, and the settings that its shards share in
`settings.json`. The tensor `images` of a shard has the crops for the student, as integers from 0 to 255, `(crops, 3,
image_size, image_size)`. Beside it are the outputs that `Teacher` describes, or `labels`, `(crops,)`.
"""

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, Image, load_dataset
from distillation.teacher import Teacher
from safetensors.torch import load_file, save_file
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.functional import pil_to_tensor, resize
from tqdm.auto import trange

from peft_polyhistor.training.files import locked, read_json, replacing, write_json


BICUBIC = InterpolationMode.BICUBIC
SHARED_SETTINGS = ("teacher", "shard_size", "teacher_size", "image_size")  # of all shards in a folder
Shard = dict[str, Tensor]  # the first axis of each tensor is the crop


def write_shards(arguments: argparse.Namespace, device: torch.device) -> None:
    """Writes the shards that the folder lacks.

    Args:
        arguments: Arguments of pretrain_encoder.py.
        device: Device of the teacher.

    Raises:
        ValueError: The folder has shards of another teacher, or of other sizes.
        BlockingIOError: Another run writes shards into the folder.
    """
    (folder,), shares = arguments.teacher_outputs, split_shares(arguments.data)
    columns = ["image"] if arguments.teacher else ["image", "label"]
    photographs = [load_photographs(source, columns) for source in shares]
    teacher = Teacher(arguments.teacher, device) if arguments.teacher else None
    settings, record = {name: getattr(arguments, name) for name in SHARED_SETTINGS}, folder / "settings.json"
    with locked(folder):
        if record.exists() and (found := read_json(record)) != settings:
            raise ValueError(f"--teacher_outputs {folder} has shards of {found}, not {settings}. Give another folder.")
        write_json(record, settings)
        for number in trange(arguments.shards, desc="shards"):
            file = folder / f"{number:05}.safetensors"
            if not file.exists():
                shard = make_shard(number, photographs, list(shares.values()), teacher, arguments)
                with replacing(file) as fresh:
                    save_file(shard, fresh)


def split_shares(sources: list[str]) -> dict[str, float]:
    """Splits items FOLDER=NUMBER into folders and their shares, which add up to 1; the number defaults to 1.

    Raises:
        ValueError: A number is not above 0.
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


def load_photographs(source: str, columns: list[str]) -> Dataset:
    """Loads the training photographs of a folder.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: The photographs lack one of the columns.
    """
    if not Path(source).is_dir():
        raise FileNotFoundError(f"--data {source}: no such folder. Give FOLDER or FOLDER=SHARE.")
    files = sorted(str(path) for path in Path(source).glob("train*.parquet"))
    data = load_dataset("parquet", data_files=files) if files else load_dataset("imagefolder", data_dir=source)
    if missing := sorted(set(columns) - set(data["train"].column_names)):
        raise ValueError(f"'{source}' lacks the columns {missing}; it has {data['train'].column_names}.")
    return data["train"].select_columns(columns).cast_column("image", Image(mode="RGB"))


def make_shard(
    number: int,
    photographs: list[Dataset],
    shares: list[float],
    teacher: Teacher | None,
    arguments: argparse.Namespace,
) -> Shard:
    """Makes a shard; its crops depend only on its number and on what they are drawn from."""
    torch.manual_seed(number)  # RandomResizedCrop draws from PyTorch
    rng = np.random.default_rng(number)
    chosen = [photographs[source] for source in rng.choice(len(photographs), arguments.shard_size, p=shares)]
    rows = [data[int(rng.integers(len(data)))] for data in chosen]
    crop = RandomResizedCrop(arguments.teacher_size, (arguments.smallest_crop, 1), interpolation=BICUBIC)
    crops = [crop(row["image"]) for row in rows]
    images = torch.stack([pil_to_tensor(resize(image, [arguments.image_size] * 2, BICUBIC)) for image in crops])
    if teacher is None:
        return {"images": images, "labels": torch.tensor([row["label"] for row in rows])}
    batches = torch.stack([pil_to_tensor(image) for image in crops]).split(arguments.teacher_batch_size)
    outputs = [teacher(batch) for batch in batches]
    return {"images": images} | {name: torch.cat([output[name] for output in outputs]) for name in outputs[0]}


def load_folders(folders: list[Path]) -> list[list[Shard]]:
    """Loads the shards of each folder, those of the smallest crops first.

    Raises:
        ValueError: The shards of two folders differ in their outputs, e.g. because their teachers have other maps.
    """
    loaded = sorted(map(load_shards, folders), key=lambda shards: shards[0]["images"].shape[-1])
    channels = [{name: math.prod(tensor.shape[1:2]) for name, tensor in shards[0].items()} for shards in loaded]
    if other := next((found for found in channels if found != channels[0]), None):
        raise ValueError(
            f"--teacher_outputs {' '.join(map(str, folders))} have outputs with these channels: {channels[0]} and "
            f"{other}. Give folders of one teacher."
        )
    return loaded


def load_shards(folder: Path) -> list[Shard]:
    """Maps the files of the shards into memory; only the parts that are used are read.

    Raises:
        FileNotFoundError: The folder has fewer than two shards.
        ValueError: The tensors of two shards differ in their names or shapes.
    """
    files = sorted(folder.glob("*.safetensors"))
    if len(files) < 2:
        raise FileNotFoundError(f"--teacher_outputs {folder}: {len(files)} shards. Make two or more with --data.")
    shards = [load_file(file) for file in files]
    shapes = [{name: tensor.shape for name, tensor in shard.items()} for shard in shards]
    if wrong := next((file for file, shape in zip(files, shapes, strict=True) if shape != shapes[0]), None):
        raise ValueError(f"{wrong} and {files[0]} were made with other settings. Give a folder for each.")
    return shards


def draw_batch(shards: list[Shard], count: int, rng: np.random.Generator) -> tuple[Shard, Tensor]:
    """Draws random crops with their outputs, and which of them to flip."""
    size = len(shards[0]["images"])
    rows = [divmod(row, size) for row in rng.integers(len(shards) * size, size=count)]
    batch = {name: torch.stack([shards[number][name][row] for number, row in rows]) for name in shards[0]}
    return batch, torch.from_numpy(rng.random(count) < 0.5)
