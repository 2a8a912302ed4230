# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Joint transforms of a picture and its dense labels: flip, rotation, scale, resize and the ignore rules.

The order and ranges are those of Polyhistor's line of papers: flip; rotation and scale about the centre on the same
canvas, at the picture's own size; resize to the training size. Pictures and normals are interpolated with a cubic
kernel, the other labels take the nearest pixel. The border that a turn exposes is black in the picture, class 0 in
semseg and human_parts, 0 in saliency and ignored in normals.

Note: The papers' code interpolates once for the draw and once for the size, with OpenCV, whose cubic kernel skips
pixels on shrinking. Here what grows is interpolated once in all, and on shrinking the kernel widens (antialias).
"""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any
from zlib import crc32

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..checks import check_truth, check_whole
from .archive import DENSE_TASKS
from .decode import IGNORE, NUM_PART_CLASSES, NUM_SEMSEG_CLASSES, find_normals, least_foreground
from .geometry import Draw, Geometry


# ImageNet's statistics of RGB in [0, 1] (torchvision).
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Augmentation of the Polyhistor line: degrees, and factors about 1.
_MAX_DEGREES = 20.0
_SCALES = (0.75, 1.25)

NUM_CLASSES = {"semseg": NUM_SEMSEG_CLASSES, "human_parts": NUM_PART_CLASSES}

_NO_EPOCH = -1

# Shorter vectors than this hold no direction.
_MIN_LENGTH = 1e-6


def normalize_image_size(image_size: int | Sequence[int]) -> tuple[int, int]:
    """`image_size` as (height, width) in pixels; an int means a square. ValueError unless both are at least 1."""
    size = tuple(image_size) if isinstance(image_size, Sequence) else (image_size, image_size)
    if len(size) != 2 or not all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in size):
        raise ValueError(f"`image_size` must be a side or (height, width), whole pixels above 0, got {image_size!r}.")
    height, width = size
    return height, width


def flip_normals(normals: Tensor) -> Tensor:
    """Normals `(..., 3, height, width)` as a mirror shows them: x changes sign. The pixels stay where they are."""
    return normals * normals.new_tensor([-1, 1, 1]).view(3, 1, 1)


def rotate_normals(normals: Tensor, degrees: float) -> Tensor:
    """Turns the vectors `(..., 3, height, width)` with a picture turned counter-clockwise on screen.

    (nx, ny, nz) -> (nx cos t + ny sin t, -nx sin t + ny cos t, nz)

    The pixels stay where they are.
    """
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    matrix = normals.new_tensor([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
    return (matrix @ normals.flatten(-2)).view_as(normals)


class JointTransform:
    """Turns pictures and labels into training tensors; for `dataset.with_transform`.

    Takes a batch of columns `image_id`, `image` and tasks, returns lists of `image_id`, `pixel_values`
    `(3, height, width)` with ImageNet's mean and standard deviation, and for the tasks present: `semseg` and
    `human_parts` int64 `(height, width)` with 255 = ignore, `saliency` float32 0 or 1 `(1, height, width)`, `normals`
    float32 unit vectors `(3, height, width)`, zero = ignore. A human_parts label without any part is ignored whole.

    - A saliency label that holds 0 and 1 alone is a mask; of any other, values above 127 are foreground.
    - A color of normals whose length, value / 127.5 - 1, is not within 0.25 of 1 has no normal: black, white and gray.

    There are two ways to draw:

    - By default, each time an image is read draws anew from PyTorch's random numbers, as torchvision's transforms do.
      Every epoch sees new versions in any loop, with or without workers. `torch.manual_seed`, or the `seed` of
      `TrainingArguments`, and the same number of workers give the same versions again, and a checkpoint of `Trainer`
      holds the state of the random numbers.
    - After `set_epoch`, draws depend on `seed`, that epoch and the id of the image, and on nothing else: not on
      worker, batch or order. Call it before every epoch, as a loop without calls repeats the last one. The epoch lies
      in shared memory, so that it reaches workers that run already, and copies of the dataset.

    Args:
        image_size: Side or (height, width) of the result in pixels; the ratio is not kept.
        train: Flip, turn and scale at random; otherwise only resize.
        seed: Seed of the draws, 0 or more; part of both ways.
    """

    def __init__(self, image_size: int | tuple[int, int], train: bool, seed: int = 0):
        check_whole("seed", seed)
        check_truth("train", train)
        self.image_size = normalize_image_size(image_size)
        self.train = train
        self.seed = seed
        self._epoch = torch.full((), _NO_EPOCH).share_memory_()

    def __deepcopy__(self, memo: dict[int, Any]) -> "JointTransform":
        # `datasets` copies the transform when it derives one set from another: all follow one epoch.
        return copy.copy(self)

    def set_epoch(self, epoch: int) -> None:
        """Makes the following images use the draws of `epoch`, 0 or more, until the next call."""
        check_whole("epoch", epoch)
        self._epoch.fill_(epoch)

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """Transforms a batch of columns.

        Raises:
            ValueError: A column is missing, a picture is none or of more than 8 bits, or a label is no picture, of a
                wrong mode or of another size.
        """
        missing = {"image_id", "image"} - batch.keys()
        if missing:
            raise ValueError(
                f"JointTransform needs the columns image_id and image, got {sorted(batch)}. Add {sorted(missing)}; to "
                "read single columns, use the dataset without this transform."
            )
        tasks = [task for task in DENSE_TASKS if task in batch]
        result = {"image_id": list(batch["image_id"]), "pixel_values": []} | {task: [] for task in tasks}
        for row, (image_id, image) in enumerate(zip(batch["image_id"], batch["image"], strict=True)):
            _check_image(image_id, image)
            draw = self._draw(image_id) if self.train else None
            geometry = Geometry((image.height, image.width), self.image_size, draw)
            result["pixel_values"].append(_to_pixel_values(image, geometry))
            for task in tasks:
                label = batch[task][row]
                _check_label(image_id, task, label, image.size)
                result[task].append(_to_label(image_id, task, label, geometry))
        return result

    def _draw(self, image_id: Any) -> Draw:
        epoch = int(self._epoch)
        if epoch == _NO_EPOCH:
            # Above every epoch, so that no image gets the draw of one.
            epoch = 2**63 + int(torch.empty((), dtype=torch.int64, device="cpu").random_())
        # The text of an id, so that 7 is the same id in any type of number.
        random = np.random.default_rng((self.seed, epoch, crc32(str(image_id).encode())))
        flip = random.random() < 0.5
        return Draw(flip, random.uniform(-_MAX_DEGREES, _MAX_DEGREES), random.uniform(*_SCALES))


def collate(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Stacks samples of `JointTransform` to `pixel_values` and `labels` by task, batch first; ids are dropped."""
    tasks = [task for task in DENSE_TASKS if task in samples[0]]
    return {
        "pixel_values": torch.stack([sample["pixel_values"] for sample in samples]),
        "labels": {task: torch.stack([sample[task] for sample in samples]) for task in tasks},
    }


def _check_image(image_id: Any, image: Any) -> None:
    mode = getattr(image, "mode", None)
    if mode is None or mode[0] in "IF":  # of 16 and 32 bits, which would become white
        found = f"mode {mode}" if mode else repr(image)
        raise ValueError(
            f"The image of {image_id} must be a picture of 8 bits a channel, such as of mode RGB or L, got {found}. "
            "Convert it, or leave out the row."
        )


def _check_label(image_id: Any, task: str, label: Any, size: tuple[int, int]) -> None:
    modes = ("RGB",) if task == "normals" else ("L", "P")
    mode = getattr(label, "mode", None)
    if mode not in modes:
        found = f"mode {mode}" if mode else repr(label)
        raise ValueError(f"{task} of {image_id} must be a picture of mode {' or '.join(modes)}, got {found}.")
    if label.size != size:
        raise ValueError(
            f"{task} of {image_id} is {label.size[0]} x {label.size[1]} pixels, its picture {size[0]} x {size[1]}. "
            "Labels must have their picture's size."
        )


def _to_pixel_values(image: Image.Image, geometry: Geometry) -> Tensor:
    pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    # Whole values, as decoding gives them; a cubic kernel overshoots.
    pixels = geometry.interpolate(pixels).float().round_().clamp_(0, 255)
    mean, std = (torch.tensor(values).view(3, 1, 1) * 255 for values in (IMAGENET_MEAN, IMAGENET_STD))
    return pixels.sub_(mean).div_(std)


def _to_label(image_id: Any, task: str, label: Image.Image, geometry: Geometry) -> Tensor:
    if task == "normals":
        return _to_normals(label, geometry)
    values = geometry.take_nearest(label)
    if task == "saliency":
        try:
            foreground = values >= least_foreground(label)
        except ValueError as error:
            raise ValueError(f"saliency of {image_id}: {error}.") from error
        return torch.from_numpy(foreground)[None].float()
    classes = NUM_CLASSES[task]
    wrong = values[(values >= classes) & (values != IGNORE)]
    if wrong.size:
        raise ValueError(
            f"{task} of {image_id} holds values up to {wrong.max()}; allowed are the class ids 0 to {classes - 1} and "
            f"{IGNORE} for pixels to ignore. Map other values to {IGNORE}."
        )
    if task == "human_parts" and not values.any():
        values.fill(IGNORE)
    return torch.from_numpy(values).long()


def _to_normals(label: Image.Image, geometry: Geometry) -> Tensor:
    stored = np.array(label)
    valid = torch.from_numpy(find_normals(stored))
    colors = torch.from_numpy(stored).permute(2, 0, 1).contiguous()
    normals = geometry.interpolate(colors.float().div_(127.5).sub_(1).mul_(valid))
    draw = geometry.draw
    if draw is not None:
        normals = rotate_normals(flip_normals(normals) if draw.flip else normals, draw.degrees)
    # Zeros around a valid pixel shorten its vector and leave its direction to its valid neighbours.
    kept = torch.from_numpy(geometry.take_nearest(Image.fromarray(valid.byte().numpy())))
    length = normals.square().sum(dim=0).sqrt_()  # far faster than `norm` over the first axis
    return normals.mul_(torch.where((kept > 0) & (length > _MIN_LENGTH), 1 / length, 0))
