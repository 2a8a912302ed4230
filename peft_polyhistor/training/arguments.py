# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Reads dataclasses of settings from a YAML file and the command line, and checks them."""

import math
import re
import sys
from argparse import SUPPRESS, ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import yaml
from accelerate import PartialState
from transformers.hf_argparser import string_to_bool

from ..tasks import declare_tasks, describe_tasks, get_tasks


_KINDS = {int: "an integer", float: "a number", str: "a string", bool: "true or false", list: "a list"}


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    """Reads 1e-4 as a number, as in YAML 1.2; PyYAML follows YAML 1.1, where it is a string."""


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+[eE][-+]?\d+$"), list("-+0123456789"))


def read_yaml(text: str, name: str) -> Any:
    """Parses a YAML text; raises ValueError, with the name of its file or setting, if it is invalid."""
    try:
        return _Loader(text).get_single_data()
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{name}: {text[:80]!r} is not valid YAML: {error}. Write e.g. name: value.") from error


def read_mapping(file: Path) -> dict[str, Any]:
    """Reads a YAML file of settings; raises ValueError if it is invalid or holds no mapping, else OSError."""
    if not file.is_file():
        raise FileNotFoundError(f"There is no file '{file}'. Give a YAML file of settings.")
    try:
        text = file.read_text(encoding="utf-8")
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    values = read_yaml(text, str(file))
    if not isinstance(values, dict):
        raise ValueError(f"{file} must hold one `name: value` a line, got {values!r}.")
    return values


def option(
    default: Any, text: str, at_least: float = -math.inf, below: float = math.inf, among: Sequence[str] = ()
) -> Any:
    """Defines a field of a dataclass of settings: its default, its line in `--help`, and the allowed values."""
    metadata = {"help": text, "at_least": at_least, "below": below, "among": list(among)}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def check_options(settings: Any) -> None:
    """Checks types and values of the fields that `option` defined; an integer for a float field becomes a float.

    Raises:
        ValueError: The type of a value is not that of its field, or the value is not allowed.
    """
    kinds = get_type_hints(type(settings))
    for item in fields(settings):
        name, value, allowed = item.name, getattr(settings, item.name), item.metadata
        kind = get_origin(kinds[name]) or kinds[name]
        if kind is float and type(value) is int:
            setattr(settings, name, value := float(value))
        if type(value) is not kind:
            raise ValueError(f"`{name}` must be {_KINDS[kind]}, got {value!r}.")
        if get_args(kinds[name]) in [(int,), (float,)]:
            _check_items(name, value, *get_args(kinds[name]))
        if value == "" != item.default:
            raise ValueError(f"`{name}` is empty; give --{name} VALUE.")
        if kind in (int, float) and not value >= allowed["at_least"]:  # also for NaN
            raise ValueError(f"`{name}` must be at least {allowed['at_least']}, got {value}.")
        if kind in (int, float) and not value < allowed["below"]:
            raise ValueError(f"`{name}` must be below {allowed['below']}, got {value}.")
        if allowed["among"] and value not in allowed["among"]:
            raise ValueError(f"`{name}` must be one of {allowed['among']}, got {value!r}.")


def _check_items(name: str, items: list[Any], kind: type) -> None:
    """Checks the types of the numbers in a list; an integer in a list of floats becomes a float."""
    for index, item in enumerate(items):
        if kind is float and type(item) is int:
            items[index] = float(item)
        elif type(item) is not kind:
            raise ValueError(f"`{name}` must be a list whose items are each {_KINDS[kind]}, got {item!r} in {items}.")


def list_changes(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Describes the settings that differ from those of an earlier run."""
    return [
        f"{name} was {earlier.get(name)!r} and is {value!r}"
        for name, value in now.items()
        if earlier.get(name) != value
    ]


def parse_settings(argv: Sequence[str], description: str, default_file: Path, *classes: type) -> tuple[Any, ...]:
    """Reads settings from a YAML file, which the first argument names, and from `--name value`, which override it.

    Args:
        argv: The arguments of the command line, without the program.
        description: Description of the program in `--help`.
        default_file: The YAML file if the first argument names none. Without this file, fields keep their defaults.
        *classes: Dataclasses of `option` fields that call `check_options` in their `__post_init__`.

    Returns:
        An instance of each class.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not a mapping, or a setting is unknown, of the wrong type or not allowed.
    """
    file, argv = (Path(argv[0]), argv[1:]) if argv and not argv[0].startswith("-") else (default_file, argv)
    if not file.is_file() and file != default_file:
        raise FileNotFoundError(f"{file}: no such file. Give a YAML file of settings first, or only --name value.")
    values = read_mapping(file) if file.is_file() else {}
    kinds = {name: kind for cls in classes for name, kind in get_type_hints(cls).items()}
    if unknown := sorted(set(map(str, values)) - set(kinds)):
        close = [name for setting in unknown for name in get_close_matches(setting, kinds, n=1, cutoff=0.75)]
        hint = f" Did you mean {', '.join(close)}?" if close else ""
        raise ValueError(f"{file}: unknown settings {unknown}.{hint} Known are {', '.join(kinds)}.")
    for name, value in values.items():
        if kinds[name] is str and value is False:  # YAML 1.1 reads a bare `no` as false
            values[name] = "no"
        elif get_origin(kinds[name]) is list and not isinstance(value, list):
            values[name] = [value]
    # `HfArgumentParser` cannot state the allowed values.
    parser = ArgumentParser(description=description, formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False)
    for item in (item for cls in classes for item in fields(cls)):
        kind, default = kinds[item.name], item.default if item.default_factory is MISSING else item.default_factory()
        options: dict[str, Any] = {"type": get_args(kind)[0], "nargs": "*"} if get_args(kind) else {"type": kind}
        if kind is bool:
            options = {"type": string_to_bool, "nargs": "?", "const": True}
        text = f"{_describe(item.metadata)} (default: {values.get(item.name, default)})".replace("%", "%%")
        parser.add_argument(f"--{item.name}", default=SUPPRESS, help=text, **options)
    given = vars(parser.parse_args(argv))
    if "tasks" in given and "tasks" in values:
        read_tasks(values["tasks"])  # so that --tasks may name those that the file describes
    values |= given
    names = [values.keys() & {item.name for item in fields(cls)} for cls in classes]
    return tuple(cls(**{name: values[name] for name in own}) for cls, own in zip(classes, names, strict=True))


def run_recipe(main: Callable[..., object], description: str, default_file: Path, *classes: type) -> None:
    """Runs `main` with the settings of the command line, read as by `parse_settings`.

    A fault in the settings ends the process with its message.
    """
    try:
        settings = parse_settings(sys.argv[1:], description, default_file, *classes)
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    main(*settings)
    PartialState().destroy_process_group()


def _describe(metadata: Mapping[str, Any]) -> str:
    """Returns the help text of a field with its allowed values."""
    limits = [f"at least {metadata['at_least']:g}"] if metadata["at_least"] > -math.inf else []
    limits += [f"below {metadata['below']:g}"] if metadata["below"] < math.inf else []
    limits += [f"one of {', '.join(metadata['among'])}"] if metadata["among"] else []
    return metadata["help"] + (f"; {' and '.join(limits)}" if limits else "")


def read_items(items: Sequence[Any], name: str) -> list[Any]:
    """Parses strings among the items of a setting as YAML: names, and mappings such as `depth: {kind: regression}`."""
    return [read_yaml(item, f"`{name}`") if isinstance(item, str) else item for item in items]


def read_tasks(items: Sequence[Any]) -> list[Any]:
    """Reads tasks, and registers those that are described.

    Returns:
        The tasks in the form of `describe_tasks`.

    Raises:
        ValueError: A task is unknown, given twice, or has an invalid description.
    """
    return describe_tasks(task.name for task in get_tasks(declare_tasks(read_items(items, "tasks"))))


def read_loss_weights(items: Sequence[Any], tasks: Sequence[str]) -> dict[str, float]:
    """Reads loss weights: items `task=weight` or mappings, or `["uniform"]`, which gives each task the weight 1.

    Raises:
        ValueError: An item does not name a task of the run, or its weight is not a positive number.
    """
    if list(items) == ["uniform"]:
        return dict.fromkeys(tasks, 1.0)
    pairs = _read_pairs(items)
    weights = dict(zip(pairs, read_items(list(pairs.values()), "loss_weights"), strict=True))
    for task, weight in weights.items():
        if task not in tasks or type(weight) not in (int, float) or not 0 < weight < math.inf:
            allowed = f"items task=weight with a task of {list(tasks)} and a weight above 0"
            raise ValueError(f"`loss_weights` must be 'uniform' or {allowed}, got {task}={weight}.")
    return weights


def read_layout(items: Any) -> dict[str, str]:
    """Reads a layout for `load_dense_dataset`: items `ours=theirs` or mappings.

    Raises:
        ValueError: An item lacks the name in the data.
    """
    layout = _read_pairs(items if isinstance(items, list) else [items])
    for ours, theirs in layout.items():
        if not isinstance(theirs, str) or not theirs:
            raise ValueError(f"`layout` must be items ours=theirs, such as image=photos, got {ours}={theirs!r}.")
    return layout


def _read_pairs(items: Sequence[Any]) -> dict[str, Any]:
    """Joins mappings and strings `name=value` into one mapping."""
    pairs: dict[str, Any] = {}
    for item in items:
        name, _, value = str(item).partition("=")
        pairs |= item if isinstance(item, dict) else {name: value}
    return pairs
