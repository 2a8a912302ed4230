# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Values of settings as YAML reads them, turned into what was meant."""

import json
from contextlib import suppress
from typing import Any

import yaml


DEEPEST = 16  # a setting of a method needs 3
_STARTS = (
    *(yaml.FlowSequenceStartToken, yaml.FlowMappingStartToken),
    *(yaml.BlockSequenceStartToken, yaml.BlockMappingStartToken),
)
_ENDS = (yaml.FlowSequenceEndToken, yaml.FlowMappingEndToken, yaml.BlockEndToken)


def convert(name: str, value: Any, wanted: Any) -> Any:
    """What YAML read, as the type of its field; TypeError if it is something else."""
    if name == "mixed_precision" and value is False:  # so YAML reads a bare `no`
        return "no"
    if wanted == list[str]:
        if isinstance(value, dict) and name in ("method_settings", "loss_weights"):
            value = [f"{key}={json.dumps(item, default=str)}" for key, item in value.items()]
        value = [value] if isinstance(value, str) else value
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return value
    elif wanted is float:
        value = _number(value)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    elif type(value) is wanted:
        return value
    kinds = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    raise TypeError(f"`{name}` must be {kinds.get(wanted, 'a list of texts')}, got {value!r}.")


def read_yaml(text: str) -> Any:
    """Values of a YAML text that is not nested without end, and has no aliases, by which a few lines can be endless.

    Raises:
        ValueError: It is no such text.
    """
    try:
        depth = 0
        for token in yaml.scan(text):
            depth += isinstance(token, _STARTS) - isinstance(token, _ENDS)
            if depth > DEEPEST:
                raise ValueError(f"it is nested deeper than {DEEPEST}")
            if isinstance(token, yaml.AliasToken):
                raise ValueError("it has an alias (*name): write the value in each place")
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def read_pairs(name: str, items: list[str]) -> dict[str, Any]:
    """`["rank=4"]` to `{"rank": 4}`; values are read as YAML."""
    pairs = {}
    for item in items:
        key, sign, text = item.partition("=")
        try:
            pairs[key] = _number(read_yaml(text))
        except ValueError as error:
            raise ValueError(
                f"`{name}`: the value of {item!r} is no YAML ({error}). Write e.g. name=4 or name=[a,b]."
            ) from error
        if not key or not sign:
            raise ValueError(f"`{name}` must be items of the form name=value, got {items}.")
    if len(pairs) < len(items):
        raise ValueError(f"`{name}` must give each name once, got {items}.")
    return pairs


def _number(value: Any) -> Any:
    """YAML 1.1 reads 1e-4, which has no point, as text."""
    if isinstance(value, str):
        with suppress(ValueError):
            return float(value)
    return value
