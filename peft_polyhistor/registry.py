# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Registers the methods of this package with PEFT."""

import peft
from peft import PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import register_peft_method

from .config import MultiTaskConfig, document


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
