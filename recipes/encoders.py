# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Encoders of the usual sizes with random weights, for what does not depend on weights; and the small one."""

from functools import partial

from transformers import PreTrainedModel, PvtConfig, PvtModel, SwinConfig, SwinModel

from peft_polyhistor import load_encoder


def make_swin(embed_dim: int, depth: int) -> PreTrainedModel:
    """A Swin by the channels of its first stage and the blocks of its third."""
    heads = [embed_dim // 32 * 2**stage for stage in range(4)]
    return SwinModel(
        SwinConfig(embed_dim=embed_dim, depths=[2, 2, depth, 2], num_heads=heads), add_pooling_layer=False
    )


ENCODERS = {
    "swin-micro": partial(load_encoder, "swin-micro"),
    "Swin-T": partial(make_swin, 96, 6),
    "Swin-S": partial(make_swin, 96, 18),
    "Swin-B": partial(make_swin, 128, 18),
    "Swin-L": partial(make_swin, 192, 18),
    "PVT-S": lambda: PvtModel(PvtConfig(depths=[3, 4, 6, 3])),
}
