# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The encoder as the dense model sees it, and any backbone of transformers in this form."""

from collections.abc import Collection, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel


class StageEncoder(nn.Module):
    """An encoder as the dense model sees it: pictures to four maps, coarser from stage to stage.

    Attributes:
        config: The encoder's own config, enough to build it again.
        widths: Channels of the four maps.
        strides: Pixels of the input per step of each map.
        needs_norm: The maps come out of the residual stream without a norm.
    """

    _no_split_modules: Collection[str] | None = None  # that device maps and FSDP keep whole, as in transformers
    base_model_prefix = ""  # transformers, asked by PEFT, reads it of any module that has a model of its own inside

    config: PreTrainedConfig
    widths: list[int]
    strides: list[int]
    needs_norm: bool

    def stage_maps(self, pixel_values: Tensor) -> Sequence[Tensor]:
        """`(batch, 3, height, width)` to four maps `(batch, width of stage, height / stride, width / stride)`."""
        raise TypeError(f"{type(self).__name__} must define `stage_maps`, which makes the maps of its family.")

    def forward(self, pixel_values: Tensor, tasks: Sequence[str] | None = None) -> Any:
        """The four maps; with `tasks`, a dict of them by task, for which an unadapted encoder needs one pass."""
        maps = self.stage_maps(pixel_values)
        return maps if tasks is None else dict.fromkeys(tasks, maps)


class BackboneStages(StageEncoder):
    """Any backbone of transformers that yields four maps; its own norms, if it has any, stay part of it."""

    needs_norm = False

    def __init__(self, backbone: PreTrainedModel):
        super().__init__()
        self.config = backbone.config
        self._no_split_modules = backbone._no_split_modules
        self.backbone = backbone
        self.widths = list(backbone.channels)  # type: ignore[arg-type]  # by its BackboneMixin
        probe = deepcopy(backbone).eval()  # a forward pass may change a model, as it does BatchNorm's statistics
        with torch.no_grad():
            size = 64
            parameter = next(probe.parameters())
            picture = torch.zeros(1, 3, size, size, dtype=parameter.dtype, device=parameter.device)
            maps = probe(picture).feature_maps
        if [stage_map.shape[1] for stage_map in maps] != self.widths:
            raise ValueError(
                f"{type(backbone).__name__} yields maps {[tuple(stage_map.shape) for stage_map in maps]} of a picture "
                f"of {size} x {size} pixels; maps (batch, channels, height, width) with {self.widths} channels are "
                "needed. Wrap the model in your own subclass of StageEncoder."
            )
        self.strides = [size // stage_map.shape[-1] for stage_map in maps]

    def stage_maps(self, pixel_values: Tensor) -> Sequence[Tensor]:
        return self.backbone(pixel_values).feature_maps
