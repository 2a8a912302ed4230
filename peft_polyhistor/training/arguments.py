# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Settings in a dataclass, from a YAML file and the command line, checked before anything is loaded.

`HfArgumentParser` is not used: it neither reads lists of mappings, such as methods with their settings, nor checks the
types of what stands in a file.
"""

import math
from argparse import SUPPRESS, ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, Field, field, fields
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import yaml


_KINDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


def option(
    default: Any, text: str, *, at_least: float | None = None, below: float = math.inf, choices: Sequence[str] = ()
) -> Any:
    """A field of a dataclass of settings.

    Args:
        default: Its default.
        text: The line that `--help` shows.
        at_least: The smallest value.
        below: The first value that is too large.
        choices: The values that are allowed; none: all.
    """
    metadata = {"help": text, "at_least": at_least, "below": below, "choices": list(choices)}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def check_options(settings: Any) -> None:
    """Checks the values of a dataclass whose fields are made by `option`.

    Raises:
        ValueError: A value is outside its range or none of the choices, or a number is not finite.
    """
    for setting in fields(settings):
        name, value, allowed = setting.name, getattr(settings, setting.name), setting.metadata
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"`{name}` must be finite, got {value}.")
        if allowed["at_least"] is not None and value < allowed["at_least"]:
            raise ValueError(f"`{name}` must be at least {allowed['at_least']}, got {value}.")
        if allowed["below"] < math.inf and value >= allowed["below"]:
            raise ValueError(f"`{name}` must be below {allowed['below']}, got {value}.")
        if allowed["choices"] and value not in allowed["choices"]:
            raise ValueError(f"`{name}` must be among {allowed['choices']}, got {value!r}.")


def parse_settings(argv: Sequence[str], description: str, default_file: Path, *classes: type) -> tuple[Any, ...]:
    """Reads settings from an optional YAML file, the first argument, and from `--name value`, which wins.

    Args:
        argv: The command line without the program.
        description: Text of `--help`.
        default_file: The YAML file where the first argument names none.
        *classes: Dataclasses with fields of type int, float, bool, str, a list of these, or list for any values.

    Returns:
        An instance of each class.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A setting is unknown, of another type than its field, or not allowed.
    """
    parser = ArgumentParser(description=description, formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("file", nargs="?", type=Path, default=default_file, help="YAML file (default: %(default)s)")
    known: dict[str, Any] = {}
    for cls in classes:
        known |= get_type_hints(cls)
        for setting in fields(cls):
            kind: Any = known[setting.name]
            several = "+" if (get_origin(kind) or kind) is list else "?" if kind is bool else None
            text = f"{setting.metadata['help']} (default: {_default_of(setting)})".replace("%", "%%")
            parser.add_argument(f"--{setting.name}", nargs=several, const=True, default=SUPPRESS, help=text)
    given = vars(parser.parse_args(argv))
    file = given.pop("file")
    values = _read_file(file)
    unknown = sorted(set(map(str, values)) - set(known))
    if unknown:
        raise ValueError(f"{file}: unknown settings {unknown}; known are {list(known)}.")
    values = {name: _convert(f"{file}: `{name}`", value, known[name]) for name, value in values.items()}
    for name, value in given.items():
        is_text = known[name] in (str, list) or get_args(known[name]) == (str,)
        values[name] = _convert(f"`{name}`", value if is_text else _read_each(value), known[name])
    return tuple(cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values}) for cls in classes)


def _default_of(setting: "Field[Any]") -> Any:
    return setting.default if setting.default_factory is MISSING else setting.default_factory()


def _read_file(file: Path) -> Mapping[str, Any]:
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file. Give a YAML file of settings first, or only --name value.")
    try:
        values = read_yaml(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is no YAML: {error}. Write one `name: value` a line.") from error
    if not isinstance(values, dict | None):
        raise ValueError(f"{file} must hold one `name: value` a line, got {values!r}.")
    return values or {}


def read_yaml(text: str) -> Any:
    """The value of a YAML text.

    Raises:
        ValueError: It is no YAML.
    """
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(str(error)) from error


def as_number(value: Any) -> Any:
    """The number that a text such as 1e-4 stands for, which YAML 1.1 reads as text; other values as they are."""
    if isinstance(value, str):
        with suppress(ValueError):
            return float(value)
    return value


def _read_each(given: Any) -> Any:
    if isinstance(given, list):
        return [_read_each(item) for item in given]
    return read_yaml(given) if isinstance(given, str) else given


def _convert(name: str, value: Any, wanted: Any) -> Any:
    """The value as the type of its field."""
    if wanted is str and value is False:  # YAML 1.1 reads a bare `no` so
        return "no"
    if wanted is float and type(as_number(value)) in (int, float):
        return float(as_number(value))
    if (get_origin(wanted) or wanted) is list:
        if isinstance(value, dict) and get_args(wanted) == (str,):  # of items name=value
            value = [f"{key}={item}" for key, item in value.items()]
        values = value if isinstance(value, list) else [value]
        return (
            [_convert(f"each of {name}", item, *get_args(wanted)) for item in values] if get_args(wanted) else values
        )
    if type(value) is not wanted:
        raise ValueError(f"{name} must be {_KINDS[wanted]}, got {value!r}.")
    return value
