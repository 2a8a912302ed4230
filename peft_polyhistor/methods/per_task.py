# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""PEFT's own methods in the dense model: one adapter per task, of LoRA or any other method for linear layers.

model = MultiTaskDenseModel.from_encoder(load_encoder("swin-mini"), ["semseg", "normals"])
adapt_per_task(model, LoraConfig(r=8))
save_per_task(model, "folder")  # ordinary PEFT adapters in folder/semseg and folder/normals, and the decoders
load_per_task(another_model, "folder")
"""

import os
from copy import deepcopy
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_model, save_file, save_model
from torch import nn
from transformers.utils import SAFE_WEIGHTS_NAME

from ..config import MultiTaskConfig
from ..hub.weights import CONFIG, WEIGHTS, adapter_shapes, difference, read_shapes, shapes_of, without_memory
from ..models.blocks import find_blocks
from ..models.multitask import MultiTaskDenseModel
from ..models.stages import StageEncoder
from ..tuner.matching import check_names
from .per_task_encoder import PerTaskEncoder


DECODERS = "decoders.safetensors"
# Starts of LoRA that change the frozen weights.
CHANGING_STARTS = "pissa", "olora", "corda", "loftq", "lora_ga"


class PerTaskDenseModel(MultiTaskDenseModel):
    """The class of a dense model with an adapter per task, which `Trainer` can save."""

    def save_pretrained(  # type: ignore[override]  # takes all arguments of transformers
        self, save_directory: str | os.PathLike[str], is_main_process: bool = True, **kwargs: Any
    ) -> None:
        """Saves the files of `save_per_task`, and `model.safetensors` for `Trainer`.

        `Trainer` reads `model.safetensors` when it resumes, and at the end of a training with
        `load_best_model_at_end`. The file holds adapters and decoders under the keys of the whole model.

        Args:
            save_directory: The folder to save to.
            is_main_process: `False` saves nothing.
            **kwargs: Other arguments of transformers have no effect.

        Raises:
            ValueError: `push_to_hub` is given.
        """
        if kwargs.get("push_to_hub"):
            raise ValueError(
                "A model with an adapter per task cannot be pushed from here. Save it, and upload the folder."
            )
        if not is_main_process:
            return
        save_per_task(self, save_directory)
        trained = [(name, parameter) for name, parameter in self.named_parameters() if parameter.requires_grad]
        tensors = (*trained, *self.decoders.named_buffers(prefix="decoders"))
        weights = {name: tensor.detach().contiguous() for name, tensor in tensors}
        save_file(weights, str(Path(save_directory) / SAFE_WEIGHTS_NAME), metadata={"format": "pt"})


def adapt_per_task(model: MultiTaskDenseModel, config: PeftConfig) -> MultiTaskDenseModel:
    """Adds an adapter for each task to the encoder of `model`, in place, and returns the model.

    Only adapters and decoders train. The adapters of different tasks share only the parameters that the PEFT method
    shares between adapters.

    Args:
        model: A dense model without adapters.
        config: A config of PEFT. `target_modules=None` adapts the linear layers that known encoder blocks call.

    Raises:
        ValueError: The model has adapters already; the config has no `target_modules`, is a multi-task config of this
            package, or starts with a change of the frozen weights; PEFT allows one adapter only; `target_modules` is
            None and the family of the encoder is unknown; or a task has the name of a part of a saved key, such as
            a module of the encoder.
    """
    encoder = _check_plain(model)
    _check_config(config)
    settings: Any = deepcopy(config)  # `target_modules` is not a field of the base class
    if settings.target_modules is None:
        _target_linear_layers(encoder, settings)
    first, *others = model.config.tasks
    trains = {parameter: parameter.requires_grad for parameter in encoder.parameters()}
    adapted = get_peft_model(encoder, deepcopy(settings), adapter_name=first)
    try:
        saved = get_peft_model_state_dict(adapted, adapter_name=first, save_embedding_layers=False)
        check_names(model.config.tasks, saved, "A task, and so its adapter,")
        for task in others:
            adapted.add_adapter(task, deepcopy(settings))
    except Exception:
        adapted.unload()
        for parameter, is_trainable in trains.items():
            parameter.requires_grad_(is_trainable)
        raise
    return _install(model, encoder, adapted, is_trainable=True)


def save_per_task(model: MultiTaskDenseModel, folder: str | os.PathLike[str]) -> None:
    """Saves the decoders, and each adapter in the subfolder of its task.

    A subfolder is an ordinary PEFT checkpoint: `PeftModel.from_pretrained(load_encoder(name), folder / task)`.

    Raises:
        ValueError: The model was not made by `adapt_per_task` or `load_per_task`.
    """
    if not isinstance(model.encoder, PerTaskEncoder):
        raise ValueError(
            f"The encoder is a {type(model.encoder).__name__} without an adapter per task. Use `adapt_per_task` "
            "first; a PeftModel has its own `save_pretrained`."
        )
    # `save_embedding_layers` would look up a vocabulary on the Hub.
    model.encoder.adapted.save_pretrained(str(folder), save_embedding_layers=False)
    save_model(model.decoders, str(Path(folder) / DECODERS))


def load_per_task(
    model: MultiTaskDenseModel, folder: str | os.PathLike[str], is_trainable: bool = False
) -> MultiTaskDenseModel:
    """Loads the files of `save_per_task` into a fresh dense model with the same encoder, and returns the model.

    Args:
        model: A dense model without adapters, with the tasks that were saved.
        folder: The folder of the files.
        is_trainable: Whether adapters and decoders are trainable; otherwise they are frozen.

    Raises:
        FileNotFoundError: A file is missing, such as the adapter of a task of the model.
        ValueError: The model has adapters already, or a file is damaged or does not fit the model. The model does not
            change.
    """
    encoder, folder = _check_plain(model), Path(folder)
    files = [folder / task / name for task in model.config.tasks for name in (CONFIG, WEIGHTS)] + [folder / DECODERS]
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{missing} not found. Give a folder of `save_per_task`, and a model of the tasks that were saved."
        )
    _check_files(model, folder, is_trainable)
    load_model(model.decoders, str(folder / DECODERS))
    first, *others = model.config.tasks
    adapted = PeftModel.from_pretrained(encoder, str(folder / first), adapter_name=first, is_trainable=is_trainable)
    for task in others:
        adapted.load_adapter(str(folder / task), adapter_name=task, is_trainable=is_trainable)
    return _install(model, encoder, adapted, is_trainable)


def _check_files(model: MultiTaskDenseModel, folder: Path, is_trainable: bool) -> None:
    """Raises ValueError unless the files hold exactly the weights of the model."""
    file = folder / DECODERS
    try:
        wrong = difference(read_shapes(file), shapes_of(model.decoders.state_dict()))
        for task in [] if wrong else model.config.tasks:
            file = folder / task / CONFIG
            config = PeftConfig.from_pretrained(str(folder / task))
            config.inference_mode = not is_trainable  # as PEFT loads it
            own = _shapes_of_adapter(model.encoder, config, task)
            file = folder / task / WEIGHTS
            wrong = difference(read_shapes(file), own)
            if wrong:
                break
    except Exception as error:
        raise ValueError(f"{file} is damaged ({error!r}). Save the model again.") from error
    if wrong:
        raise ValueError(f"{file} does not fit the model: {wrong}. Give a model like the one that was saved.")


def _shapes_of_adapter(encoder: StageEncoder, config: PeftConfig, task: str) -> dict[str, tuple[int, ...]]:
    try:
        return adapter_shapes(without_memory(encoder), config, task)
    except RuntimeError:  # BOFT and SHiRA compute with the weights
        return adapter_shapes(deepcopy(encoder), config, task, made_on="cpu")


def _check_plain(model: MultiTaskDenseModel) -> StageEncoder:
    is_adapted = any(isinstance(module, BaseTunerLayer) for module in model.modules())
    if is_adapted or not isinstance(model, MultiTaskDenseModel):
        raise ValueError(
            f"A MultiTaskDenseModel without adapters is needed, got a {type(model).__name__}"
            f"{' with adapters' if is_adapted else ''}. Build a fresh one."
        )
    return model.encoder


def _check_config(config: PeftConfig) -> None:
    if isinstance(config, MultiTaskConfig):
        raise ValueError(
            f"{type(config).__name__} is a method for several tasks at once. Use it with `get_peft_model`; "
            "`adapt_per_task` takes a config of PEFT, such as LoraConfig."
        )
    if not hasattr(config, "target_modules"):
        raise ValueError(
            f"{type(config).__name__} has no `target_modules`. Use a config of a method that adapts linear layers, "
            "such as LoraConfig."
        )

    start = getattr(config, "init_lora_weights", None)
    if isinstance(start, str) and start.lower().startswith(CHANGING_STARTS):
        raise ValueError(
            f"init_lora_weights={start!r} changes the frozen weights, which the adapters of all tasks share. Use "
            "another start, such as True, 'gaussian' or 'orthogonal'."
        )


def _target_linear_layers(encoder: StageEncoder, config: Any) -> None:
    """Sets `target_modules` to all linear layers that the blocks call, and for IA3 also `feedforward_modules`."""
    blocks = find_blocks(encoder)
    if not blocks:
        raise ValueError(
            f"{type(encoder).__name__} has no blocks of a known encoder family. Name the layers to adapt in "
            "`target_modules`."
        )
    uncalled = {name for block in blocks for name in block.uncalled}
    attention = [name for block in blocks for name in _linear_layers(encoder, block.self_attention)]
    feed_forward = [name for block in blocks for name in _linear_layers(encoder, block.feed_forward.module)]
    config.target_modules = {*attention, *feed_forward} - uncalled
    if getattr(config, "feedforward_modules", ()) is None:  # IA3 scales inputs of these layers, and outputs of others
        config.feedforward_modules = set(feed_forward)


def _linear_layers(encoder: nn.Module, path: str) -> list[str]:
    module = encoder.get_submodule(path)
    return [f"{path}.{name}" for name, part in module.named_modules() if isinstance(part, nn.Linear)]


def _install(
    model: MultiTaskDenseModel, encoder: StageEncoder, adapted: PeftModel, is_trainable: bool
) -> MultiTaskDenseModel:
    trainable = []
    for task in model.config.tasks if is_trainable else []:
        adapted.set_adapter(task)  # makes the parameters trainable that the method trains
        trainable += [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    adapted.requires_grad_(False)
    for parameter in trainable:
        parameter.requires_grad_(True)
    model.decoders.requires_grad_(is_trainable)
    model.encoder = PerTaskEncoder(encoder, adapted)
    model.__class__ = PerTaskDenseModel
    return model
