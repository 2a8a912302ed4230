# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Parameters that are read without a call of their module, where accelerate keeps them elsewhere between calls."""

from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
from accelerate.utils import align_module_device
from torch import nn


def onloaded(module: nn.Module) -> AbstractContextManager[Any]:
    """A block of code in which the parameters of `module` and its submodules are where they are used.

    accelerate's offload leaves tensors on the meta device in their place, and brings a module's own parameters only
    for a call of that module.
    """
    if not any(parameter.is_meta for parameter in module.parameters()):
        return nullcontext()
    stack = ExitStack()
    for part in module.modules():
        stack.enter_context(align_module_device(part))
    return stack


def home_of(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Device and dtype of new parameters of `model`: those of its first, and the CPU where all are kept elsewhere."""
    parameters = [parameter for parameter in model.parameters() if parameter.is_floating_point()]
    like = next((p for p in parameters if not p.is_meta), next(iter(parameters), torch.empty(0)))
    is_kept_elsewhere = like.is_meta and any(hasattr(module, "_hf_hook") for module in model.modules())
    return torch.device("cpu") if is_kept_elsewhere else like.device, like.dtype
