# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The config of a dense multi-task model."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from ..checks import check_number, check_positive, check_probability, check_sides, check_statistics, check_truth
from ..tasks import PASCAL_TASKS, TASKS, declare_tasks, describe_tasks, get_tasks


# ImageNet's statistics of RGB values in [0, 1] (torchvision).
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
IMAGES = "image_size", "image_mean", "image_std"  # settings of the training images


class MultiTaskDenseConfig(PreTrainedConfig):
    """Config of a `MultiTaskDenseModel`.

    Args:
        encoder: Config of the encoder, or the config as a dict. `None` is for `MultiTaskDenseModel.from_encoder`.
        tasks: Names of rows of `TASKS`, or mappings of a name to the description of a new row, which is registered. A
            saved config describes all rows that do not come with this package, so that loading it needs no code.
            Defaults to the four tasks of PASCAL-Context.
        decoder_width: Channels inside the decoders. Defaults to 256.
        decoder_dropout: Probability of zeroing a channel before the classifier, in [0, 1). Defaults to 0.1.
        shared_norms: Use one norm per stage map for all decoders, as Polyhistor (arXiv:2210.03265) does for methods
            whose tasks share one pass of the encoder. By default each decoder has its own norms. No effect for
            encoders with normalised maps.
        loss_weights: Weight of the loss by task. Tasks without an entry keep the weight of their row.
        image_size: Side or (height, width) of the training images in pixels. A `MultiTaskPredictor` resizes images to
            it; the model itself takes images of any size.
        image_mean: Mean of each channel in [0, 1] that training images are normalised with. Defaults to that of
            ImageNet, in `MultiTaskDenseModel.from_encoder` to that of an encoder whose files name it.
        image_std: Standard deviation of each channel, with the same defaults.

    Raises:
        ValueError: A field is out of its range; the message says what is allowed.
        TypeError: A field has the wrong type.

    Note:
        An adapter records `loss_weights`, `image_size`, `image_mean` and `image_std` when it is created. Its files,
        and `DenseImageProcessor.from_model`, follow the record and not a later change of `model.config`. So set these
        fields before `get_peft_model`.
    """

    model_type = "multitask_dense"

    def __init__(
        self,
        encoder: PreTrainedConfig | dict[str, Any] | None = None,
        tasks: Sequence[str | Mapping[str, Any]] = PASCAL_TASKS,
        decoder_width: int = 256,
        decoder_dropout: float = 0.1,
        shared_norms: bool = False,
        loss_weights: Mapping[str, float] | None = None,
        image_size: int | Sequence[int] | None = None,
        image_mean: Sequence[float] = IMAGENET_MEAN,
        image_std: Sequence[float] = IMAGENET_STD,
        **kwargs: Any,
    ):
        self.encoder = _as_config(encoder)
        if isinstance(tasks, str) or not isinstance(tasks, Sequence):
            raise ValueError(f"`tasks` must be a list of names, got {tasks!r}. Known tasks: {', '.join(TASKS)}.")
        self.tasks: list[str] = declare_tasks(tasks)
        check_positive("decoder_width", decoder_width)
        check_probability("decoder_dropout", decoder_dropout)
        check_truth("shared_norms", shared_norms)
        if not isinstance(loss_weights, Mapping | None):
            raise TypeError(f"`loss_weights` must be a mapping of tasks to numbers, got {loss_weights!r}.")
        for weight in (loss_weights or {}).values():
            check_number("loss_weights", weight)
        if image_size is not None:
            check_sides("image_size", image_size)
        check_statistics(image_mean, image_std)
        self.decoder_width = decoder_width
        self.decoder_dropout = decoder_dropout
        self.shared_norms = shared_norms
        self.loss_weights = dict(loss_weights or {})
        self.image_size = image_size
        self.image_mean, self.image_std = list(image_mean), list(image_std)
        dtype = kwargs.get("dtype")
        if dtype is not None and not isinstance(getattr(torch, str(dtype).removeprefix("torch."), None), torch.dtype):
            raise ValueError(f"`dtype` must be a type of PyTorch such as 'float32', got {dtype!r}.")
        super().__init__(**kwargs)

    def choose_tasks(self, tasks: Sequence[str] | None) -> list[str]:
        """Returns the names of `tasks`, or of all tasks for `None`; raises ValueError for a task without a decoder."""
        if tasks is None:
            return list(self.tasks)
        return [task.name for task in get_tasks(tasks, self.tasks)]

    def decoder_settings(self) -> dict[str, Any]:
        """Returns the fields that an adapter saves: all but the encoder, and of the tasks only a user's own rows."""
        names = ("decoder_width", "decoder_dropout", "shared_norms", "loss_weights", *IMAGES)
        rows = [item for item in describe_tasks(self.tasks) if isinstance(item, dict)]
        return {name: getattr(self, name) for name in names} | ({"tasks": rows} if rows else {})

    def to_dict(self) -> dict[str, Any]:
        """As in transformers, with descriptions of the tasks and without the path the encoder was loaded from."""
        output = super().to_dict()
        output["tasks"] = describe_tasks(self.tasks)
        if isinstance(output.get("encoder"), dict):
            output["encoder"].pop("_name_or_path", None)
        return output


def _as_config(encoder: Any) -> PreTrainedConfig | None:
    if encoder is None or isinstance(encoder, PreTrainedConfig):
        return encoder
    if not isinstance(encoder, dict) or encoder.get("model_type") not in CONFIG_MAPPING:
        raise ValueError(
            f"`encoder` must be the config of an encoder of transformers, or its dict with a known `model_type`, got "
            f"{encoder!r}."
        )
    return AutoConfig.for_model(**encoder)
