# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Methods by name, as the settings of a run or a study list them, and the model that each method trains.

- `decoders`: the decoders alone, on the frozen encoder; it is a row of `METHODS`, as are the other methods of this
  package.
- `full`: multi-task full fine-tuning, one encoder for all tasks.
- `single_task`: single-task full fine-tuning, one model per task. The recipe trains one after the other.
- `peft_...`: methods of PEFT itself, with one adapter per task in every linear layer of the encoder's blocks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

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

from ..methods.per_task import adapt_per_task
from ..registry import METHODS
from .arguments import as_number, read_yaml


FULL_FINE_TUNING = ("full", "single_task")
PEFT_METHODS: dict[str, type[PeftConfig]] = {
    "peft_lora": LoraConfig,
    "peft_loha": LoHaConfig,
    "peft_lokr": LoKrConfig,
    "peft_ia3": IA3Config,
    "peft_oft": OFTConfig,
    "peft_hra": HRAConfig,
    "peft_vera": VeraConfig,
    "peft_randlora": RandLoraConfig,
}
CONFIGS: dict[str, type[PeftConfig]] = {**METHODS, **PEFT_METHODS}
NAMES = [*FULL_FINE_TUNING, *CONFIGS]


@dataclass(frozen=True)
class MethodChoice:
    """A method of a run.

    Args:
        name: One of `NAMES`.
        label: The name of its results and of its folder.
        fields: Fields of its config that differ from their defaults.
    """

    name: str
    label: str
    fields: Mapping[str, Any]


def parse_methods(entries: Sequence[str | Mapping[str, Any]]) -> list[MethodChoice]:
    """Reads the list of methods of a run or a study.

    Args:
        entries: Each is a name, such as `"phm"`, or a mapping of one name to fields of the method's config, such as
            `{"phm": {"reduction_factor": 12}}`, also as YAML text, `"phm: {reduction_factor: 12}"`. The field `label`
            names the results; without it they have the name of the method.

    Raises:
        ValueError: There is no entry, a method or a field is unknown, a value is not allowed, or two methods have the
            same label.
    """
    choices = [_parse_entry(entry) for entry in entries]
    labels = [choice.label for choice in choices]
    if not labels or len(set(labels)) < len(labels):
        raise ValueError(
            f"`methods` must be among {NAMES}, each once, got {labels}. To train one method with several settings "
            "give each a label, e.g. {polyhistor: {rank: 4, label: polyhistor_rank_4}}."
        )
    return choices


def _parse_entry(entry: str | Mapping[str, Any]) -> MethodChoice:
    try:
        value = read_yaml(entry) if isinstance(entry, str) else entry
    except ValueError as error:
        raise ValueError(f"`methods`: {entry!r} is no YAML ({error}). Write e.g. 'phm: {{order: 4}}'.") from error
    pairs = list(value.items()) if isinstance(value, Mapping) else [(value, {})]
    name, given = pairs[0] if len(pairs) == 1 else (None, None)
    if name not in NAMES or not isinstance(given, Mapping):
        raise ValueError(
            f"`methods` must be among {NAMES}, as a name or as a mapping of one name to the fields of its config, such "
            f"as phm: {{reduction_factor: 12}}, got {entry!r}."
        )
    label = given.get("label", name)
    if not isinstance(label, str) or not label.strip() or any(sign in label for sign in "/\\") or label[0] == ".":
        raise ValueError(f"`label` of method '{name}' must be a name for a folder, got {label!r}.")
    choice = MethodChoice(name, label, {key: as_number(item) for key, item in given.items() if key != "label"})
    if choice.fields or name in CONFIGS:
        make_config(choice)
    return choice


def make_config(choice: MethodChoice, tasks: Sequence[str] | None = None) -> PeftConfig:
    """Builds the config of an adapter method.

    Args:
        choice: The method.
        tasks: Names of the tasks; `None` for the default of the config. Methods of PEFT have an adapter per task.

    Raises:
        ValueError: The method has no config or no such field, or a value is not allowed.
    """
    if choice.name not in CONFIGS:
        raise ValueError(f"Method '{choice.name}' has no settings, got {dict(choice.fields)}; it trains all weights.")
    config_class = CONFIGS[choice.name]
    known = {field.name for field in fields(config_class)} - {field.name for field in fields(PeftConfig)} - {"tasks"}
    unknown = sorted(set(map(str, choice.fields)) - known)
    if unknown:
        raise ValueError(f"`methods`: method '{choice.name}' has no fields {unknown}; it has {sorted(known)}.")
    own: dict[str, Any] = {"tasks": list(tasks)} if tasks and choice.name in METHODS else {}
    try:
        return config_class(**own, **choice.fields)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`methods`: method '{choice.name}' with {dict(choice.fields)}: {error}") from error


def adapt(model: nn.Module, choice: MethodChoice, tasks: Sequence[str]) -> nn.Module:
    """Makes trainable what a method trains, and nothing else; returns the model to train.

    Args:
        model: A fresh `MultiTaskDenseModel`; for methods of this package also another model that PEFT adapts.
        choice: The method.
        tasks: Names of the tasks.

    Raises:
        ValueError: A field of the config is not allowed, or the model is adapted already.
    """
    if choice.name in FULL_FINE_TUNING:
        return model
    config = make_config(choice, tasks)
    if choice.name in METHODS:
        return get_peft_model(model, config)
    return adapt_per_task(model, config)  # type: ignore[arg-type]  # refuses other models itself


def shares_pass(method: str) -> bool:
    """Tells whether one pass of the encoder serves all tasks; then they share the norms of its maps, as in the paper."""
    return method == "full" or (method in METHODS and METHODS[method].shares_pass)
