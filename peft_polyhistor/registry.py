# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Registers the methods of this package with PEFT. No other module changes PEFT's enum, tables or loading."""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import fields
from functools import wraps
from typing import Any

import peft
from peft import PeftConfig, PeftModel, PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import register_peft_method
from peft.utils.other import AuxiliaryTrainingWrapper

from .config import MultiTaskConfig, document
from .models.multitask import MultiTaskDenseModel
from .tuner.provenance import check_base, keep_settings, keep_sizes


# The config of each method by its lower-case name, without the prefix that keeps it apart from PEFT's own methods.
METHODS: dict[str, type[MultiTaskConfig]] = {}


def register(name: str, config_class: type[MultiTaskConfig], tuner_class: type[BaseTuner]) -> PeftType:
    """Registers a method with PEFT, and returns its `PeftType`. Registering the same method again changes nothing.

    Args:
        name: The type string in each saved adapter_config.json, in upper case.
        config_class: The config of the method. Its docstring gets the list of its fields.
        tuner_class: The tuner of the method, whose `prefix` no other PEFT method uses.

    Raises:
        RuntimeError: PEFT, or another plugin, already has a method of this name or this parameter prefix.
    """
    if name not in PeftType.__members__:
        _check_prefix(name, tuner_class.prefix)
        _add_member(name)  # no step from here on can fail, so that a method is registered completely or not at all
        register_peft_method(
            name=name.lower(), config_cls=config_class, model_cls=tuner_class, prefix=tuner_class.prefix
        )
        METHODS[name.lower().removeprefix("mtl_")] = config_class
        config_class.__doc__ = document(config_class)
        return PeftType[name]
    owner = PEFT_TYPE_TO_CONFIG_MAPPING.get(PeftType[name])
    if owner is None or _qualified_name(owner) != _qualified_name(config_class):
        raise RuntimeError(
            f"PEFT {peft.__version__} already has a method '{name}' ({owner and _qualified_name(owner)}), so "
            f"{_qualified_name(config_class)} cannot be registered under that name. Install a version of "
            "peft-polyhistor made for this version of PEFT, or a PEFT version that lacks the method."
        )
    return PeftType[name]


def _qualified_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _check_prefix(name: str, prefix: str) -> None:
    for peft_type, taken in PEFT_TYPE_TO_PREFIX_MAPPING.items():
        if taken == prefix:
            raise RuntimeError(
                f"The parameter prefix '{prefix}' of '{name}' is already used by PEFT's '{peft_type.value}'. "
                "PEFT finds adapter weights by this prefix: choose another."
            )


def _add_member(name: str) -> None:
    # PEFT indexes its tables with members and with the raw string from JSON. A true member of the string enum whose
    # name equals its value works as both, and survives pickle, deepcopy and iteration.
    member = str.__new__(PeftType, name)
    member._name_ = member._value_ = name
    member._sort_order_ = len(PeftType._member_names_)  # type: ignore[attr-defined]  # not told by enum
    member.__objclass__ = PeftType  # type: ignore[attr-defined]
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = member
    PeftType._value2member_map_[name] = member
    type.__setattr__(PeftType, name, member)


# Fields that do not change what a trained adapter computes in evaluation mode, and lists whose order changes it.
NEUTRAL = {item.name for item in fields(PeftConfig)}
NEUTRAL |= {"modules_to_save", "init_weights", "tasks_per_pass", "made_for", "dropout"}
ORDERED = {"tasks", "bottlenecks"}


def _settings(config: PeftConfig) -> dict[str, Any]:
    """Returns the method of an adapter and the settings that change what it computes, in one form for each value."""
    settings: dict[str, Any] = {"peft_type": PeftType(config.peft_type).value}
    for name in (item.name for item in fields(config) if item.name not in NEUTRAL):
        value = getattr(config, name)
        if isinstance(value, list | tuple | set):
            value = list(value) if name in ORDERED else sorted(value, key=str)
        settings[name] = value
    return settings


def _check_settings(config: PeftConfig, file: PeftConfig, model_id: Any, adapter_name: str) -> None:
    """Raises ValueError if the weights in a file mean something else in the adapter of `config`."""
    saved = _settings(file)
    differing = {name: value for name, value in _settings(config).items() if saved.get(name) != value}
    if differing:
        theirs, ours = (
            ", ".join(f"{name}={settings.get(name)!r}" for name in differing) for settings in (saved, differing)
        )
        raise ValueError(
            f"The adapter in '{model_id}' was saved with {theirs}, and '{adapter_name}' has {ours}. Load it under "
            "another name, or leave `config` out, so that the saved settings are used."
        )


def _warn_of_decoders(unexpected: Iterable[str], model_id: Any) -> None:
    """Warns of the decoders among the weights of a file for which the model has no place."""
    heads = (key.partition(".decoders.heads.")[2].partition(".")[0] for key in unexpected)
    tasks = sorted({task for task in heads if task})
    if tasks:
        warnings.warn(
            f"The adapter in '{model_id}' has decoders for {tasks}, which the model lacks. They were not loaded, and "
            "will be missing where the adapter is saved again. To keep them, use peft_polyhistor.load, or build the "
            "dense model with these tasks.",
            stacklevel=3,
        )


@contextmanager
def _keeping_decoders(model: MultiTaskDenseModel) -> Iterator[None]:
    """Lets a file without decoders leave those of the adapter as they are, where PEFT expects them in the file."""
    is_wrapped = isinstance(model.decoders, AuxiliaryTrainingWrapper)
    if is_wrapped:
        vars(model.decoders)["adapter_state_dict_load_map"] = lambda adapter_name: {}
    try:
        yield
    finally:
        if is_wrapped:
            del vars(model.decoders)["adapter_state_dict_load_map"]


_load_adapter = PeftModel.load_adapter


@wraps(_load_adapter)
def load_adapter(self: PeftModel, model_id: Any, adapter_name: str, *args: Any, **kwargs: Any) -> Any:
    hub_options, _ = self._split_kwargs(kwargs)
    config, model = self.peft_config.get(adapter_name), self.get_base_model()
    if not isinstance(config, MultiTaskConfig) and not isinstance(model, MultiTaskDenseModel):
        return _load_adapter(self, model_id, adapter_name, *args, **kwargs)
    file = PeftConfig.from_pretrained(str(model_id), **hub_options)
    # PEFT reads no config if the adapter exists already, and copies the weights row by row. A row belongs to a task,
    # so the weights of other tasks, or of the same tasks in another order, would go to the wrong tasks without an
    # error. Weights also fit an adapter that computes something else with them, such as one of another placement.
    if isinstance(config, MultiTaskConfig):
        _check_settings(config, file, model_id, adapter_name)
        if config.made_for is not None:
            check_base(file, config.made_for)
            config.made_for = keep_sizes(config.made_for, file, config.inference_mode)
    if not isinstance(model, MultiTaskDenseModel):
        return _load_adapter(self, model_id, adapter_name, *args, **kwargs)
    # PEFT drops weights that find no place, and the tuner has recorded the settings of the model's own decoders.
    made_for = getattr(file, "made_for", None)
    with _keeping_decoders(model) if made_for and not made_for["decoders"] else nullcontext():
        result = _load_adapter(self, model_id, adapter_name, *args, **kwargs)
    config = self.peft_config[adapter_name]
    if isinstance(config, MultiTaskConfig):
        _warn_of_decoders(result.unexpected_keys, model_id)
        if made_for is not None:
            own = model.config.decoder_settings()
            has_own = not made_for["decoders"] and "decoders" in (config.modules_to_save or [])
            decoders = own if has_own else keep_settings(own, made_for["decoders"])
            config.made_for = (config.made_for or {}) | {"decoders": decoders}
    return result


PeftModel.load_adapter = load_adapter  # type: ignore[method-assign]
