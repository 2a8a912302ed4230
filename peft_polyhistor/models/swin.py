# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""transformers' Swin and Swin V2 as encoders of four stages."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor
from transformers import SwinModel, Swinv2Backbone
from transformers.models.swin.modeling_swin import SwinLayer
from transformers.models.swinv2.modeling_swinv2 import Swinv2Layer

from .stages import BackboneStages, StageEncoder


class SwinStages(StageEncoder):
    """transformers' Swin, without the final norm and pooling, which no stage map passes through.

    Note:
        `SwinModel` clamps window and shift for good after one small picture, and `SwinBackbone` shifts windows even
        where one window covers the map, as no pretrained Swin did. Here every pass fits the shift to its own map: none
        where the map is no larger than a window, and windows keep their size (smaller maps are padded). Where sides
        of all maps exceed the window, or equal it, this is what SwinModel computes; where windows fill the maps, it is
        what timm and the original code compute too.
    """

    needs_norm = True

    def __init__(self, model: SwinModel):
        super().__init__()
        if model.config.use_absolute_embeddings:
            raise ValueError(
                "This Swin has absolute position embeddings (use_absolute_embeddings=True), which are for pictures of "
                "one size. Choose one without, as all pretrained Swins are."
            )
        self.config = model.config
        self._no_split_modules = model._no_split_modules
        self.embeddings = model.embeddings
        self.embeddings.mask_token = None  # of masked pretraining (SimMIM), and in no stage map
        self.encoder = model.encoder
        self.widths = [self.config.embed_dim * 2**i for i in range(len(self.config.depths))]
        patch = self.embeddings.patch_embeddings.patch_size[0]  # type: ignore[index]  # a pair
        self.strides = [patch * 2**i for i in range(len(self.widths))]
        for stage in self.encoder.layers:
            layers = [module for module in stage.modules() if isinstance(module, SwinLayer)]
            for i, layer in enumerate(layers):
                layer.window_size = self.config.window_size
                shift = 0 if i % 2 == 0 else self.config.window_size // 2
                layer.set_shift_and_window_size = partial(_fit_shift, layer, shift)  # type: ignore[method-assign]

    def stage_maps(self, pixel_values: Tensor) -> Sequence[Tensor]:
        # Stage by stage: the encoder's own way of giving out its maps keeps more than those, and does not compile.
        hidden, grid = self.embeddings(pixel_values, interpolate_pos_encoding=True)
        maps = []
        for stage in self.encoder.layers:
            hidden, stage_map, _ = stage(hidden, grid, output_hidden_states_before_downsampling=True)
            maps.append(stage_map)
            grid = tuple((side + 1) // 2 for side in grid)
        return maps


class Swinv2Stages(BackboneStages):
    """transformers' Swin V2, without the final norm and pooling, which no stage map passes through.

    Note:
        `Swinv2Model` settles which blocks shift their windows by the picture size of its config. Here every pass fits
        the shift to its own map, as in `SwinStages`; windows keep the size they have in the model.
    """

    needs_norm = True

    def __init__(self, backbone: Swinv2Backbone):
        backbone.embeddings.mask_token = None
        for stage in backbone.encoder.layers:
            layers = [module for module in stage.modules() if isinstance(module, Swinv2Layer)]
            for layer in layers[1::2]:
                layer.register_forward_pre_hook(_fit_shift_v2)
        super().__init__(backbone)


def _fit_shift(layer: SwinLayer | Swinv2Layer, shift: int, grid: tuple[int, int]) -> None:
    layer.shift_size = 0 if min(grid) <= layer.window_size else shift


def _fit_shift_v2(layer: Swinv2Layer, args: tuple[Any, ...]) -> None:
    """Forward pre-hook of a block that shifts; its second argument is the grid `(height, width)`."""
    _fit_shift(layer, layer.window_size // 2, args[1])
