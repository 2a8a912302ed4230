# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The dense multi-task model: one encoder, and one decoder per task."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
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
from .onload import home_of
from .stages import StageEncoder


@dataclass
class MultiTaskDenseOutput(ModelOutput):
    """Output of a `MultiTaskDenseModel`.

    Args:
        loss: Weighted sum of the losses, if labels were given.
        logits: Logits `(batch, channels, height, width)` by task.
        losses: Unweighted losses by task, if labels were given.
    """

    loss: Tensor | None = None
    logits: dict[str, Tensor] | None = None
    losses: dict[str, Tensor] | None = None


class MultiTaskDenseModel(PreTrainedModel):
    """Predicts several dense tasks from one image with an encoder of four stages and a decoder per task.

    Build it with `from_encoder`, or with fresh weights from a config. An encoder adapted by `get_peft_model` computes
    stage maps for each task; without adapters, all decoders share one set of maps.

    Raises:
        ValueError: A task is unknown, or the encoder does not have four stages.
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
            get_tasks(list(config.loss_weights))  # a weight of an unknown task would have no effect
        if encoder is None:
            if config.encoder is None:
                raise ValueError("The config has no `encoder` to build. Add the config of one, or use `from_encoder`.")
            encoder = build_encoder(config.encoder)
        else:
            for module in encoder.modules():
                module._is_hf_initialized = True  # type: ignore[assignment]  # keeps its weights in `post_init`
        self.encoder = encoder
        width, dropout = config.decoder_width, config.decoder_dropout
        self.decoders = Decoders(channels, encoder.widths, width, dropout, encoder.needs_norm, config.shared_norms)
        self.decoders.to(*home_of(encoder))
        self.post_init()  # type: ignore[no-untyped-call]  # transformers'

    @classmethod
    def from_encoder(cls, encoder: nn.Module, tasks: Sequence[str], **kwargs: Any) -> "MultiTaskDenseModel":
        """Builds a model with fresh decoders on a pretrained encoder, which becomes part of the model.

        Args:
            encoder: An encoder that `view_encoder` supports.
            tasks: Names of the tasks, as in `MultiTaskDenseConfig`.
            **kwargs: Other fields of `MultiTaskDenseConfig`.

        Raises:
            TypeError: The encoder's family is unknown.
            ValueError: The encoder does not have four stages, or a task is unknown.
        """
        stages = view_encoder(encoder)
        config = MultiTaskDenseConfig(encoder=stages.config, tasks=tasks, **{**stages.image_statistics, **kwargs})
        config.name_or_path = stages.config.name_or_path  # PEFT records it as the base model
        return cls(config, stages)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str] | None, *args: Any, **kwargs: Any
    ) -> "MultiTaskDenseModel":
        """Loads a model as in transformers, but only from safetensors that hold exactly its weights.

        Raises:
            OSError: There is no such folder or Hub repository, or it has no safetensors.
            ValueError, TypeError: Weights are missing or unexpected, the file is damaged, or the config is invalid.
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
        """Tells whether a layer recomputes its activations, for PEFT 0.21; deprecated in transformers 5.23."""
        return any(getattr(module, "gradient_checkpointing", False) for module in self.modules())

    def train(self, mode: bool = True) -> "MultiTaskDenseModel":
        """Sets the mode as in PyTorch, but the BatchNorms of a frozen encoder keep their statistics."""
        super().train(mode)
        for module in self.encoder.modules():
            if isinstance(module, _BatchNorm) and not any(p.requires_grad for p in module.parameters()):
                module.eval()
        return self

    def add_task(self, name: str, from_: str | None = None) -> None:
        """Adds a decoder for a new task.

        Args:
            name: Name of the task, a row of `TASKS`.
            from_: The task whose decoder is copied, with a fresh classifier if the number of channels differs. `None`
                gives fresh weights.

        Raises:
            ValueError: The task is unknown or has a decoder already, or `from_` has no decoder.
        """
        self.check_new_task(name, from_)
        for decoders in self._all_decoders():
            decoders.add(name, TASKS[name].channels, from_)
        self.config.tasks = [*self.config.tasks, name]

    def check_new_task(self, name: str, from_: str | None) -> None:
        """Raises the errors of `add_task`."""
        get_tasks([name])
        if name in self.config.tasks or from_ not in (None, *self.config.tasks):
            raise ValueError(
                f"The model has decoders for {self.config.tasks}; got a new task '{name}' from {from_!r}. Name a task "
                "that has none, and copy one that has one."
            )

    def remove_task(self, name: str) -> None:
        """Removes the decoder of a task.

        Raises:
            ValueError: The task has no decoder, or the model has no other decoder.
        """
        if name not in self.config.tasks or len(self.config.tasks) == 1:
            raise ValueError(f"The model has decoders for {self.config.tasks}, of which '{name}' cannot be removed.")
        for decoders in self._all_decoders():
            del decoders.heads[name]
        self.config.tasks = [task for task in self.config.tasks if task != name]
        self.config.loss_weights = {task: w for task, w in self.config.loss_weights.items() if task != name}

    def keep_tasks(self, tasks: Sequence[str]) -> None:
        """Removes the decoders of all other tasks; ValueError if none is left."""
        if not set(tasks) & set(self.config.tasks):
            self.config.choose_tasks(tasks)
        for name in [name for name in self.config.tasks if name not in tasks]:
            self.remove_task(name)

    @torch.no_grad()
    def fit_biases(self, labels: Mapping[str, Tensor]) -> None:
        """Fits the biases of the last layers of fresh decoders to labels, before `get_peft_model`.

        A class that covers 1 % of the pixels starts with a probability near 1 %. RetinaNet starts rare classes in the
        same way, with one probability for all (arXiv:1708.02002, Sec. 4.1).

        Args:
            labels: Labels by task, as for `forward`, such as those of 200 training images.

        Raises:
            ValueError: The model has adapters or no decoder for a task, a label does not fit, or no pixel is labelled.
            NotImplementedError: A task of your own kind does not define `fit_bias`.
        """
        if len(self._all_decoders()) > 1:
            raise ValueError("The model has adapters, with decoders of their own. Fit biases before `get_peft_model`.")
        biases = {}
        for name in self.config.choose_tasks(list(labels)):
            task, target = TASKS[name], labels[name].cpu()
            check_labels(name, (len(target), task.channels), target)
            if not task.count(target).any():
                raise ValueError(
                    f"None of the {len(target)} labels of task '{name}' has a labelled pixel. Give labels of more "
                    "images, or leave the task out."
                )
            biases[name] = task.fit_bias(target)
        for name, value in biases.items():
            bias: Any = self.decoders.heads[name].classifier.bias
            bias.copy_(value)

    def copy_decoders(self, other: "MultiTaskDenseModel | PeftModel") -> None:
        """Makes fresh decoders compute what those of another model do, before `get_peft_model`.

        Adapters then start from decoders that work, rather than from gradients of random ones, which distort a
        pretrained encoder (LP-FT, arXiv:2202.10054).

        Args:
            other: A model, adapted or not, with decoders of the same sizes for the tasks of this model. The decoders
                are those of the active adapter. They may share their norms where this model does not, or reversely.

        Raises:
            ValueError: This model has adapters, or `other` lacks a decoder or has decoders of other sizes.
        """
        if len(self._all_decoders()) > 1:
            raise ValueError("The model has adapters, with decoders of their own. Copy before `get_peft_model`.")
        source: Any = other.get_base_model() if isinstance(other, PeftModel) else other
        theirs = source.decoders
        if isinstance(other, PeftModel) and not isinstance(theirs, Decoders):
            copies = dict(theirs.modules_to_save.items())
            theirs = copies.get(other.active_adapter, theirs.original_module)  # a bare encoder's adapter has no copy
        shapes = theirs.shapes()
        differ = [task for task, own in self.decoders.shapes().items() if shapes.get(task) != own]
        if differ:
            raise ValueError(
                f"The other model has decoders for {list(shapes)}, decoder_width={source.config.decoder_width} and "
                f"maps of {source.encoder.widths} channels. This model needs {differ} with decoder_width="
                f"{self.config.decoder_width} and {self.encoder.widths} channels. Train decoders of these sizes."
            )
        self.decoders.copy_from(theirs)

    def get_input_embeddings(self) -> None:  # type: ignore[override]  # transformers and PEFT accept None
        """Returns `None`, because there is no embedding table."""

    def enable_input_require_grads(self) -> None:
        """Does nothing, because non-reentrant checkpointing needs no gradient at the input of a layer."""

    def _all_decoders(self) -> list[Decoders]:
        # The decoders of the model, and the copies that PEFT keeps for each adapter.
        return [module for module in self.decoders.modules() if isinstance(module, Decoders)]

    def forward(
        self,
        pixel_values: Tensor,
        labels: Mapping[str, Tensor] | None = None,
        tasks: Sequence[str] | None = None,
        full_resolution: bool = True,
        return_dict: bool | None = True,
        counts: Mapping[str, Tensor] | None = None,
    ) -> MultiTaskDenseOutput | tuple[Any, ...]:
        """Predicts tasks, and computes their losses if labels are given.

        Args:
            pixel_values: Normalised images `(batch, 3, height, width)`. Both sides are at least the coarsest stride of
                the encoder.
            labels: Labels by task, as the row in `TASKS` describes them. A predicted task without a label has no loss;
                labels of other tasks in `TASKS` are ignored.
            tasks: Names of the tasks to predict; `None` for all.
            full_resolution: Return logits at the size of the image instead of at the first stage's stride of 4.
            return_dict: `False` returns a tuple of the fields that are not `None`.
            counts: Counts of labels by task that the loss uses in place of the counts of this batch, if the batch is
                part of an optimiser step; see `tasks.count_labels`.

        Raises:
            ValueError: An image is too small, a task is unknown, or a label does not fit.
        """
        tasks = self.config.choose_tasks(tasks)
        self._check_images(pixel_values)
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
        return output.to_tuple() if return_dict is False else output

    def _losses(
        self, logits: Mapping[str, Tensor], labels: Mapping[str, Tensor], counts: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        if unknown := [name for name in labels if name not in TASKS]:
            raise ValueError(f"There are labels of {unknown}, which are no tasks; those predicted are {list(logits)}.")
        losses = {}
        for task, task_logits in logits.items():
            if task in labels:
                check_labels(task, task_logits.shape, labels[task])
                count = (counts[task],) if task in counts else ()
                losses[task] = TASKS[task].loss(task_logits, labels[task], *count)
        if not losses:
            raise ValueError(
                f"There are labels of {list(labels)} and none of the predicted tasks {list(logits)}. Give labels by "
                "task name, or labels=None for predictions only."
            )
        return losses

    def _check_images(self, pixel_values: Tensor) -> None:
        if pixel_values.ndim != 4 or pixel_values.shape[1] != 3:
            raise ValueError(
                f"Images must be (batch, 3, height, width), got {tuple(pixel_values.shape)}. `DenseImageProcessor` "
                "makes such a batch of images of any mode."
            )
        if not pixel_values.is_floating_point():
            raise ValueError(
                f"Images must be normalised floating-point values, got {pixel_values.dtype}. `DenseImageProcessor` "
                "makes them of 8-bit images."
            )
        (height, width), least = pixel_values.shape[-2:], self.encoder.strides[-1]
        if min(height, width) < least:
            raise ValueError(
                f"Images of {height} x {width} pixels are too small: both sides must be at least {least}, the "
                "coarsest stride of the encoder. Enlarge them."
            )


AutoConfig.register(MultiTaskDenseConfig.model_type, MultiTaskDenseConfig, exist_ok=True)
AutoModel.register(MultiTaskDenseConfig, MultiTaskDenseModel, exist_ok=True)
