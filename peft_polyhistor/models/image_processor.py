# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The image processor of dense models, which runs save and `publish` uploads with a checkpoint."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate.utils import is_compiled_module
from peft import PeftModel
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature

from ..checks import check_image, check_sides, check_statistics
from ..tasks.task import to_bytes
from .multitask_config import IMAGENET_MEAN, IMAGENET_STD, IMAGES, MultiTaskDenseConfig


FILE = "preprocessor_config.json"


def is_saved(file: Path) -> bool:
    """Tells whether a file holds a `DenseImageProcessor`, and not an image processor of another model."""
    if not file.is_file():
        return False
    try:
        kind = json.loads(file.read_text(encoding="utf-8")).get("image_processor_type")
    except (ValueError, AttributeError, RecursionError):
        return True  # a damaged file, which `from_pretrained` refuses
    return kind == "DenseImageProcessor"


def normalize_image_size(image_size: int | Sequence[int]) -> tuple[int, int]:
    """Returns `image_size` as (height, width) in pixels, where an int is the side of a square."""
    check_sides("image_size", image_size)
    height, width = image_size if isinstance(image_size, Sequence) else (image_size, image_size)
    return height, width


def images_of(model: Any) -> dict[str, Any]:
    """Returns `image_size`, `image_mean` and `image_std` of the images that a dense model was trained with.

    Adapters record their own when they are created, and those of the active adapter come before those of the model.
    A size that is not known is `None`.

    Raises:
        TypeError: `model` is no dense model.
    """
    if is_compiled_module(model):
        model = model._orig_mod  # its class tells whether it is adapted
    config = getattr(model, "config", None)
    if not isinstance(config, MultiTaskDenseConfig):
        raise TypeError(
            f"This needs a MultiTaskDenseModel, adapted or not, got {type(model).__name__}. Load one with "
            "peft_polyhistor.load, or add decoders with MultiTaskDenseModel.from_encoder."
        )
    names = model.active_adapters if isinstance(model, PeftModel) else []
    made_for = [getattr(model.peft_config.get(name), "made_for", None) or {} for name in names]
    records = [record.get("decoders") or {} for record in made_for]
    settings = {name: getattr(config, name) for name in IMAGES}
    for record in reversed(records):
        settings |= {name: record[name] for name in IMAGES if record.get(name) is not None}
    return settings


def from_array(values: np.ndarray) -> Image.Image:
    """Converts an array to an image; ValueError unless it is uint8 `(height, width)` or `(height, width, 3)`."""
    if values.dtype != np.uint8 or values.ndim not in (2, 3) or values.shape[2:] not in ((), (3,)) or not values.size:
        raise ValueError(
            f"An image array must be uint8 (height, width) or (height, width, 3), got {values.dtype} of shape "
            f"{values.shape}. Scale and round its values to 0 ... 255, channels last."
        )
    return Image.fromarray(values)


class DenseImageProcessor(BaseImageProcessor):
    """Prepares images as in the training and evaluation of dense models.

    Images are resized with a bicubic kernel and antialiasing, without keeping their aspect ratio, rounded to 8 bits,
    divided by 255 and normalised.

    Args:
        image_size: Side or (height, width) in pixels.
        image_mean: Mean of each channel in [0, 1]; defaults to that of ImageNet.
        image_std: Standard deviation of each channel; defaults to that of ImageNet.

    Raises:
        ValueError: A size or a number is out of its range.
    """

    model_input_names = ["pixel_values"]  # noqa: RUF012  # as in transformers

    def __init__(
        self,
        image_size: int | Sequence[int] = 512,
        image_mean: Sequence[float] = IMAGENET_MEAN,
        image_std: Sequence[float] = IMAGENET_STD,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.image_size = list(normalize_image_size(image_size))
        check_statistics(image_mean, image_std)
        self.image_mean, self.image_std = list(image_mean), list(image_std)

    def __call__(self, images: Any, *args: Any, **kwargs: Any) -> BatchFeature:
        """See `preprocess`."""
        return self.preprocess(images, *args, **kwargs)

    def preprocess(self, images: Any, return_tensors: str | None = "pt") -> BatchFeature:
        """Prepares images as `pixel_values` `(batch, 3, height, width)`.

        Args:
            images: A Pillow image, a uint8 array or tensor `(height, width)` or `(height, width, 3)`, or a
                sequence of them.
            return_tensors: "pt" or "np", as in transformers.

        Raises:
            ValueError: There is no image; or one has more than 8 bits per channel, or another shape.
        """
        is_list = isinstance(images, Sequence) and not isinstance(images, str | bytes | bytearray)
        images = list(images) if is_list else [images]
        if not images:
            raise ValueError("There are no images to prepare. Give at least one.")
        height, width = self.image_size
        pixel_values = []
        for image in images:
            image = image if isinstance(image, Image.Image) else from_array(np.asarray(image))
            check_image("The image", image)
            pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
            if pixels.shape[1:] != (height, width):
                pixels = F.interpolate(pixels[None], (height, width), mode="bicubic", antialias=True)[0]
            pixel_values.append(self.normalize_pixels(pixels))
        values: Any = torch.stack(pixel_values)
        return BatchFeature({"pixel_values": values}, tensor_type=return_tensors)

    def normalize_pixels(self, pixels: Tensor) -> Tensor:
        """Rounds values `(3, height, width)` to integers from 0 to 255, and normalises them."""
        # A bicubic kernel can overshoot this range.
        pixels = pixels.float().round_().clamp_(0, 255)
        mean, std = (torch.tensor(values).view(3, 1, 1) * 255 for values in (self.image_mean, self.image_std))
        return pixels.sub_(mean).div_(std)

    def paint(self, pixel_values: Tensor) -> np.ndarray:
        """Undoes the normalisation of an image `(3, height, width)`; returns `(height, width, 3)` uint8."""
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.image_mean, self.image_std))
        return to_bytes(pixel_values.cpu().float() * std + mean)

    @classmethod
    def from_model(
        cls, model: PreTrainedModel | PeftModel, image_size: int | Sequence[int] | None = None
    ) -> "DenseImageProcessor":
        """Creates the processor that a dense model was trained with, or is to be trained with.

        Args:
            model: A `MultiTaskDenseModel`, adapted or not.
            image_size: Side or (height, width) in pixels; `None` for that of the model.

        Raises:
            TypeError: `model` is no dense model.
            ValueError: `image_size` is out of its range, or `None` for a model that has none.
        """
        settings = images_of(model)
        if image_size is not None:
            settings["image_size"] = image_size
        if settings["image_size"] is None:
            raise ValueError("The config of the model has no `image_size`. Give image_size=, such as 512.")
        return cls(**settings)

    @classmethod
    def save_for(cls, model: Any, folder: str | Path) -> None:
        """Saves the processor of a dense model whose size of images is known; does nothing for other models."""
        if isinstance(getattr(model, "config", None), MultiTaskDenseConfig) and images_of(model)["image_size"]:
            cls.from_model(model).save_pretrained(str(folder))


def check_processor(processor: Any) -> None:
    """Raises TypeError for an image processor of another class, which prepares images in its own way."""
    if not isinstance(processor, DenseImageProcessor):
        raise TypeError(
            f"`processor` must be a DenseImageProcessor, got a {type(processor).__name__}. Create one from its size, "
            "mean and standard deviation: DenseImageProcessor(image_size, image_mean, image_std)."
        )


AutoImageProcessor.register(MultiTaskDenseConfig, slow_image_processor_class=DenseImageProcessor, exist_ok=True)
