# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Batches laid out task by task: the whole batch of the first task, then that of the second, and so on."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any

from torch import Tensor


Arguments = tuple[tuple[Any, ...], dict[str, Any]]  # of a call: by position, and by keyword


def first_tensor(value: Any) -> Tensor | None:
    """The first tensor with a first axis in nested containers; `None` where there is none."""
    if isinstance(value, Tensor):
        return value if value.ndim else None
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, tuple | list):
        return None
    return next((tensor for item in value if (tensor := first_tensor(item)) is not None), None)


def repeat_batch(value: Any, times: int) -> Any:
    """Repeats the batch in `value` once per task: every tensor with as many entries on its first axis as the first."""
    first = first_tensor(value)
    return value if times == 1 or first is None else _repeat(value, times, first.shape[0])


def _repeat(value: Any, times: int, size: int) -> Any:
    if isinstance(value, Tensor):
        is_batch = value.ndim and value.shape[0] == size
        return value.repeat(times, *[1] * (value.ndim - 1)) if is_batch else value
    if isinstance(value, Mapping):
        return _like(value, {key: _repeat(item, times, size) for key, item in value.items()})
    if isinstance(value, tuple | list):
        return _rebuild(value, [_repeat(item, times, size) for item in value])
    return value


def split_batch(value: Any, parts: int) -> list[Any]:
    """Cuts every tensor in `value` along its first axis into equal parts; containers keep their type.

    Raises:
        ValueError: A tensor has no such axis, as a loss has none.
    """
    if isinstance(value, Tensor):
        if value.ndim == 0 or value.shape[0] % parts:
            raise ValueError(
                f"The model returned a tensor of shape {tuple(value.shape)}, which cannot be split into {parts} tasks."
                " Call it with task= for one task at a time (a loss over labels is such an output)."
            )
        return list(value.unflatten(0, (parts, -1)).unbind())
    if isinstance(value, Mapping):
        items = {key: split_batch(item, parts) for key, item in value.items()}
        make = partial(_like, value)
        return [make({key: item[i] for key, item in items.items()}) for i in range(parts)]
    if isinstance(value, tuple | list):
        columns = [split_batch(item, parts) for item in value]
        return [_rebuild(value, [column[i] for column in columns]) for i in range(parts)]
    return [value] * parts


def _rebuild(value: tuple[Any, ...] | list[Any], items: list[Any]) -> tuple[Any, ...] | list[Any]:
    """A sequence of the same type; named tuples take their items one by one."""
    return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)


def _like(value: Mapping[str, Any], items: dict[str, Any]) -> Mapping[str, Any]:
    if is_dataclass(value):  # transformers' ModelOutput, which is a mapping of its fields that are not None
        return type(value)(**{field.name: items.get(field.name) for field in fields(value)})
    return items
