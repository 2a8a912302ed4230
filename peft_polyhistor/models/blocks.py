# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The transformer blocks of the known encoder families, by the roles of their parts."""

from dataclasses import dataclass
from itertools import takewhile
from typing import NamedTuple

from torch import nn


class Sublayer(NamedTuple):
    """Half a transformer block: h + module(norm(h)), by paths in the model."""

    module: str  # its output is added to the residual stream
    norm: str  # its input is the residual stream


class Block(NamedTuple):
    """A transformer block of a known family, its parts by paths in the model."""

    name: str
    width: int  # channels
    attention: Sublayer
    feed_forward: Sublayer
    self_attention: str  # the module that turns tokens into tokens, windows of them where attention works on windows
    projections: tuple[str, ...]  # linear layers that make queries, keys and values, apart or in one


@dataclass(frozen=True)
class Family:
    """Attributes of a block that play the roles of `Block`.

    Where attention works on windows, what is added to the residual stream is the output of `drop_path`, back in the
    order of tokens.
    """

    attention: tuple[str, str]
    feed_forward: tuple[str, str]
    self_attention: str
    projections: tuple[str, ...]


# By the class of the block.
BLOCK_FAMILIES = {
    "SwinLayer": Family(
        attention=("drop_path", "layernorm_before"),
        feed_forward=("mlp", "layernorm_after"),
        self_attention="attention",
        projections=("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    ),
}


def find_blocks(model: nn.Module) -> list[Block]:
    """The transformer blocks of known families in `model`, in order; empty if there is none."""
    blocks = []
    for name, module in model.named_modules():
        family = BLOCK_FAMILIES.get(type(module).__name__)
        if family is not None:
            prefix = f"{name}." if name else ""
            blocks.append(
                Block(
                    name=name,
                    width=len(module.get_submodule(family.feed_forward[1]).weight),
                    attention=Sublayer(*(prefix + part for part in family.attention)),
                    feed_forward=Sublayer(*(prefix + part for part in family.feed_forward)),
                    self_attention=prefix + family.self_attention,
                    projections=tuple(prefix + part for part in family.projections),
                )
            )
    return blocks


def encoder_modules(model: nn.Module, blocks: list[Block]) -> list[tuple[str, nn.Module]]:
    """The named modules of the encoder that the stage maps pass through: all from its start to its last block.

    A final norm, a pooler or a classifier behind the stages is left out.
    """
    paths = zip(*(block.name.split(".") for block in blocks), strict=False)
    common = takewhile(lambda parts: len(set(parts)) == 1, paths)
    inside = "".join(f"{parts[0]}." for parts in common)
    names = [name for name, _ in model.named_modules()]
    last = max(index for index, name in enumerate(names) if f"{name}.".startswith(inside))
    return list(model.named_modules())[: last + 1]
