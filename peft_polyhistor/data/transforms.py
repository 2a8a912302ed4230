# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Joint transforms of a picture and its dense labels: flip, rotation, scale, resize and the ignore rules.

The order and ranges are those of Polyhistor's line of papers: flip; rotation and scale about the centre on the same
canvas, at the picture's own size; resize to the training size. Pictures are interpolated with a cubic kernel, and the
border that a turn exposes is black. What becomes of a label, the kind of its task says.

Note: The papers' code interpolates once for the draw and once for the size, with OpenCV, whose cubic kernel skips
pixels on shrinking. Here what grows is interpolated once in all, and on shrinking the kernel widens (antialias).
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from ..checks import check_truth, check_whole
from ..models.image_processor import DenseImageProcessor
from ..tasks import TASKS, Task, get_tasks
from .geometry import Draw, Geometry


# Augmentation of the Polyhistor line: degrees, and factors about 1.
_MAX_DEGREES = 20.0
_SCALES = (0.75, 1.25)

_NO_EPOCH = -1


class JointTransform:
    """Turns pictures and labels into training tensors; for `dataset.with_transform`.

    Takes a batch of columns `image_id`, `image` and tasks, rows of `TASKS`, and returns lists of `image_id`,
    `pixel_values` `(3, height, width)` with ImageNet's mean and standard deviation, and targets by task, as the kind
    of the task describes them. Labels are pictures or arrays; `None` stands for one that is missing.

    There are two ways to draw:

    - By default, each time an image is read draws anew from PyTorch's random numbers, as torchvision's transforms do.
      Every epoch sees new versions in any loop, with or without workers. `torch.manual_seed`, or the `seed` of
      `TrainingArguments`, and the same number of workers give the same versions again, and a checkpoint of `Trainer`
      holds the state of the random numbers.
    - After `set_epoch`, draws depend on `seed`, that epoch and the id of the image, and on nothing else: not on
      worker, batch or order. Call it before every epoch, as a loop without calls repeats the last one. The epoch lies
      in shared memory, so that it reaches workers that run already, and copies of the dataset.

    Args:
        image_size: Side or (height, width) of the result in pixels; the ratio is not kept. Or the processor of images,
            for another mean and standard deviation than ImageNet's.
        train: Flip, turn and scale at random; otherwise only resize.
        seed: Seed of the draws, 0 or more; part of both ways.
    """

    def __init__(self, image_size: int | tuple[int, int] | DenseImageProcessor, train: bool, seed: int = 0):
        check_whole("seed", seed)
        check_truth("train", train)
        self.processor = image_size if isinstance(image_size, DenseImageProcessor) else DenseImageProcessor(image_size)
        height, width = self.processor.image_size
        self.image_size = height, width
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
            ValueError: A column is missing or no task, a picture is none or of more than 8 bits, or a label is no
                picture, of a wrong mode or size, or holds values that its task does not have.
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
            _check_image(image_id, image)
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
            # Above every epoch, so that no image gets the draw of one.
            epoch = 2**63 + int(torch.empty((), dtype=torch.int64, device="cpu").random_())
        # The text of an id, so that 7 is the same id in any type of number.
        random = np.random.default_rng((self.seed, epoch, crc32(str(image_id).encode())))
        flip = random.random() < 0.5
        return Draw(flip, random.uniform(-_MAX_DEGREES, _MAX_DEGREES), random.uniform(*_SCALES))


def collate(samples: Sequence[Mapping[str, Any]], tasks: Sequence[str] | None = None) -> dict[str, Any]:
    """Stacks samples of `JointTransform` to `pixel_values` and `labels` by task, batch first; ids are dropped.

    A sample without the label of a task is unlabeled there: it gives no loss and no score.

    Args:
        samples: Their images have one size.
        tasks: Those to have labels for, in every batch; `None` takes those of any sample.

    Raises:
        ValueError: A sample has a label of no row of `TASKS`.
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


def _check_image(image_id: Any, image: Any) -> None:
    mode = getattr(image, "mode", None)
    if mode is None or mode[0] in "IF":  # of 16 and 32 bits, which would become white
        found = f"mode {mode}" if mode else repr(image)
        raise ValueError(
            f"The image of {image_id} must be a picture of 8 bits a channel, such as of mode RGB or L, got {found}. "
            "Convert it, or leave out the row."
        )


def _to_target(image_id: Any, row: Task, label: Any, size: tuple[int, int], geometry: Geometry) -> Tensor:
    if label is None:
        return row.unlabeled(geometry.image_size)
    picture = row.to_picture(label)
    try:
        row.check_stored(picture, size)
        return row.to_target(picture, geometry)
    except ValueError as error:
        raise ValueError(f"{row.name} of {image_id}: {error}.") from error
