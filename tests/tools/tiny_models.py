# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Tiny encoders and dense models, labels for them, sites, and noise."""

from copy import deepcopy

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PvtV2Backbone, PvtV2Config, SwinConfig, SwinModel

from peft_polyhistor import MultiTaskDenseModel
from peft_polyhistor.layers.bottleneck import ParallelLayer
from peft_polyhistor.tuner.site import Site


STAGES = ["stage1", "stage2", "stage3", "stage4"]
DENSE_TASKS = ["semseg", "human_parts", "normals"]  # an uneven number


_made = {}  # by arguments, a model and the state of the generator behind it; a copy takes half the time of a new one


def set_seed(seed):
    """Seeds the CPU alone: `torch.manual_seed` also formats a stack for each kind of accelerator."""
    torch.default_generator.manual_seed(seed)


def make_swin(cls=SwinModel, **changes):
    """The same tiny Swin at every call, in any of its classes, ready to predict.

    Widths 8, 16, 32, 64 and a window of 3, which the coarsest map of a picture of 96 pixels just fills.
    """
    key = repr((cls, changes, torch.get_default_device(), torch.get_default_dtype()))
    if key not in _made:
        _made[key] = (_make_swin(cls, **changes), torch.get_rng_state())
    model, state = _made[key]
    torch.set_rng_state(state)
    return deepcopy(model)


def _make_swin(cls, **changes):
    sizes = {"embed_dim": 8, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 2, 4], "window_size": 3, "image_size": 96}
    config = SwinConfig(**{**sizes, "drop_path_rate": 0.0, "out_features": STAGES[: len(sizes["depths"])], **changes})
    set_seed(1)
    return perturb(cls(config)).eval()


def make_pvt(**changes):
    """A tiny PVT v2 of random weights; its widths are no multiples of the first."""
    sizes = {"hidden_sizes": [8, 16, 20, 32], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 2, 4]}
    return PvtV2Backbone(PvtV2Config(**{**sizes, "out_features": STAGES, **changes})).eval()


def make_dense(tasks=DENSE_TASKS, encoder=None, **kwargs):
    """The same dense model at every call, on the tiny Swin unless told."""
    encoder = encoder or make_swin()
    set_seed(2)
    model = MultiTaskDenseModel.from_encoder(encoder, tasks, **{"decoder_width": 12, **kwargs})
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # untrained statistics would hide a swapped buffer
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model.eval()


def make_sites(*widths):
    """Sites of adapters in parallel to their layers, by the widths of these."""
    return [Site(f"site{i}", ParallelLayer, width, i) for i, width in enumerate(widths)]


def perturb(model, std=0.05):
    """Adds noise to what trains, and returns the model.

    Fresh adapters do nothing and fresh weights repeat with the seed, so a test of either proves nothing before this.
    """
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=std)
    return model


def randomise(module):
    """Gives every parameter a size that matters, biases and norms too."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.3)
    return module


def make_labels(tasks, batch, height, width):
    """Random labels by task."""
    random = {
        "semseg": lambda: torch.randint(0, 21, (batch, height, width)),
        "human_parts": lambda: torch.randint(0, 7, (batch, height, width)),
        "saliency": lambda: torch.randint(0, 2, (batch, 1, height, width)).float(),
        "normals": lambda: F.normalize(torch.randn(batch, 3, height, width), dim=1),
    }
    return {task: random[task]() for task in tasks}


def recompute_layers(model, reentrant=False):
    """Switches gradient checkpointing on; the second name is that of transformers before 5.23."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": reentrant})
