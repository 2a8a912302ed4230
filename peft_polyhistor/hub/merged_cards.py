# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The model card of a merged model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from torch import nn

from ..models.encoder import ASSETS
from ..models.multitask import MultiTaskDenseModel
from .cards import Base, arguments_of, find_base, pipeline_of, words_for


@dataclass(frozen=True)
class Origin:
    """The adapter and the encoder that a model was merged from."""

    method: str  # PEFT type of the adapter
    task: str | None  # the merged task; `None` if the adapter served all tasks
    base: Base
    adapter: str | None  # Hub id of the adapter, if known


def origin_of(model: nn.Module, base_model: str | None = None, adapter: str | None = None) -> Origin:
    """Reads the record of `merge_and_unload` in the config of a model.

    Raises:
        TypeError: The model was not made by `merge_and_unload`, or cannot be saved.
        ValueError: The encoder is unknown, or is a folder.
    """
    record: Any = getattr(getattr(model, "config", None), "merged_from", None)
    if not isinstance(record, dict) or not hasattr(model, "save_pretrained"):
        raise TypeError(
            f"The model must be a PeftModel or a result of `merge_and_unload` with a `save_pretrained`, got a "
            f"{type(model).__name__} without a `merged_from` in its config."
        )
    base = find_base(base_model or record.get("base_model"), record.get("embedded_encoder"))
    return Origin(record["peft_type"], record.get("task"), base, adapter)


def make_merged_card(
    model: nn.Module,
    origin: Origin,
    license: str,
    tags: Sequence[str],
    repo_id: str,
    revision: str | None = None,
) -> ModelCard:
    """Makes the card of a merged model; the arguments are those of `publish`, and of `origin_of`."""
    is_dense = isinstance(model, MultiTaskDenseModel)
    tasks = model.config.tasks if isinstance(model, MultiTaskDenseModel) else [origin.task] if origin.task else []
    own_tags = ["peft-polyhistor", origin.method, "merged", "dense-prediction", *words_for(tasks)]
    on_hub: dict[str, Any] = {"base_model": origin.base.name, "base_model_relation": "finetune"}
    data = ModelCardData(
        library_name="peft-polyhistor" if is_dense else "transformers",
        pipeline_tag=pipeline_of(tasks) if is_dense else "image-feature-extraction",
        license=license,
        tags=own_tags + [tag for tag in tags if tag not in own_tags],
        model_name=repo_id.rpartition("/")[2],
        **({} if origin.base.is_embedded else on_hub),
    )
    return ModelCard.from_template(
        data,
        template_path=str(ASSETS / "merged_card.md"),
        title=repo_id.rpartition("/")[2],
        origin=origin,
        is_dense=is_dense,
        tasks=tasks,
        kind=type(model).__name__,
        checkpoint=arguments_of(repo_id, revision),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
    )
