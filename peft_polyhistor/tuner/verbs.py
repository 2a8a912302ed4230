# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Tuner methods that work on the tasks of a trained adapter, beyond those of PEFT."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTuner
from peft.utils.constants import DUMMY_TARGET_MODULES
from torch import Tensor, nn

from ..config import MultiTaskConfig
from ..models.multitask import MultiTaskDenseModel
from ..tasks import describe_tasks
from .merging import merge
from .router import Router, router_of
from .weights import SiteWeights, resolve_tasks


class TaskVerbs(BaseTuner):
    """Methods of a tuner, and so of its `PeftModel`, for the tasks of an adapter.

    `add_task` and `remove_task` replace parameters of the adapter: create the optimiser afterwards.
    """

    peft_config: dict[str, MultiTaskConfig]  # type: ignore[assignment]  # PEFT gives a tuner only configs of its method

    @property
    def router(self) -> Router | None:
        """The module that holds and generates the weights of all adapters; `None` if no module is adapted."""
        return router_of(self.model)

    def add_task(self, name: str, from_: str | None = None, adapter_name: str | None = None) -> None:
        """Adds a task to a trained adapter. The weights of other tasks, and those that tasks share, do not change.

        A dense model also gets a decoder for the task. It is a copy of the decoder of `from_`, with a fresh classifier
        if the number of output channels differs.

        Args:
            name: Name of the new task; on a dense model one of `TASKS`.
            from_: The task whose weights are copied. `None` starts from the mean of all tasks.
            adapter_name: The adapter; `None` for the active adapter.

        Raises:
            ValueError: The adapter has the task already or does not have `from_`, or a dense model carries several
                adapters.
        """
        adapter_name = self._one_adapter(adapter_name)
        tasks = self.peft_config[adapter_name].tasks
        _require_known(from_, tasks)
        if name in tasks:
            raise ValueError(f"The adapter '{adapter_name}' has a task '{name}' already; its tasks are {tasks}.")
        decoders = self._dense_model()
        if decoders is not None:
            decoders.check_new_task(name, from_)
            if name in self.peft_config:
                raise ValueError(
                    f"The adapter has the name of the new task '{name}', so PEFT could not save the decoder. Load the "
                    "adapter under another name, or name the task differently."
                )
        rows = [*range(len(tasks)), None if from_ is None else tasks.index(from_)]
        self._set_tasks(adapter_name, [*tasks, name], rows)
        if decoders is not None:
            decoders.add_task(name, from_)
            self._record_decoders(adapter_name, added=[name])

    def remove_task(self, name: str, adapter_name: str | None = None) -> None:
        """Removes a task from a trained adapter, and its decoder from a dense model. Other tasks do not change.

        Raises:
            ValueError: The adapter does not have the task, or has no other task.
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
        if decoders is not None:
            self._record_decoders(adapter_name, removed=name)

    @contextmanager
    def generate_once(self) -> Iterator[None]:
        """Generates the weights of all tasks once, at the start of the block, for all calls of the model within it.

        A backward pass stops at these weights and frees the activations of its call. At the end of the block, the
        accumulated gradient is propagated through the generators once. A training step needs the memory of one task:

            with model.generate_once():
                for task in tasks:
                    model(pixel_values, labels, tasks=[task]).loss.backward()
            optimizer.step()

        Unscale and clip gradients, and step the optimiser, after the block: within it the generators have no gradient
        yet. Their parameters must not change within it. If the block fails, they get no gradient.

        Raises:
            RuntimeError: A backward pass comes after the block.

        Note:
            If one pass of the encoder serves all tasks, each call generates its weights as usual. With DDP, call the
            model inside of it and average the gradients afterwards, as `training.add_gradients` does. FSDP is not
            supported: it gathers the parameters of a module only in the forward pass of that module.
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
        """Merges the adapters of one task into the base model, and returns the base model.

        BitFit and position tables are added to parameters of the same shape. A bottleneck adapter in parallel to a
        feed-forward block becomes additional channels of that block, and the encoder's config records the new width:
        Polyhistor-Lite with reduction factor 2 turns a Swin into a Swin with `mlp_ratio=4.5`. The result has the class
        of the base model, and its config records the adapter as `merged_from`.

        Args:
            progressbar: No effect; merging is immediate.
            safe_merge: Check first that the result is finite.
            adapter_names: The adapters to merge; `None` for the active adapters.
            task: The task. May be left out if there is one task, or if one pass of the encoder serves all tasks.
            tasks: Several tasks. A copy of the model is merged for each task, the model itself does not change, and
                the result is a dictionary by task.

        Raises:
            ValueError: The adapters cannot be merged (beside attention, in series, with a weight of the norm near
                zero, or with widths that the encoder's config cannot express), or they do not have the task, or a
                dense model has no decoder for it. Or an adapter is unknown or was merged or unloaded before, or
                several have decoders. Nothing is changed.

        Note:
            The ratios of transformers' PVT and PVT v2 are integers: channels of zeros fill up their blocks.
        """
        names = adapter_names or self.active_adapters
        configs = self._configs_to_merge(names)
        if tasks is not None:
            asked = resolve_tasks(list(configs[0].tasks), task, tasks)
            return {name: deepcopy(self).merge_and_unload(False, safe_merge, adapter_names, name) for name in asked}
        for config in configs:
            _require_known(task, config.tasks)
        weights: SiteWeights = {}
        if self.router:
            are_all = task is None and self.router.shares_pass
            weights = self.router.weights_of(names, task=task, tasks=self.router.tasks_of(names) if are_all else None)
            if task is None and not are_all:
                [task] = self.router.tasks_of(names)
        if isinstance(self.model, MultiTaskDenseModel) and task is not None:
            self.model.config.choose_tasks([task])
        merge(self.model, weights, configs[0], task, safe_merge)
        if adapter_names:  # `unload` keeps the decoders and other `modules_to_save` of the active adapter
            self.set_adapter(names, inference_mode=configs[0].inference_mode)
        model = self.unload()
        if isinstance(model, MultiTaskDenseModel) and task is not None:
            model.keep_tasks([task])  # the encoder now serves this task only
        return model

    def _configs_to_merge(self, names: Sequence[str]) -> list[MultiTaskConfig]:
        """Returns the configs of adapters that are in the model and can be merged together."""
        if not names or any(name not in self.peft_config for name in names):
            raise ValueError(
                f"The adapters to merge must be among {list(self.peft_config)}, got {names}. Name some of them in "
                "`adapter_names`, or call `unload()` for the model without adapters."
            )
        configs = [self.peft_config[name] for name in names]
        if self.router is None and any(config.target_modules != DUMMY_TARGET_MODULES for config in configs):
            raise ValueError(
                f"The adapters {names} are no longer in the model: it was merged or unloaded before. Load the model "
                "and its adapters again. To merge several tasks, pass `tasks=[...]`, which merges each into a copy."
            )
        saved = [name for config in configs for name in set(config.modules_to_save or [])]
        if len(set(saved)) < len(saved):
            raise ValueError(
                f"The adapters {names} each have their own {sorted(set(saved))}, of which a merged model can have one "
                "set. Merge one of these adapters."
            )
        return configs

    def _dense_model(self) -> MultiTaskDenseModel | None:
        if not isinstance(self.model, MultiTaskDenseModel):
            return None
        if len(self.peft_config) > 1:
            raise ValueError(
                f"The model's decoders are for the tasks of all its adapters, {list(self.peft_config)}, so the tasks "
                "of one adapter cannot change alone. Delete the others first, or change a copy of the model."
            )
        return self.model

    def _record_decoders(self, adapter_name: str, added: Sequence[str] = (), removed: str | None = None) -> None:
        """Updates the tasks in the record of the decoders, if the adapter has decoders."""
        config = self.peft_config[adapter_name]
        record = config.made_for or {}
        decoders = dict(record.get("decoders") or {})
        if decoders:
            rows = [*decoders.pop("tasks", []), *describe_tasks(added)]
            rows = [row for row in rows if isinstance(row, dict) and removed not in row]
            weights = {task: weight for task, weight in decoders["loss_weights"].items() if task != removed}
            decoders |= {"loss_weights": weights, **({"tasks": rows} if rows else {})}
            config.made_for = record | {"decoders": decoders}

    def _set_tasks(self, adapter_name: str, tasks: list[str], rows: Sequence[int | None]) -> None:
        changed = replace(self.peft_config[adapter_name], tasks=tasks)  # `replace` checks the names
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
        raise ValueError(f"The adapter has no task '{task}'; it has {tasks}. Name one of these tasks.")


@torch.no_grad()
def copy_tasks(old: nn.Module, new: nn.Module, rows: Sequence[int | None]) -> None:
    """Copies the parameters of a generator into a generator for another list of tasks.

    A parameter belongs to tasks if its first axis depends on their number; each task then owns an equal share of its
    rows. Tasks share all other parameters.

    Args:
        old: The trained generator.
        new: A fresh generator of the same method and settings, with more or fewer tasks.
        rows: For each task of `new`, the index of its task in `old`, or `None` for the mean of all tasks.
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
