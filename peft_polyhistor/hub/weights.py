# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Compares saved weights with the model they belong to, before either takes memory."""

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path

from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from torch import Tensor, device, nn


# The files of an adapter.
CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

Shapes = dict[str, tuple[int, ...]]


def read_shapes(file: Path) -> Shapes:
    """Reads the shapes of the tensors in a safetensors file; raises SafetensorError if it is damaged."""
    with safe_open(file, framework="pt") as weights:
        return {key: tuple(weights.get_slice(key).get_shape()) for key in weights.keys()}  # noqa: SIM118


def adapter_shapes(
    base: nn.Module, config: PeftConfig, adapter_name: str = "default", made_on: str = "meta"
) -> Shapes:
    """Returns the shapes of the saved tensors of a copy `base` of a model with an adapter of `config`.

    On the meta device, it needs no memory, however large the config makes the adapter.
    """
    with device(made_on):
        model = PeftModel(base, deepcopy(config), adapter_name=adapter_name)
    return shapes_of(get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False))


def shapes_of(state: Mapping[str, Tensor]) -> Shapes:
    """Returns the shapes of tensors by name."""
    return {key: tuple(tensor.shape) for key, tensor in state.items()}


def without_memory(model: nn.Module) -> nn.Module:
    """Returns a copy of a model with tensors on the meta device."""
    parameters = {id(p): nn.Parameter(p.to("meta"), p.requires_grad) for p in model.parameters()}
    buffers = {id(buffer): buffer.to("meta") for buffer in model.buffers()}
    return deepcopy(model, parameters | buffers)


def difference(saved: Shapes, own: Shapes) -> str | None:
    """Describes the weights of a file that differ from those of a model; returns `None` if there are none."""
    keys = own.keys() | saved.keys()
    keys -= {key for key in own.keys() - saved.keys() if key.endswith(".gain")}  # older files have no gains
    wrong = sorted(key for key in keys if own.get(key) != saved.get(key))
    if not wrong:
        return None
    examples = "; ".join(f"{key}: {saved.get(key)} in it, {own.get(key)} in the model" for key in wrong[:3])
    return f"{len(wrong)} weights differ, such as {examples}"
