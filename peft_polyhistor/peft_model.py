# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Replaces two methods of `PeftModel` for adapters of this package, and leaves them as they are for all others.

`load_adapter`: PEFT checks nothing if an adapter of the name exists already, and drops weights that find no place. A
tuner is not asked in either case.

`push_to_hub`: PEFT uploads a model card of its own, and neither the image processor nor the training record.
"""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import fields
from functools import wraps
from typing import Any

from peft import PeftConfig, PeftModel, PeftType
from peft.utils.other import AuxiliaryTrainingWrapper

from .config import MultiTaskConfig
from .hub import publish
from .models.multitask import MultiTaskDenseModel
from .tuner.provenance import check_base, keep_settings, keep_sizes


_load_adapter, _push_to_hub = PeftModel.load_adapter, PeftModel.push_to_hub

# Fields that do not change what a trained adapter computes in evaluation mode, and lists whose order changes it.
WITHOUT_EFFECT = {item.name for item in fields(PeftConfig)}
WITHOUT_EFFECT |= {"modules_to_save", "init_weights", "tasks_per_pass", "made_for", "dropout"}
ORDERED = {"tasks", "bottlenecks"}


def _settings(config: PeftConfig) -> dict[str, Any]:
    """Returns the method of an adapter and the settings that change what it computes, in one form for each value."""
    settings: dict[str, Any] = {"peft_type": PeftType(config.peft_type).value}
    for name in (item.name for item in fields(config) if item.name not in WITHOUT_EFFECT):
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


def push_to_hub(self: PeftModel, repo_id: str, **kwargs: Any) -> str:
    """Publishes an adapter of this package as `peft_polyhistor.publish` does, and any other as PEFT does.

    It takes the arguments of both; `None` stands for the default. `max_shard_size` has no effect on adapters, which
    are one file.
    """
    if not isinstance(self.peft_config[self.active_adapter], MultiTaskConfig):
        return _push_to_hub(self, repo_id, **kwargs)
    given = {name: value for name, value in kwargs.items() if value is not None and name != "max_shard_size"}
    return publish(self, repo_id, **given)


PeftModel.load_adapter = load_adapter  # type: ignore[method-assign]
PeftModel.push_to_hub = push_to_hub  # type: ignore[assignment, method-assign]
