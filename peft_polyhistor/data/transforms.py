# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Joint transforms of an image and its dense labels: flip, rotation, scale and resize.

Order and ranges follow the papers that Polyhistor builds on: flip; rotation and scale about the centre, within the
original frame; resize to the training size. Images are interpolated with a cubic kernel, and the border that a
rotation exposes is black. The kind of a task decides how its labels are transformed.

Note: The code of the papers interpolates twice, once for the draw and once for the size, with OpenCV, whose cubic
kernel skips pixels when it shrinks. Here, a side that grows is interpolated once, and shrinking uses antialias.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from ..checks import check_image, check_number, check_probability, check_truth, check_whole
from ..models.image_processor import DenseImageProcessor
from ..tasks import TASKS, Task, get_tasks
from ..tasks.table import CarriesTasks
from .geometry import Draw, Geometry


# Augmentation of these papers: rotation in degrees, and the distance of scale factors from 1.
_MAX_DEGREES = 20.0
_MAX_ZOOM = 0.25

_NO_EPOCH = -1


class JointTransform(CarriesTasks):
    """Converts images and labels to training tensors; for `dataset.with_transform`.

    Takes a batch with the columns `image_id`, `image` and tasks (rows of `TASKS`). Labels are images or arrays, or
    `None` if they are missing. Returns lists of `image_id`, of normalised `pixel_values` `(3, height, width)`, and of
    the targets of each task.

    The random geometry is drawn in one of two ways:

    - By default, every read of an image draws from PyTorch's random generator, as torchvision's transforms do. Every
      epoch sees new versions, with or without workers. `torch.manual_seed` (or the `seed` of `TrainingArguments`) and
      the same number of workers reproduce them, and a checkpoint of `Trainer` holds the generator's state.
    - After `set_epoch`, a draw depends on `seed`, the epoch and the id of the image only, not on worker, batch or
      order. Call it before every epoch: without a call, the next epoch repeats the last one. The epoch lies in shared
      memory, so it reaches running workers and copies of the dataset.

    Args:
        image_size: Side or (height, width) of the result in pixels, for the mean and standard deviation of ImageNet;
            the aspect ratio is not kept. Or an image processor, e.g. `DenseImageProcessor.from_model(model)`, for
            those of the encoder.
        train: Whether to flip, rotate and scale at random; otherwise images are only resized.
        seed: Seed of the draws, 0 or more; used in both ways.
        strength: Strength of rotation and scale, from 0 to below 4: up to 20 * `strength` degrees, and factors up to
            0.25 * `strength` from 1. Polyhistor's line uses 1. With 0, images are only flipped and resized, which
            suits runs that see each image a few times.
        flip: Probability of a left-right flip, from 0 to below 1. Give 0 if classes tell left from right, or a
            regression is signed along the width: a flip does not swap them.

    Raises:
        ValueError: `image_size`, `seed`, `strength` or `flip` is out of its range.
    """

    def __init__(
        self,
        image_size: int | tuple[int, int] | DenseImageProcessor,
        train: bool,
        seed: int = 0,
        strength: float = 1.0,
        flip: float = 0.5,
    ):
        check_whole("seed", seed)
        check_truth("train", train)
        check_number("strength", strength)
        check_probability("flip", flip)
        if not 0 <= strength * _MAX_ZOOM < 1:
            raise ValueError(f"`strength` must be from 0 to below {1 / _MAX_ZOOM:g}, got {strength}.")
        self.processor = image_size if isinstance(image_size, DenseImageProcessor) else DenseImageProcessor(image_size)
        height, width = self.processor.image_size
        self.image_size = height, width
        self.train = train
        self.seed = seed
        self.strength = strength
        self.flip = flip
        self._epoch = torch.full((), _NO_EPOCH).share_memory_()

    def __deepcopy__(self, memo: dict[int, Any]) -> "JointTransform":
        # `datasets` copies the transform for derived datasets; all copies share one epoch.
        return copy.copy(self)

    def set_epoch(self, epoch: int) -> None:
        """Makes the following images use the draws of `epoch`, 0 or more, until the next call."""
        check_whole("epoch", epoch)
        self._epoch.fill_(epoch)

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """Transforms a batch of columns.

        Raises:
            ValueError: A column is missing or is no task; an image has more than 8 bits per channel; or a label has
                a wrong type, mode or size, or values that its task does not allow.
        """
        missing = {"image_id", "image"} - batch.keys()
        if missing:
            raise ValueError(
                f"JointTransform needs the columns image_id and image, got {sorted(batch)}. Add {sorted(missing)}; to "
                "read single columns, use the dataset without this transform."
            )
        unknown = [name for name in batch if name not in ("image_id", "image", *TASKS)]
        if unknown:
            raise ValueError(
                f"The columns {unknown} are no tasks; known are {', '.join(TASKS)}. Register their rows with "
                "`register_task`, or leave them out with `dataset.select_columns`."
            )
        rows = [TASKS[name] for name in batch if name in TASKS]
        result: dict[str, list[Any]] = {"image_id": list(batch["image_id"]), "pixel_values": []}
        result |= {row.name: [] for row in rows}
        for index, (image_id, image) in enumerate(zip(batch["image_id"], batch["image"], strict=True)):
            check_image(f"The image of {image_id}", image)
            draw = self._draw(image_id) if self.train else None
            geometry = Geometry((image.height, image.width), self.image_size, draw)
            pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
            result["pixel_values"].append(self.processor.normalize_pixels(geometry.interpolate(pixels)))
            for row in rows:
                result[row.name].append(_to_target(image_id, row, batch[row.name][index], image.size, geometry))
        return result

    def _draw(self, image_id: Any) -> Draw:
        epoch = int(self._epoch)
        if epoch == _NO_EPOCH:
            # Larger than every epoch, so no such draw equals that of an epoch.
            epoch = 2**63 + int(torch.empty((), dtype=torch.int64, device="cpu").random_())
        # The id as text, so that 7 is the same id in any integer type.
        random = np.random.default_rng((self.seed, epoch, crc32(str(image_id).encode())))
        flip = random.random() < self.flip
        degrees, zoom = self.strength * _MAX_DEGREES, self.strength * _MAX_ZOOM
        return Draw(flip, random.uniform(-degrees, degrees), random.uniform(1 - zoom, 1 + zoom))


def collate(samples: Sequence[Mapping[str, Any]], tasks: Sequence[str] | None = None) -> dict[str, Any]:
    """Stacks samples of `JointTransform` into `pixel_values` and `labels` by task, and drops the ids.

    A sample without a label for a task is unlabelled there, so it adds no loss and no score.

    Args:
        samples: Samples whose images have one size.
        tasks: Tasks in the labels of every batch; `None` takes the tasks that occur in a sample.

    Raises:
        ValueError: A sample has a label for a task that is no row of `TASKS`.
    """
    if tasks is None:
        found = (name for sample in samples for name in sample if name not in ("image_id", "pixel_values"))
        tasks = list(dict.fromkeys(found))
    pixel_values = torch.stack([sample["pixel_values"] for sample in samples])
    size = (pixel_values.shape[-2], pixel_values.shape[-1])

    def find(sample: Mapping[str, Any], row: Task) -> Tensor:
        label: Tensor | None = sample.get(row.name)
        return row.unlabeled(size) if label is None else label

    rows = get_tasks(tasks) if tasks else []
    labels = {row.name: torch.stack([find(sample, row) for sample in samples]) for row in rows}
    return {"pixel_values": pixel_values, "labels": labels}


def _to_target(image_id: Any, row: Task, label: Any, size: tuple[int, int], geometry: Geometry) -> Tensor:
    if label is None:
        return row.unlabeled(geometry.image_size)
    try:
        stored = row.to_image(label)
        row.check_stored(stored, size)
        return row.to_target(stored, geometry)
    except ValueError as error:
        raise ValueError(f"{row.name} of {image_id}: {error}.") from error
