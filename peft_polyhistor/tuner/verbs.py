# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Methods of a tuner that change or use the tasks of a trained adapter, and that PEFT does not have."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor, nn

from ..config import MultiTaskConfig
from ..models.multitask import MultiTaskDenseModel
from .merging import merge
from .router import Router, router_of
from .weights import resolve_tasks


class TaskVerbs(BaseTuner):
    """Methods of a tuner, and so of its `PeftModel`, for the tasks of an adapter.

    They change the parameters of the adapter: make the optimiser afterwards.
    """

    peft_config: dict[str, MultiTaskConfig]  # type: ignore[assignment]  # PEFT gives a tuner its own configs alone

    @property
    def router(self) -> Router | None:
        """The module that holds and makes the weights of all adapters; `None` where no module carries one."""
        return router_of(self.model)

    def add_task(self, name: str, from_: str | None = None, adapter_name: str | None = None) -> None:
        """Gives a trained adapter one more task. What the tasks share stays as it is, and so do the other tasks.

        A dense model gets a decoder for it, a copy too where `from_` has as many output channels.

        Args:
            name: Name of the new task; on a dense model one of `TASKS`.
            from_: The task that it starts as a copy of; `None` for the mean of all.
            adapter_name: The adapter; `None` for the active one.

        Raises:
            ValueError: The adapter has the task, or does not have `from_`, or a dense model carries several adapters.
        """
        adapter_name = self._one_adapter(adapter_name)
        tasks = self.peft_config[adapter_name].tasks
        _require_known(from_, tasks)
        if name in tasks:
            raise ValueError(f"The adapter '{adapter_name}' has a task '{name}' already; its tasks are {tasks}.")
        decoders = self._dense_model()
        if decoders is not None:
            decoders.check_new_task(name, from_)
        rows = [*range(len(tasks)), None if from_ is None else tasks.index(from_)]
        self._set_tasks(adapter_name, [*tasks, name], rows)
        if decoders is not None:
            decoders.add_task(name, from_)
            config = self.peft_config[adapter_name]  # it describes the rows of tasks, for whoever loads it
            config.made_for = (config.made_for or {}) | {"decoders": decoders.config.decoder_settings()}

    def remove_task(self, name: str, adapter_name: str | None = None) -> None:
        """Takes a task out of a trained adapter, and its decoder out of a dense model. The other tasks stay as is.

        Raises:
            ValueError: The adapter does not have the task, or has no other.
        """
        adapter_name = self._one_adapter(adapter_name)
        tasks = self.peft_config[adapter_name].tasks
        _require_known(name, tasks)
        if len(tasks) == 1:
            raise ValueError(
                f"'{name}' is the only task of the adapter '{adapter_name}'. Use `delete_adapter` or `unload`."
            )
        decoders = self._dense_model()
        rows = [index for index, task in enumerate(tasks) if task != name]
        if decoders is not None and name in decoders.config.tasks:
            decoders.remove_task(name)
        self._set_tasks(adapter_name, [tasks[index] for index in rows], rows)

    @contextmanager
    def generate_once(self) -> Iterator[None]:
        """Calls of the model within this block share the weights of all tasks, which are generated at its start.

        A backward pass ends at these weights and frees what the call kept; at the end of the block the gradient that
        has gathered in them goes through the generators, once. So a training step needs the memory of one task:

            with model.generate_once():
                for task in tasks:
                    model(pixel_values, labels, tasks=[task]).loss.backward()
            optimizer.step()

        Clipping, unscaling and the optimiser come after the block: within it the generators have no gradient yet.
        Their parameters must not change within it. If the block fails, they get no gradient.

        Raises:
            RuntimeError: By a backward pass that comes after the block.

        Note:
            Where one pass of the encoder serves all tasks, every call generates as always. Under DDP call the model
            that it wraps, and average the gradients afterwards, as `training.add_gradients` does. Not for FSDP, which
            shows a module its whole parameters in its own forward pass alone.
        """
        with self.router.generate_once() if self.router else nullcontext():
            yield

    def merge_and_unload(
        self,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
        task: str | None = None,
        tasks: Sequence[str] | None = None,
    ) -> Any:
        """As in PEFT, for one task: the base model, which computes what it computed with the adapters of the task.

        BitFit and position tables go into parameters of the same shape. A bottleneck adapter in parallel to a
        feed-forward block becomes further channels of that block, and the encoder's config says so: Polyhistor-Lite on
        Swin with reduction factor 2 a Swin with `mlp_ratio=4.5`. The result is of the base's class, and its config
        records the adapter as `merged_from`.

        Args:
            progressbar: Without effect: there is nothing to wait for.
            safe_merge: Check first that the result is finite.
            adapter_names: The adapters to merge; `None` for the active ones.
            task: The task; may be left out where there is one, or where one pass of the encoder serves all tasks.
            tasks: Several tasks, for each of which a copy is merged; the model stays as it is. The result is a
                dictionary by task.

        Raises:
            ValueError: The adapters cannot be merged, as beside attention, in series, where a norm in front is near
                zero, or where the encoder's config cannot say how wide the blocks are; or the task is not among the
                adapters'. Nothing is changed.

        Note:
            transformers' PVT and PVT v2 are of whole ratios: there channels of zeros fill the blocks up.
        """
        names = adapter_names or self.active_adapters
        known = [config for config in map(self.peft_config.get, names) if config]
        if tasks is not None:
            asked = resolve_tasks(list(known[0].tasks), task, tasks)
            return {name: deepcopy(self).merge_and_unload(False, safe_merge, adapter_names, name) for name in asked}
        for config in known:
            _require_known(task, config.tasks)
        if self.router:
            are_all = task is None and self.router.shares_pass
            weights = self.router.weights_of(names, task=task, tasks=known[0].tasks if are_all else None)
            merge(self.model, weights, known[0], task, safe_merge)
        model = self.unload()
        if isinstance(model, MultiTaskDenseModel) and task is not None:
            model.keep_tasks([task])  # the decoders of the others have no encoder any more
        return model

    def _dense_model(self) -> MultiTaskDenseModel | None:
        if not isinstance(self.model, MultiTaskDenseModel):
            return None
        if len(self.peft_config) > 1:
            raise ValueError(
                f"The model's decoders are for the tasks of all its adapters, {list(self.peft_config)}: changing "
                "those of one would leave the others without. Delete the others first, or change a copy."
            )
        return self.model

    def _set_tasks(self, adapter_name: str, tasks: list[str], rows: Sequence[int | None]) -> None:
        changed = replace(self.peft_config[adapter_name], tasks=tasks)  # which checks the names
        if self.router:
            old, record = self.router.generators[adapter_name], self.router.records[adapter_name]
            new = changed.make_generator(record.sites)
            reference = next(old.parameters())
            copy_tasks(old, new.to(reference.device, reference.dtype), rows)
            self.router.generators[adapter_name] = new.train(old.training)
            record.config = changed
        self.peft_config[adapter_name] = changed

    def _one_adapter(self, adapter_name: str | None) -> str:
        given = self.active_adapters if adapter_name is None else [adapter_name]
        if len(given) != 1 or given[0] not in self.peft_config:
            raise ValueError(f"`adapter_name` must be one of {list(self.peft_config)}, got {adapter_name!r}.")
        return given[0]


def _require_known(task: str | None, tasks: Sequence[str]) -> None:
    if task is not None and task not in tasks:
        raise ValueError(f"There is no task '{task}'; the adapter has {tasks}.")


@torch.no_grad()
def copy_tasks(old: nn.Module, new: nn.Module, rows: Sequence[int | None]) -> None:
    """Fills the generator of a changed list of tasks from the one before.

    A parameter is per task where its first axis changes with the number of tasks; every task then owns an equal share
    of the rows. All others are shared by the tasks.

    Args:
        old: The trained generator.
        new: A fresh one of the same method and settings, with more or fewer tasks.
        rows: For each task of `new`, the index of the task of `old` that it is, or `None` for the mean of all.
    """
    for name, parameter in new.named_parameters():
        source: Tensor = old.get_parameter(name)
        parameter.requires_grad_(source.requires_grad)
        if source.shape != parameter.shape:
            of_tasks = source.unflatten(0, (-1, len(parameter) // len(rows)))  # (tasks, rows of a task, ...)
            source = torch.cat([of_tasks.mean(dim=0) if row is None else of_tasks[row] for row in rows])
        parameter.copy_(source)
    for name, buffer in new.named_buffers():
        buffer.copy_(old.get_buffer(name))
