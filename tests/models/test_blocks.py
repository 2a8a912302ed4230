# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Blocks are found by the roles of their parts."""

from torch import nn
from transformers import SwinBackbone

from peft_polyhistor.models.blocks import Block, Sublayer, find_blocks


def test_blocks_of_swin_are_found_in_order(make_swin):
    blocks = find_blocks(make_swin(SwinBackbone))
    path = "swin.encoder.layers.1.blocks.1"
    assert blocks[3] == Block(
        name=path,
        width=16,
        attention=Sublayer(f"{path}.drop_path", f"{path}.layernorm_before"),
        feed_forward=Sublayer(f"{path}.mlp", f"{path}.layernorm_after"),
        self_attention=f"{path}.attention",
        projections=tuple(f"{path}.attention.{part}_proj" for part in "qkv"),
    )
    assert [block.width for block in blocks] == [8, 8, 16, 16, 32, 32, 64, 64]


def test_an_unknown_family_has_none():
    assert find_blocks(nn.Sequential(nn.Linear(2, 2))) == []
