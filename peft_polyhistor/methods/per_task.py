# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""PEFT's own methods in the dense model: LoRA, or any other that targets linear layers, one adapter per task.

model = MultiTaskDenseModel.from_encoder(load_encoder("swin-micro"), ["semseg", "normals"])
adapt_per_task(model, LoraConfig(r=8))
save_per_task(model, "folder")          # folder/semseg, folder/normals: ordinary adapters of PEFT; and decoders
load_per_task(another_model, "folder")
"""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_model, save_file, save_model
from torch import Tensor, nn
from transformers.utils import SAFE_WEIGHTS_NAME

from ..config import MultiTaskConfig
from ..hub.weights import CONFIG, WEIGHTS, adapter_shapes, difference, read_shapes, shapes_of, without_memory
from ..models.blocks import find_blocks
from ..models.multitask import MultiTaskDenseModel
from ..models.stages import StageEncoder
from ..tuner.checkpoint import bind_checkpoints


DECODERS = "decoders.safetensors"
TURNS = threading.RLock()  # PEFT activates an adapter on the modules themselves: threads take turns


class PerTaskEncoder(StageEncoder):
    """A frozen encoder with one PEFT adapter per task: a pass per task, each with the adapter of its task.

    Attributes:
        adapted: The encoder as a `PeftModel`, whose adapters have the names of the tasks.
    """

    def __init__(self, encoder: StageEncoder, adapted: PeftModel):
        super().__init__()
        self.config = encoder.config
        self.widths = encoder.widths
        self.strides = encoder.strides
        self.needs_norm = encoder.needs_norm
        self.adapted = adapted

    def forward(self, pixel_values: Tensor, tasks: Sequence[str] | None = None) -> dict[str, Sequence[Tensor]]:
        """The four maps by task.

        Raises:
            ValueError: No tasks are named, or one has no adapter.
        """
        known = list(self.adapted.peft_config)
        if not tasks or not set(tasks) <= set(known):
            raise ValueError(f"`tasks` must be a list of some of {known}, which have adapters, got {tasks}.")
        bind_checkpoints(self.adapted, self._follow_again)
        maps = {}
        for task in tasks:
            with self.following(task):
                maps[task] = self.adapted(pixel_values)
        return maps

    def _follow_again(self) -> Callable[[], AbstractContextManager[None]]:
        [task] = self.adapted.active_adapters
        return partial(self.following, task)

    @contextmanager
    def following(self, task: str) -> Iterator[None]:
        """Runs a block of code with the adapter of `task`: a pass, or a layer of it that is recomputed."""
        with TURNS:
            if self.adapted.active_adapters != [task]:
                self._activate(task)
            yield

    def _activate(self, task: str) -> None:
        flags = [(parameter, parameter.requires_grad) for parameter in self.adapted.parameters()]
        self.adapted.set_adapter(task)
        # PEFT freezes the adapters it switches off and frees the one it switches on. Here all of them train together,
        # or none: autograd looks at a parameter again in the backward pass, when another task's turn is over.
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


class PerTaskDenseModel(MultiTaskDenseModel):
    """The class that `adapt_per_task` and `load_per_task` give a dense model, so that `Trainer` saves its adapters."""

    def save_pretrained(  # type: ignore[override]  # takes all arguments of transformers, and uses few
        self, save_directory: str | os.PathLike[str], is_main_process: bool = True, **kwargs: Any
    ) -> None:
        """Saves the files of `save_per_task`, which `load_per_task` reads, and `model.safetensors` for `Trainer`.

        `Trainer` reads `model.safetensors` when it resumes, and at the end of a training with
        `load_best_model_at_end`. The file holds adapters and decoders under the keys of the whole model.

        Args:
            save_directory: The folder.
            is_main_process: `False` saves nothing.
            **kwargs: Further arguments of transformers, without effect.

        Raises:
            ValueError: `push_to_hub` was asked for.
        """
        if kwargs.get("push_to_hub"):
            raise ValueError("An adapter per task cannot be pushed from here. Save it, and upload the folder.")
        if not is_main_process:
            return
        save_per_task(self, save_directory)
        trained = [(name, parameter) for name, parameter in self.named_parameters() if parameter.requires_grad]
        tensors = (*trained, *self.decoders.named_buffers(prefix="decoders"))
        weights = {name: tensor.detach().contiguous() for name, tensor in tensors}
        save_file(weights, str(Path(save_directory) / SAFE_WEIGHTS_NAME), metadata={"format": "pt"})


def adapt_per_task(model: MultiTaskDenseModel, config: PeftConfig) -> MultiTaskDenseModel:
    """Gives the encoder of `model` an adapter for each of its tasks, and returns the model, which it changes.

    Adapters and decoders train, and nothing else. The tasks' adapters share nothing but what the method shares.

    Args:
        model: A dense model that carries no adapters yet.
        config: Of PEFT. `target_modules=None` takes every linear layer in the blocks of a known encoder.

    Raises:
        ValueError: The model is adapted already, the method targets no modules or is one for several tasks, or
            `target_modules` is None and the encoder is of no known family.
    """
    encoder = _check_plain(model)
    _check_config(config)
    settings: Any = deepcopy(config)  # PEFT's configs have `target_modules` each for themselves
    if settings.target_modules is None:
        _target_linear_layers(encoder, settings)
    first, *others = model.config.tasks
    adapted = get_peft_model(encoder, deepcopy(settings), adapter_name=first)
    for task in others:
        adapted.add_adapter(task, deepcopy(settings))
    return _install(model, encoder, adapted, is_trainable=True)


def save_per_task(model: MultiTaskDenseModel, folder: str | os.PathLike[str]) -> None:
    """Saves the adapters, each in the subfolder of its task, and the decoders.

    A subfolder is an ordinary checkpoint of PEFT: `PeftModel.from_pretrained(load_encoder(name), folder / task)`.

    Raises:
        ValueError: The model was not made by `adapt_per_task` or `load_per_task`.
    """
    if not isinstance(model.encoder, PerTaskEncoder):
        raise ValueError(
            f"The encoder is a {type(model.encoder).__name__} without an adapter per task. Use `adapt_per_task` "
            "first; a PeftModel has a `save_pretrained` of its own."
        )
    # There is no vocabulary to look up on the Hub.
    model.encoder.adapted.save_pretrained(str(folder), save_embedding_layers=False)
    save_model(model.decoders, str(Path(folder) / DECODERS))


def load_per_task(
    model: MultiTaskDenseModel, folder: str | os.PathLike[str], is_trainable: bool = False
) -> MultiTaskDenseModel:
    """Loads what `save_per_task` saved onto a fresh dense model of the same encoder, and returns that model.

    Args:
        model: A dense model that carries no adapters yet, of the tasks that were saved.
        folder: The folder.
        is_trainable: Adapters and decoders go on training; otherwise all is frozen.

    Raises:
        FileNotFoundError: A file is missing, such as the adapter of a task of the model.
        ValueError: The model is adapted already, or a file is damaged or does not fit it. The model is as it was.
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
    """Raises ValueError unless the files hold the weights of the model, all of them and no others."""
    file = folder / DECODERS
    try:
        wrong = difference(read_shapes(file), shapes_of(model.decoders.state_dict()))
        for task in [] if wrong else model.config.tasks:
            file = folder / task / CONFIG
            config = PeftConfig.from_pretrained(str(folder / task))
            config.inference_mode = not is_trainable  # as PEFT loads it
            own = adapter_shapes(without_memory(model.encoder), config, task)
            file = folder / task / WEIGHTS
            wrong = difference(read_shapes(file), own)
            if wrong:
                break
    except Exception as error:
        raise ValueError(f"{file} is damaged ({error!r}). Save the model again.") from error
    if wrong:
        raise ValueError(f"{file} does not fit the model: {wrong}. Give a model like the one that was saved.")


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
            f"{type(config).__name__} is a method for several tasks at once. Give it to `get_peft_model`; here a "
            "config of PEFT is needed, such as LoraConfig."
        )
    if not hasattr(config, "target_modules"):
        raise ValueError(
            f"{type(config).__name__} has no `target_modules`. Give a config of a method that adapts linear layers, "
            "such as LoraConfig."
        )


def _target_linear_layers(encoder: StageEncoder, config: Any) -> None:
    """Fills `target_modules` with every linear layer in the blocks, and what goes with it."""
    blocks = find_blocks(encoder)
    if not blocks:
        raise ValueError(
            f"{type(encoder).__name__} has no blocks of a known encoder family, so it is not known which layers to "
            "adapt. Name them in `target_modules`."
        )
    attention = [name for block in blocks for name in _linear_layers(encoder, block.self_attention)]
    feed_forward = [name for block in blocks for name in _linear_layers(encoder, block.feed_forward.module)]
    config.target_modules = {*attention, *feed_forward}
    if getattr(config, "feedforward_modules", ()) is None:  # IA3 scales the input of these, the output of the others
        config.feedforward_modules = set(feed_forward)


def _linear_layers(encoder: nn.Module, path: str) -> list[str]:
    module = encoder.get_submodule(path)
    return [f"{path}.{name}" for name, part in module.named_modules() if isinstance(part, nn.Linear)]


def _install(
    model: MultiTaskDenseModel, encoder: StageEncoder, adapted: PeftModel, is_trainable: bool
) -> MultiTaskDenseModel:
    trainable = []
    for task in model.config.tasks if is_trainable else []:
        adapted.set_adapter(task)  # which of its parameters train, the method says
        trainable += [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    adapted.requires_grad_(False)
    for parameter in trainable:
        parameter.requires_grad_(True)
    model.decoders.requires_grad_(is_trainable)
    model.encoder = PerTaskEncoder(encoder, adapted)
    model.__class__ = PerTaskDenseModel
    return model
