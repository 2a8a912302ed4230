# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""transformers' PVT (arXiv:2102.12122) as an encoder of four stages."""

import operator
from collections.abc import Sequence
from functools import partial
from itertools import accumulate

from torch import Tensor
from torch.nn import functional as F
from transformers import PvtModel
from transformers.models.pvt.modeling_pvt import PvtPatchEmbeddings

from .stages import StageEncoder


class PvtStages(StageEncoder):
    """transformers' PVT without the final norm, as in the dense models of its authors.

    The last stage computes with its class token, as in pretraining, and drops it from the map.

    Note:
        The dense models of PVT's authors compute without the class token, unlike pretraining. `PvtModel` takes only
        images of the size in its config. Here the position embeddings of each stage are resized bilinearly to the grid
        of the image, as PVT's authors do for dense tasks.
    """

    needs_norm = False

    def __init__(self, model: PvtModel):
        super().__init__()
        self.config = model.config
        self.patch_embeddings = model.encoder.patch_embeddings
        self.block = model.encoder.block
        self.widths = list(self.config.hidden_sizes)
        self.strides = list(accumulate(self.config.patch_sizes, operator.mul))
        for module in self.patch_embeddings.modules():
            if isinstance(module, PvtPatchEmbeddings):
                grid = tuple(map(operator.floordiv, module.image_size, module.patch_size))
                module.interpolate_pos_encoding = partial(_resize_positions, grid)  # type: ignore[method-assign]

    def stage_maps(self, pixel_values: Tensor) -> Sequence[Tensor]:
        maps, x = [], pixel_values
        for embedding, blocks in zip(self.patch_embeddings, self.block, strict=True):
            tokens, height, width = embedding(x)
            for block in blocks:  # type: ignore[attr-defined]  # a ModuleList
                tokens = block(tokens, height, width)[0]
            tokens = tokens[:, -height * width :]  # without the class token, if there is one
            x = tokens.mT.unflatten(-1, (height, width))
            maps.append(x)
        return maps


def _resize_positions(grid: tuple[int, int], positions: Tensor, height: int, width: int) -> Tensor:
    """Resizes position embeddings `(1, positions, width of stage)` from `grid` to `height` x `width`."""
    positions = positions.mT.unflatten(-1, grid)
    return F.interpolate(positions, size=(height, width), mode="bilinear").flatten(2).mT
