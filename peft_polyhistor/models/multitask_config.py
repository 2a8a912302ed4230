# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""What a dense model is built from."""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from ..tasks import get_tasks


class MultiTaskDenseConfig(PreTrainedConfig):
    """Config of a `MultiTaskDenseModel`.

    Args:
        encoder: Config of the encoder, or its dict.
        tasks: Names of the tasks, rows of `TASKS`.
        decoder_width: Channels inside the decoders.
        decoder_dropout: Probability of zeroing a channel in front of the classifier.
        shared_norms: One norm per stage map for all decoders, where the encoder wants norms: the paper's choice for
            methods whose tasks share one pass of the encoder. Otherwise every decoder has its own.
        loss_weights: Weight of each task's loss, by task; those not named keep the weight of their row.
        image_size: Side or (height, width) of the pictures that it trains on, pixels; a `MultiTaskPredictor` resizes
            to it. The model itself takes pictures of any size.
    """

    model_type = "multitask_dense"

    def __init__(
        self,
        encoder: PreTrainedConfig | dict[str, Any] | None = None,
        tasks: Sequence[str] = ("semseg", "human_parts", "saliency", "normals"),
        decoder_width: int = 256,
        decoder_dropout: float = 0.1,
        shared_norms: bool = False,
        loss_weights: Mapping[str, float] | None = None,
        image_size: int | Sequence[int] | None = None,
        **kwargs: Any,
    ):
        if isinstance(encoder, dict):
            encoder = AutoConfig.for_model(**encoder)
        self.encoder = encoder
        self.tasks = list(tasks)
        self.decoder_width = decoder_width
        self.decoder_dropout = decoder_dropout
        self.shared_norms = shared_norms
        self.loss_weights = dict(loss_weights or {})
        self.image_size = image_size
        super().__init__(**kwargs)

    def choose_tasks(self, tasks: Sequence[str] | None) -> list[str]:
        """The names of tasks asked for, which are all for `None`; ValueError for one that the model does not have."""
        if tasks is None:
            return self.tasks
        names = [task.name for task in get_tasks(tasks)]
        unknown = [name for name in names if name not in self.tasks]
        if unknown:
            raise ValueError(f"No decoder for {unknown}: this model has {self.tasks}. Ask for those.")
        return names

    def decoder_settings(self) -> dict[str, Any]:
        """The fields that an adapter keeps: all but the encoder and the tasks, which it knows."""
        names = ("decoder_width", "decoder_dropout", "shared_norms", "loss_weights", "image_size")
        return {name: getattr(self, name) for name in names}

    def to_dict(self) -> dict[str, Any]:
        """As in transformers, less the place the encoder was loaded from."""
        output = super().to_dict()
        if isinstance(output.get("encoder"), dict):
            output["encoder"].pop("_name_or_path", None)
        return output
