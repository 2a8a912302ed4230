# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The common interface of encoders, and its implementation for any backbone of transformers."""

from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel


class StageEncoder(nn.Module):
    """An encoder that maps images to the maps of its four stages. Subclasses define `stage_maps`.

    Attributes:
        config: Config of the encoder, from which it can be built again.
        widths: Channels of the four maps.
        strides: Strides of the four maps in pixels of the image.
        needs_norm: Whether decoders begin with a norm, because the maps are not normalised.
        image_statistics: `image_mean` and `image_std` of the images that the encoder was trained with, if known.
        name_or_path, revision: The Hub id or folder that the encoder was loaded from, if any, and its revision there.
    """

    _no_split_modules: Collection[str] | None = None  # modules that device maps and FSDP must not split
    base_model_prefix = ""  # PEFT makes transformers read it

    config: PreTrainedConfig
    widths: list[int]
    strides: list[int]
    needs_norm: bool
    image_statistics: Mapping[str, list[float]] = MappingProxyType({})
    name_or_path: str = ""
    revision: str | None = None

    def stage_maps(self, pixel_values: Tensor) -> Sequence[Tensor]:
        """Maps `(batch, 3, height, width)` to four maps `(batch, width of stage, height / stride, width / stride)`."""
        raise NotImplementedError(f"{type(self).__name__} must define `stage_maps`.")

    def forward(self, pixel_values: Tensor, tasks: Sequence[str] | None = None) -> Any:
        """Returns the four maps, or with `tasks` a dict by task; without adapters all tasks share the same maps."""
        maps = self.stage_maps(pixel_values)
        return maps if tasks is None else dict.fromkeys(tasks, maps)


class BackboneStages(StageEncoder):
    """Any backbone of transformers with four feature maps. It keeps its own norms."""

    needs_norm = False

    def __init__(self, backbone: PreTrainedModel):
        super().__init__()
        self.config = backbone.config
        self._no_split_modules = backbone._no_split_modules
        self.backbone = backbone
        self.widths = list(backbone.channels)  # type: ignore[arg-type]  # from its BackboneMixin
        probe = deepcopy(backbone).eval()  # a copy, because a forward pass can change a model
        with torch.no_grad():
            size = 224  # a multiple of patches of 14 and 16 pixels, and the only size of some backbones
            parameter = next(probe.parameters())
            image = torch.zeros(1, 3, size, size, dtype=parameter.dtype, device=parameter.device)
            try:
                maps = probe(image).feature_maps
            except RuntimeError as error:
                raise ValueError(
                    f"{type(backbone).__name__} fails on an image of {size} x {size} pixels ({error}). Load it for "
                    "this size, or wrap the model in your own subclass of StageEncoder."
                ) from error
        if [stage_map.shape[1] for stage_map in maps] != self.widths:
            raise ValueError(
                f"{type(backbone).__name__} yields maps {[tuple(stage_map.shape) for stage_map in maps]} for an image "
                f"of {size} x {size} pixels; maps (batch, channels, height, width) with {self.widths} channels are "
                "needed. Wrap the model in your own subclass of StageEncoder."
            )
        self.strides = [size // stage_map.shape[-1] for stage_map in maps]

    def stage_maps(self, pixel_values: Tensor) -> Sequence[Tensor]:
        return self.backbone(pixel_values).feature_maps
