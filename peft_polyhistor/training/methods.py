# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Selects methods by name in the settings of a run or a study, and prepares the model for a method.

- `decoders` and the other rows of `METHODS`: the methods of this package, on the frozen encoder.
- `full`: multi-task full fine-tuning, one encoder for all tasks.
- `single_task`: single-task full fine-tuning, one model per task; a recipe trains the models one after another.
- `peft_...`: methods of PEFT itself, with one adapter per task in each linear layer of the encoder's blocks.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from peft import PeftConfig, PeftType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from torch import nn

from ..evaluation import is_of_decoder
from ..methods.per_task import adapt_per_task
from ..registry import METHODS
from .arguments import read_items


FULL_FINE_TUNING = ("full", "single_task")
PEFT_METHODS: dict[str, type[PeftConfig]] = {
    f"peft_{name.lower()}": PEFT_TYPE_TO_CONFIG_MAPPING[PeftType[name]]
    for name in ("LORA", "LOHA", "LOKR", "IA3", "OFT", "HRA", "VERA", "RANDLORA")
}


def find_configs() -> dict[str, type[PeftConfig]]:
    """Returns the config of each adapter method by name: the methods registered so far, then those of PEFT."""
    return {**METHODS, **PEFT_METHODS}


@dataclass(frozen=True)
class MethodChoice:
    """A method of a run."""

    name: str  # one of `FULL_FINE_TUNING` or of `find_configs()`
    label: str  # name of the results and of the folder
    fields: Mapping[str, Any]  # fields of the method's config that differ from their defaults


def parse_methods(entries: Sequence[str | Mapping[str, Any]]) -> list[MethodChoice]:
    """Reads the list of methods of a run or a study.

    Args:
        entries: Names such as `"phm"`, or mappings of one name to fields of the method's config, such as
            `{"phm": {"reduction_factor": 12}}`, also as YAML text. A field `label` names the results; it defaults to
            the name of the method.

    Raises:
        ValueError: There is no entry, a method or a field is unknown, a value is not allowed, or two labels are equal.
    """
    choices = [_parse_entry(entry) for entry in read_items(entries, "methods")]
    labels = [choice.label for choice in choices]
    if not labels or len(set(labels)) < len(labels):
        raise ValueError(
            f"`methods` must be among {_list_names()}, each once, got {labels}. To train one method with several "
            "settings, give each a label, e.g. {polyhistor: {rank: 4, label: polyhistor_rank_4}}."
        )
    return choices


def _list_names() -> list[str]:
    return [*FULL_FINE_TUNING, *find_configs()]


def _parse_entry(entry: Any) -> MethodChoice:
    [(name, given), *others] = entry.items() if isinstance(entry, Mapping) and entry else [(entry, {})]
    if others or name not in _list_names() or not isinstance(given, Mapping):
        raise ValueError(
            f"`methods` must be among {_list_names()}, each a name or a mapping of one name to fields of its config, "
            f"such as {{phm: {{reduction_factor: 12}}}}, got {entry!r}."
        )
    label = given.get("label", name)
    if not isinstance(label, str) or not re.fullmatch(r"\w[\w.+=-]*", label):
        raise ValueError(f"`label` of method '{name}' must be a name for a folder, got {label!r}.")
    choice = MethodChoice(name, label, {key: value for key, value in given.items() if key != "label"})
    if choice.fields:
        make_config(choice)
    return choice


def make_config(choice: MethodChoice, tasks: Sequence[str] | None = None) -> PeftConfig:
    """Builds the config of an adapter method.

    Args:
        choice: The method.
        tasks: Names of the tasks; `None` for the default. No effect on configs of PEFT, which have no tasks.

    Raises:
        ValueError: The method has no config, a field is unknown, or a value is not allowed.
    """
    configs = find_configs()
    if choice.name not in configs:
        raise ValueError(f"`methods`: '{choice.name}' trains all weights and has no settings, got {choice.fields}.")
    config_class = configs[choice.name]
    known = {field.name for field in fields(config_class)} - {field.name for field in fields(PeftConfig)} - {"tasks"}
    if unknown := sorted(set(map(str, choice.fields)) - known):
        raise ValueError(f"`methods`: '{choice.name}' has no fields {unknown}; it has {sorted(known)}.")
    own: dict[str, Any] = {"tasks": list(tasks)} if tasks and choice.name in METHODS else {}
    try:
        return config_class(**own, **choice.fields)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`methods`: '{choice.name}' with {choice.fields}: {error}") from error


def adapt(
    model: nn.Module, choice: MethodChoice, tasks: Sequence[str], gradient_checkpointing: bool = False
) -> nn.Module:
    """Adapts a model for a method, makes only the parameters of the method trainable, and returns the model to train.

    Args:
        model: A fresh `MultiTaskDenseModel`; methods of this package also adapt other models.
        choice: The method.
        tasks: Names of the tasks.
        gradient_checkpointing: Recompute the encoder in the backward pass to save memory.

    Raises:
        ValueError: A field of the config is not allowed, or the model has adapters already.
    """
    if choice.name in METHODS:
        model = get_peft_model(model, make_config(choice, tasks))
    elif choice.name in PEFT_METHODS:
        model = adapt_per_task(model, make_config(choice))  # type: ignore[arg-type]  # checks the type itself
    if gradient_checkpointing:  # renamed in transformers 5.23
        enable: Any = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    return model


def shares_pass(method: str) -> bool:
    """Tells whether one encoder pass serves all tasks; then decoders share norms, as in arXiv:2210.03265."""
    return method == "full" or (method in METHODS and METHODS[method].shares_pass)


def parameter_groups(model: nn.Module, learning_rate: float, decoder_learning_rate: float) -> list[dict[str, Any]]:
    """Groups trainable parameters for an optimiser; a decoder learning rate of 0 means `learning_rate`."""
    groups: dict[bool, list[nn.Parameter]] = {False: [], True: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[is_of_decoder(name)].append(parameter)
    rates = {False: learning_rate, True: decoder_learning_rate or learning_rate}
    return [{"params": group, "lr": rates[is_decoder]} for is_decoder, group in groups.items() if group]
