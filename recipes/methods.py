# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The methods of the recipes: their names, their configs, and the model that each one trains.

decoders            decoders alone, on the frozen encoder
full                multi-task full fine-tuning: one encoder for all tasks
single_task         single-task full fine-tuning: a model of its own for each task
any of METHODS      the methods of this package
peft_...            methods of PEFT itself, with one adapter per task in every linear layer of the encoder's blocks
"""

from dataclasses import fields
from typing import TYPE_CHECKING

from peft import (
    HRAConfig,
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PeftConfig,
    RandLoraConfig,
    VeraConfig,
    get_peft_model,
)
from torch import nn
from yaml_values import read_pairs

from peft_polyhistor import METHODS, MultiTaskDenseModel, load_encoder
from peft_polyhistor.methods.per_task import adapt_per_task


if TYPE_CHECKING:
    from settings import Settings

FULL_FINE_TUNING = ("full", "single_task")
PEFT_METHODS = {
    "peft_lora": LoraConfig,
    "peft_loha": LoHaConfig,
    "peft_lokr": LoKrConfig,
    "peft_ia3": IA3Config,
    "peft_oft": OFTConfig,
    "peft_hra": HRAConfig,
    "peft_vera": VeraConfig,
    "peft_randlora": RandLoraConfig,
}
CONFIGS = {**METHODS, **PEFT_METHODS}
NAMES = [*FULL_FINE_TUNING, *CONFIGS]


def tasks_of(method: str, settings: "Settings") -> list[str]:
    """Tasks of the model of a run; those of `single_task` are called `single_task/TASK`."""
    _, _, task = method.partition("/")
    return [task] if task else settings.tasks


def shares_pass(method: str) -> bool:
    """One pass of the encoder serves all tasks, and so does one set of norms of its maps, as in the paper's counts."""
    return method == "full" or (method in METHODS and METHODS[method].shares_pass)


def build_model(
    method: str, settings: "Settings", loss_weights: dict[str, float], encoder: nn.Module | None = None
) -> nn.Module:
    """The dense model, with what `method` trains trainable and nothing else.

    Args:
        method: Its name.
        settings: Of the run.
        loss_weights: By task.
        encoder: In place of the pretrained one that the settings name.
    """
    model = MultiTaskDenseModel.from_encoder(
        encoder or load_encoder(settings.encoder),
        tasks_of(method, settings),
        decoder_width=settings.decoder_width,
        decoder_dropout=settings.decoder_dropout,
        shared_norms=shares_pass(method),
        loss_weights=loss_weights,
        image_size=settings.image_size,
    )
    if method in METHODS:
        model = get_peft_model(model, method_config(method, settings))
    elif method in PEFT_METHODS:
        adapt_per_task(model, method_config(method, settings))
    if settings.gradient_checkpointing:
        # The second is its name before transformers 5.23.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    return model


def method_config(method: str, settings: "Settings") -> PeftConfig:
    """Config of an adapter method, from the items of `method_settings` for all methods and those for it.

    Raises:
        ValueError: A field or a value does not suit the method, or an item is for a method that does not exist.
    """
    values = _values_of(method, settings)
    config_class = CONFIGS[method]
    known = {field.name for field in fields(config_class)} - {field.name for field in fields(PeftConfig)} - {"tasks"}
    wrong = sorted(set(values) - known)
    if wrong:
        raise ValueError(
            f"`method_settings`: method '{method}' has no field {wrong}; it has {sorted(known)}. For a field of one "
            f"method only write e.g. {method}.{min(known)}=VALUE."
        )
    if method in METHODS:  # PEFT's own have no tasks, but an adapter for each
        values["tasks"] = settings.tasks
    try:
        return config_class(**values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`method_settings` of method '{method}', {values}: {error}") from error


def own_items(method: str, settings: "Settings") -> list[str]:
    """The items of `method_settings` that a method heeds, sorted: what its run depends on."""
    items = {item.partition("=")[0]: item for item in settings.method_settings}
    owners = {name: name.rpartition(".")[0] for name in items}
    return sorted(item for name, item in items.items() if method in CONFIGS and owners[name] in ("", method))


def check_items(settings: "Settings") -> None:
    """Raises ValueError where an item of `method_settings` is for a method without any, or for none of the run."""
    for name in read_pairs("method_settings", settings.method_settings):
        owner, dot, _ = name.rpartition(".")
        if dot and owner not in CONFIGS:
            raise ValueError(
                f"`method_settings`: '{name}' is for '{owner}'; methods with settings are {list(CONFIGS)}."
            )
        if not dot and not set(settings.methods) & set(CONFIGS):
            raise ValueError(f"`method_settings`: none of the methods {settings.methods} has settings, got '{name}'.")


def _values_of(method: str, settings: "Settings") -> dict:
    of_all, of_one = {}, {}
    for name, value in read_pairs("method_settings", own_items(method, settings)).items():
        owner, _, field_name = name.rpartition(".")
        (of_one if owner else of_all)[field_name] = value
    return of_all | of_one
