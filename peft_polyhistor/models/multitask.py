# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""One encoder, one decoder per task."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.utils import ModelOutput

from ..tasks.losses import resize_to_label
from ..tasks.table import TASKS, check_labels, get_tasks
from .decoder import Decoders
from .encoder import build_encoder, view_encoder
from .multitask_config import MultiTaskDenseConfig
from .stages import StageEncoder


@dataclass
class MultiTaskDenseOutput(ModelOutput):
    """Output of a `MultiTaskDenseModel`.

    Args:
        loss: Weighted sum of the tasks' losses, where labels were given.
        logits: By task `(batch, channels, height, width)`.
        losses: By task, not weighted, where labels were given.
    """

    loss: Tensor | None = None
    logits: dict[str, Tensor] | None = None
    losses: dict[str, Tensor] | None = None


class MultiTaskDenseModel(PreTrainedModel):
    """Predicts several dense tasks from one picture: an encoder of four stages and a decoder per task.

    Build it with `from_encoder`, or from a config with fresh weights. An adapted encoder (`get_peft_model`) makes maps
    for each task; an unadapted one makes one set of maps that all decoders share.

    Raises:
        ValueError: A task is unknown or the encoder has not four stages.
    """

    config: MultiTaskDenseConfig
    config_class = MultiTaskDenseConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(self, config: MultiTaskDenseConfig, encoder: StageEncoder | None = None):
        super().__init__(config)
        channels = {task.name: task.channels for task in get_tasks(config.tasks)}
        if config.loss_weights:
            get_tasks(list(config.loss_weights))  # an unknown name would be a weight without effect
        if encoder is None:
            if config.encoder is None:
                raise ValueError("The config has no `encoder` to build. Give its config, or use `from_encoder`.")
            encoder = build_encoder(config.encoder)
        else:
            for module in encoder.modules():
                module._is_hf_initialized = True  # type: ignore[assignment]  # else its weights are drawn anew
        self.encoder = encoder
        self.decoders = Decoders(
            channels,
            encoder.widths,
            config.decoder_width,
            config.decoder_dropout,
            encoder.needs_norm,
            config.shared_norms,
        )
        self.post_init()  # type: ignore[no-untyped-call]  # of transformers

    @classmethod
    def from_encoder(cls, encoder: nn.Module, tasks: Sequence[str], **kwargs: Any) -> "MultiTaskDenseModel":
        """Puts fresh decoders on a pretrained encoder, which becomes part of the model.

        Args:
            encoder: A Swin or a backbone of transformers with four stages, or a `StageEncoder`.
            tasks: Those of `MultiTaskDenseConfig`.
            **kwargs: Further fields of `MultiTaskDenseConfig`.

        Raises:
            TypeError: The encoder's family is unknown.
            ValueError: The encoder has not four stages, or a task is unknown.
        """
        stages = view_encoder(encoder)
        config = MultiTaskDenseConfig(encoder=stages.config, tasks=tasks, **kwargs)
        config.name_or_path = stages.config.name_or_path  # the base model that PEFT records with an adapter
        return cls(config, stages)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str] | None, *args: Any, **kwargs: Any
    ) -> "MultiTaskDenseModel":
        """As in transformers, but from safetensors alone, and only if all weights are there and no others.

        Raises:
            OSError: There is no such folder or Hub repository, or it has no safetensors.
            ValueError, TypeError: Weights are missing or left over, the file is damaged, or the config cannot be.
            RuntimeError: A weight has another shape.
        """
        name = pretrained_model_name_or_path
        options = {"use_safetensors": True} | kwargs | {"output_loading_info": True}
        try:
            loaded: Any = super().from_pretrained(name, *args, **options)
        except SafetensorError as error:
            raise ValueError(f"The weights of '{name}' are damaged ({error}). Save or download them again.") from error
        model, info = loaded
        missing, surplus = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
        if missing or surplus:
            raise ValueError(
                f"'{name}' does not hold the weights of its config: {len(missing)} are missing, as {missing[:2]}, "
                f"{len(surplus)} are left over, as {surplus[:2]}. Save the model again."
            )
        return loaded if kwargs.get("output_loading_info") else model

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether a layer recomputes its activations; PEFT 0.21 asks by this name, deprecated in transformers 5.23."""
        return any(getattr(module, "gradient_checkpointing", False) for module in self.modules())

    def train(self, mode: bool = True) -> "MultiTaskDenseModel":
        """As in PyTorch, but a frozen encoder stays frozen: the statistics of its BatchNorms do not move."""
        super().train(mode)
        for module in self.encoder.modules():
            if isinstance(module, _BatchNorm) and not any(p.requires_grad for p in module.parameters()):
                module.eval()
        return self

    def add_task(self, name: str, from_: str | None = None) -> None:
        """Adds a decoder for one more task.

        Args:
            name: Name of the task, a row of `TASKS`.
            from_: The task whose decoder it starts as a copy of, but for a classifier of another number of channels;
                `None` for fresh weights.

        Raises:
            ValueError: The task is unknown or there already, or `from_` is not there.
        """
        self.check_new_task(name, from_)
        [task] = get_tasks([name])
        for decoders in self._all_decoders():
            decoders.add(name, task.channels, from_)
        self.config.tasks = [*self.config.tasks, name]

    def check_new_task(self, name: str, from_: str | None) -> None:
        """Raises the errors of `add_task`."""
        get_tasks([name])
        if name in self.config.tasks or from_ not in (None, *self.config.tasks):
            raise ValueError(
                f"The model has decoders for {self.config.tasks}; got a new task '{name}' from {from_!r}."
            )

    def remove_task(self, name: str) -> None:
        """Takes the decoder of a task away.

        Raises:
            ValueError: There is none, or no other.
        """
        if name not in self.config.tasks or len(self.config.tasks) == 1:
            raise ValueError(
                f"The model has decoders for {self.config.tasks}, of which '{name}' cannot be taken away."
            )
        for decoders in self._all_decoders():
            del decoders.heads[name]
        self.config.tasks = [task for task in self.config.tasks if task != name]

    def keep_tasks(self, tasks: Sequence[str]) -> None:
        """Takes the decoders of all other tasks away."""
        for name in [name for name in self.config.tasks if name not in tasks]:
            self.remove_task(name)

    def get_input_embeddings(self) -> None:  # type: ignore[override]  # which transformers and PEFT understand
        """`None`: there is no table of embeddings that could train or be shared."""

    def enable_input_require_grads(self) -> None:
        """Does nothing: layers are recomputed in the non-reentrant form, which needs no gradient at its input."""

    def _all_decoders(self) -> list[Decoders]:
        # Its own, and the copies that PEFT keeps for each adapter.
        return [module for module in self.decoders.modules() if isinstance(module, Decoders)]

    def forward(
        self,
        pixel_values: Tensor,
        labels: Mapping[str, Tensor] | None = None,
        tasks: Sequence[str] | None = None,
        full_resolution: bool = True,
        return_dict: bool = True,
        counts: Mapping[str, Tensor] | None = None,
    ) -> MultiTaskDenseOutput | tuple[Any, ...]:
        """Predicts the tasks asked for.

        Args:
            pixel_values: Normalised pictures `(batch, 3, height, width)`, of any size from the encoder's coarsest
                stride up.
            labels: By task, as its row of `TASKS` describes. Tasks that were asked for and have no label are
                predicted without a loss; labels of tasks that were not asked for are not looked at.
            tasks: Names of the tasks to predict; `None` for all.
            full_resolution: Logits at the size of the picture; otherwise at the first stage's stride of 4.
            return_dict: `False` gives the fields that are there as a tuple.
            counts: By task, what its loss divides or weighs by in place of the count of its labels, for a batch
                that is part of a step; see `tasks.count_labels`.

        Raises:
            ValueError: A picture is too small, a task is unknown, or a label does not fit.
        """
        tasks = self.config.choose_tasks(tasks)
        self._check_size(pixel_values)
        logits = self.decoders(self.encoder(pixel_values, tasks=tasks))
        losses = self._losses(logits, labels, counts or {}) if labels is not None else None
        weights = {task: self.config.loss_weights.get(task, TASKS[task].loss_weight) for task in tasks}
        if full_resolution:
            logits = {task: resize_to_label(task_logits, pixel_values) for task, task_logits in logits.items()}
        output = MultiTaskDenseOutput(
            loss=sum(weights[task] * loss for task, loss in losses.items()) if losses else None,  # type: ignore[arg-type]
            logits=logits,
            losses=losses,
        )
        return output if return_dict else output.to_tuple()

    def _losses(
        self, logits: Mapping[str, Tensor], labels: Mapping[str, Tensor], counts: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        losses = {}
        for task, task_logits in logits.items():
            if task in labels:
                check_labels(task, task_logits.shape, labels[task])
                count = (counts[task],) if task in counts else ()
                losses[task] = TASKS[task].loss(task_logits, labels[task], *count)
        if not losses:
            raise ValueError(
                f"There are labels of {list(labels)} and none of the tasks asked for, {list(logits)}. Give labels by "
                "task name, or labels=None for predictions alone."
            )
        return losses

    def _check_size(self, pixel_values: Tensor) -> None:
        if pixel_values.ndim != 4 or pixel_values.shape[1] != 3:
            raise ValueError(f"Pictures must be (batch, 3, height, width), got {tuple(pixel_values.shape)}.")
        least = self.encoder.strides[-1]
        if min(pixel_values.shape[-2:]) < least:
            raise ValueError(
                f"Pictures of {pixel_values.shape[-2]} x {pixel_values.shape[-1]} pixels are too small: the encoder's "
                f"coarsest stride is {least}, so both sides must be at least {least}. Enlarge them."
            )


AutoConfig.register(MultiTaskDenseConfig.model_type, MultiTaskDenseConfig, exist_ok=True)
AutoModel.register(MultiTaskDenseConfig, MultiTaskDenseModel, exist_ok=True)
