# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Batches laid out task by task: all images of the first task, then all images of the second, and so on."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten


Arguments = tuple[tuple[Any, ...], dict[str, Any]]  # positional and keyword arguments of a call


def first_tensor(value: Any) -> Tensor | None:
    """Returns the first tensor in nested containers that has an axis, or `None` if there is none."""
    return next((leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor) and leaf.ndim), None)


def repeat_batch(arguments: Arguments, times: int) -> Arguments:
    """Repeats the batch `times` times, in every tensor whose first axis is as long as that of the first tensor."""
    first = first_tensor(arguments)
    if times == 1 or first is None:
        return arguments

    def repeat(leaf: Any) -> Any:
        is_batch = isinstance(leaf, Tensor) and leaf.ndim and leaf.shape[0] == first.shape[0]
        return leaf.repeat(times, *[1] * (leaf.ndim - 1)) if is_batch else leaf

    return tree_map(repeat, arguments)


def split_batch(output: Any, tasks: int, images: int) -> list[Any]:
    """Splits each tensor in `output` along its first axis into one part per task; containers keep their type.

    Args:
        output: Tensors with one row per image, or one row per window of an image.
        tasks: Number of tasks in the batch.
        images: Number of images per task.

    Raises:
        ValueError: The rows of a tensor cannot be split so, or it has none, like a loss.
    """
    for leaf in tree_leaves(output):
        if isinstance(leaf, Tensor) and (leaf.ndim == 0 or leaf.shape[0] % (tasks * images)):
            raise ValueError(
                f"The model returned a tensor of shape {tuple(leaf.shape)}, which cannot be split into {tasks} tasks "
                f"of {images} images. Call it with task= for one task at a time, as for a loss over labels."
            )
    return cut(output, [1] * tasks)


def cut(tree: Any, shares: Sequence[int], rows: int | None = None) -> list[Any]:
    """Splits the tensors in `tree` along their first axis into parts of the relative sizes `shares`.

    Args:
        tree: Nested containers.
        shares: Relative sizes of the parts.
        rows: Split only tensors whose first axis has this length; every part gets all other leaves. `None` splits all
            tensors.
    """
    leaves, structure = tree_flatten(tree)
    parts: list[Sequence[Any]] = []
    for leaf in leaves:
        if isinstance(leaf, Tensor) and leaf.ndim and (rows is None or leaf.shape[0] == rows):
            parts.append(leaf.split([share * (leaf.shape[0] // sum(shares)) for share in shares]))
        else:
            parts.append([leaf] * len(shares))
    return [tree_unflatten([part[i] for part in parts], structure) for i in range(len(shares))]


def join(trees: Sequence[Any]) -> Any:
    """Reverses `cut`: concatenates the tensors along their first axis; all other leaves come from the first tree."""
    if len(trees) == 1:
        return trees[0]
    return tree_map(lambda *parts: torch.cat(parts) if isinstance(parts[0], Tensor) else parts[0], *trees)
