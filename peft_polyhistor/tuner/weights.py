# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Generates adapter weights for the tasks of a call, or once for several calls."""

from collections.abc import Sequence
from dataclasses import dataclass
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from ..checks import find_repeated
from ..config import MultiTaskConfig
from .batches import cut, join
from .site import Site


SiteWeights = dict[str, list[tuple[Any, float]]]  # by name of the site: weights and dropout of each active adapter


@dataclass
class AdapterRecord:
    """Config and sites of one adapter of a model."""

    config: MultiTaskConfig
    sites: list[Site]


def resolve_tasks(known: list[str], task: str | None = None, tasks: Sequence[str] | None = None) -> tuple[str, ...]:
    """Returns the tasks of a call with `task=` or `tasks=`. Both may be left out if only one task is known.

    Raises:
        ValueError: No task is named, `task` and `tasks` are both given, or a task is unknown.
        TypeError: `tasks` is not a list.
    """
    if task is not None and tasks is not None:
        raise ValueError(
            f"Give `task` or `tasks`, not both; got task={task!r} and tasks={tasks!r}. Tasks are {known}."
        )
    if tasks is not None and (isinstance(tasks, str) or not isinstance(tasks, Sequence)):
        raise TypeError(
            f"`tasks` must be a list of names, got {tasks!r}. For one task write task= with one of {known}."
        )
    if not known:
        raise ValueError(
            "The active adapters have no task in common. Activate only one of them, or adapters with a common task."
        )
    if tasks is None:
        tasks = known if task is None else [task]
        if len(tasks) > 1:
            raise ValueError(
                f"The adapter serves several tasks, and the call names none. Pass task= with one of {known}, or "
                "tasks= with a list of them."
            )
    named = tuple(tasks)
    unknown = [name for name in named if name not in known]
    fault = "no task" if not named else f"unknown are {unknown}" if unknown else ""
    if not fault and (again := find_repeated(named)):
        fault = f"{again} more than once"
    if fault:
        raise ValueError(f"Tasks must be among {known}, each named once; got {list(named)}: {fault}.")
    return named


def generate(adapters: Sequence[tuple[AdapterRecord, nn.Module]], tasks: Sequence[str]) -> SiteWeights:
    """Generates the weights of some adapters for `tasks`, the leading axis of each tensor that differs by task."""
    weights: SiteWeights = {}
    for adapter, generator in adapters:
        device = next(generator.parameters()).device
        if device.type == "meta":  # accelerate offloads the parameters, and moves the indices to them
            device = torch.device("cpu")
        indices = torch.tensor([adapter.config.tasks.index(task) for task in tasks], device=device)
        # In full precision: generation is a small part of a step, and the whole step uses its results.
        with torch.autocast(device.type, enabled=False):
            generated = generator(indices)
        for site, site_weights in zip(adapter.sites, generated, strict=True):
            weights.setdefault(site.name, []).append((site_weights, adapter.config.dropout))
    return weights


class KeptWeights:
    """Weights generated once for many passes and detached from their generators.

    They accumulate the gradient of any number of backward passes; `backward` propagates it to the generators.
    """

    def __init__(self, generators: Sequence[nn.Module], tasks: Sequence[str], weights: SiteWeights):
        self._generators, self._with_gradient = generators, torch.is_grad_enabled()
        self._generated: list[Any] = []  # leaves of the weights: tensors and numbers
        self._kept: list[Any] = []
        self._of_task: dict[str, SiteWeights] = {}
        self._is_over = False
        for task, of_task in zip(tasks, cut(weights, [1] * len(tasks), len(tasks)), strict=True):
            leaves, structure = tree_flatten(of_task)
            kept = [self._keep(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            self._of_task[task] = tree_unflatten(kept, structure)
            self._generated += leaves
            self._kept += kept

    def _keep(self, generated: Tensor) -> Tensor:
        kept = generated.detach().requires_grad_(generated.requires_grad)
        if kept.requires_grad:
            kept.register_hook(self._refuse_late_gradient)
        return kept

    def _refuse_late_gradient(self, gradient: Tensor) -> None:
        if self._is_over:
            raise RuntimeError(
                "A backward pass came after the `generate_once` block of its forward pass, so its gradient would not "
                "reach the generators. Call `backward` within the block."
            )

    def serves(self, generators: Sequence[nn.Module]) -> bool:
        """Tells whether the weights come from these generators and have gradient if gradient is enabled."""
        is_same = len(generators) == len(self._generators) and all(map(is_, generators, self._generators))
        return is_same and (self._with_gradient or not torch.is_grad_enabled())

    def of(self, tasks: Sequence[str]) -> SiteWeights:
        """Returns the weights of some of the tasks."""
        return join([self._of_task[task] for task in tasks])

    def backward(self) -> None:
        """Propagates the accumulated gradient to the generators; later backward passes raise an error."""
        self._is_over = True
        pairs = [
            (generated, kept.grad)
            for generated, kept in zip(self._generated, self._kept, strict=True)
            if isinstance(kept, Tensor) and kept.grad is not None
        ]
        if pairs:
            generated, gradients = zip(*pairs, strict=True)
            torch.autograd.backward(generated, gradients)
