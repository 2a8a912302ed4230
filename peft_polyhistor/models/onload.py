# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Access to parameters of a module without calling it, even if accelerate offloads them between calls."""

from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
from accelerate.utils import align_module_device
from torch import nn


def onloaded(module: nn.Module) -> AbstractContextManager[Any]:
    """Loads offloaded parameters of `module` and its submodules for a block of code.

    accelerate's offloading replaces parameters by tensors on the meta device, and loads the parameters of a module
    only for a call of that module.
    """
    if not any(parameter.is_meta for parameter in module.parameters()):
        return nullcontext()
    stack = ExitStack()
    for part in module.modules():
        stack.enter_context(align_module_device(part))
    return stack


def home_of(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Returns device and dtype for new parameters of `model`: those of its first parameter; the CPU if offloaded."""
    parameters = [parameter for parameter in model.parameters() if parameter.is_floating_point()]
    like = next((p for p in parameters if not p.is_meta), next(iter(parameters), torch.empty(0)))
    is_offloaded = like.is_meta and any(hasattr(module, "_hf_hook") for module in model.modules())
    return torch.device("cpu") if is_offloaded else like.device, like.dtype
