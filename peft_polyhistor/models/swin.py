# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Swin and Swin V2 of transformers as encoders with four stages."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import SwinModel, Swinv2Backbone
from transformers.models.swin.modeling_swin import SwinLayer
from transformers.models.swinv2.modeling_swinv2 import Swinv2Layer

from .shift import FittedShift
from .stages import BackboneStages, StageEncoder


class ShiftedSwinLayer(FittedShift, SwinLayer):  # type: ignore[override]  # `shift_size` is an attribute of the base
    """A Swin block that shifts its windows by half of their size."""

    def set_shift_and_window_size(self, input_resolution: tuple[int, int]) -> None:
        self.fit_shift(*input_resolution)  # the block calls this first; windows keep their size

    def shift_for(self, side: int) -> int:
        return 0 if side <= self.window_size else self.window_size // 2


class UnshiftedSwinLayer(ShiftedSwinLayer):
    """A Swin block that does not shift its windows."""

    def shift_for(self, side: int) -> int:
        return 0


class ShiftedSwinv2Layer(FittedShift, Swinv2Layer):
    """A Swin V2 block that shifts its windows by half of their size."""

    def forward(self, hidden_states: Tensor, input_dimensions: tuple[int, int], *args: Any, **kwargs: Any) -> Any:
        self.fit_shift(*input_dimensions)
        return super().forward(hidden_states, input_dimensions, *args, **kwargs)

    def shift_for(self, side: int) -> int:
        return 0 if side <= self.window_size else self.window_size // 2


class SwinStages(StageEncoder):
    """transformers' Swin without the final norm and pooling, which no stage map depends on.

    Note:
        `SwinModel` reduces window and shift permanently after one small image, or fails on it from transformers 5.23
        on, and `SwinBackbone` shifts windows even if one window covers the map, unlike any pretrained Swin. Here each
        pass fits the shift to its own maps: zero if a map is not larger than a window. Windows keep their size, and
        smaller maps are padded. The result equals that of SwinModel if no side of a map is smaller than the window,
        and that of timm and of the original code if windows fill the maps without padding.
    """

    needs_norm = True

    def __init__(self, model: SwinModel):
        super().__init__()
        if model.config.use_absolute_embeddings:
            raise ValueError(
                "This Swin has absolute position embeddings (use_absolute_embeddings=True), which fit images of one "
                "size only. Choose a Swin without them; no pretrained Swin has them."
            )
        self.config = model.config
        self._no_split_modules = model._no_split_modules
        self.embeddings = model.embeddings
        self.embeddings.mask_token = None  # for masked pretraining (SimMIM); no stage map depends on it
        self.encoder = model.encoder
        self.widths = [self.config.embed_dim * 2**i for i in range(len(self.config.depths))]
        patch = self.embeddings.patch_embeddings.patch_size[0]  # type: ignore[index]  # a pair
        self.strides = [patch * 2**i for i in range(len(self.widths))]
        for stage in self.encoder.layers:
            layers = [module for module in stage.modules() if isinstance(module, SwinLayer)]
            for i, layer in enumerate(layers):
                layer.window_size = self.config.window_size
                layer.__class__ = ShiftedSwinLayer if i % 2 else UnshiftedSwinLayer

    def stage_maps(self, pixel_values: Tensor) -> Sequence[Tensor]:
        # Stage by stage, because `output_hidden_states` of the encoder keeps more tensors and does not compile.
        hidden, grid = self.embeddings(pixel_values, interpolate_pos_encoding=True)
        maps = []
        for stage in self.encoder.layers:
            hidden, stage_map, _ = stage(hidden, grid, output_hidden_states_before_downsampling=True)
            maps.append(stage_map)
            grid = tuple((side + 1) // 2 for side in grid)
        return maps


class Swinv2Stages(BackboneStages):
    """transformers' Swin V2 without the final norm and pooling, which no stage map depends on.

    Note:
        In `Swinv2Model`, the image size in the config determines which blocks shift their windows. Here each pass fits
        the shift to its own maps, as in `SwinStages`; windows keep the size they have in the model.
    """

    needs_norm = True

    def __init__(self, backbone: Swinv2Backbone):
        backbone.embeddings.mask_token = None
        for stage in backbone.encoder.layers:
            layers = [module for module in stage.modules() if isinstance(module, Swinv2Layer)]
            for layer in layers[1::2]:
                layer.__class__ = ShiftedSwinv2Layer
        super().__init__(backbone)
