# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The transformer blocks of the known encoder families, with the roles of their parts."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import NamedTuple, TypeVar

from torch import nn

from .stages import StageEncoder


FamilyT = TypeVar("FamilyT")


class FeedForward(NamedTuple):
    """A feed-forward module that reads the output of a norm, and the field of the encoder's config for its width."""

    layers: tuple[str, ...]  # paths of its layers in the module, in the order they run; without dropout
    ratio: str  # field of the encoder's config: channels inside divided by channels outside
    per_stage: bool = False  # the field is a list with a ratio per stage
    is_whole: bool = False  # the config allows integers only


class Sublayer(NamedTuple):
    """One half of a transformer block, h + sublayer(h), with the norm before (Swin, PVT) or after (Swin V2) it."""

    module: str  # path of the module whose output, a tensor in the order of tokens, is added to the residual stream
    stream: str  # path of the module whose first argument is the residual stream h


class Block(NamedTuple):
    """A transformer block of a known family, with the paths of its parts in the model."""

    name: str
    width: int  # channels
    attention: Sublayer
    feed_forward: Sublayer
    self_attention: str  # maps tokens to tokens, for windowed attention those of a window
    projections: tuple[str, ...]  # linear layers that make queries, keys and values
    widens: FeedForward | None  # the module of `feed_forward`, if the norm comes before it
    uncalled: tuple[str, ...] = ()  # linear layers whose weights attention reads without calling the layers


@dataclass(frozen=True)
class Family:
    """The attributes of a block with the roles of `Block`; an empty name is the block itself.

    With windowed attention, the module of the sublayer comes after attention, where the tokens are in order again. A
    module that a block calls twice, such as a shared `drop_path`, cannot have a role.
    """

    attention: tuple[str, str]
    feed_forward: tuple[str, str]
    self_attention: str
    projections: tuple[str, ...]
    norm: str  # a norm over the width of the block
    widens: FeedForward | None = None
    uncalled: tuple[str, ...] = ()


# By Python module and class, because names of classes are not unique.
BLOCK_FAMILIES = {
    ("transformers.models.swin.modeling_swin", "SwinLayer"): Family(
        attention=("drop_path", "layernorm_before"),
        feed_forward=("mlp", "layernorm_after"),
        self_attention="attention",
        projections=("attention.q_proj", "attention.k_proj", "attention.v_proj"),
        norm="layernorm_after",
        widens=FeedForward(("fc1", "activation_fn", "fc2"), "mlp_ratio"),
    ),
    ("transformers.models.swinv2.modeling_swinv2", "Swinv2Layer"): Family(
        attention=("layernorm_before", ""),
        feed_forward=("layernorm_after", "intermediate"),
        self_attention="attention",
        projections=("attention.self.query", "attention.self.key", "attention.self.value"),
        norm="layernorm_after",
    ),
    ("transformers.models.pvt.modeling_pvt", "PvtLayer"): Family(
        attention=("attention.output", "layer_norm_1"),
        feed_forward=("mlp", "layer_norm_2"),
        self_attention="attention",
        projections=("attention.self.query", "attention.self.key", "attention.self.value"),
        norm="layer_norm_2",
        widens=FeedForward(("dense1", "intermediate_act_fn", "dense2"), "mlp_ratios", per_stage=True, is_whole=True),
    ),
    ("transformers.models.pvt_v2.modeling_pvt_v2", "PvtV2BlockLayer"): Family(
        attention=("attention.proj_drop", "layer_norm_1"),
        feed_forward=("mlp", "layer_norm_2"),
        self_attention="attention",
        projections=("attention.query", "attention.key", "attention.value"),
        norm="layer_norm_2",
        widens=FeedForward(
            ("dense1", "relu", "dwconv.dwconv", "intermediate_act_fn", "dense2"),
            "mlp_ratios",
            per_stage=True,
            is_whole=True,
        ),
    ),
    ("timm.models.swin_transformer", "SwinTransformerBlock"): Family(
        attention=("drop_path1", "norm1"),
        feed_forward=("mlp", "norm2"),
        self_attention="attn",
        projections=("attn.qkv",),
        norm="norm2",
        widens=FeedForward(("fc1", "act", "fc2"), "mlp_ratio"),
    ),
    ("timm.models.swin_transformer_v2", "SwinTransformerV2Block"): Family(
        attention=("norm1", ""),
        feed_forward=("norm2", "mlp"),
        self_attention="attn",
        projections=(),
        norm="norm2",
        uncalled=("attn.qkv",),
    ),
    ("timm.models.pvt_v2", "Block"): Family(
        attention=("attn", "norm1"),
        feed_forward=("mlp", "norm2"),
        self_attention="attn",
        projections=("attn.q", "attn.kv"),
        norm="norm2",
        widens=FeedForward(("fc1", "relu", "dwconv", "act", "fc2"), "mlp_ratios", per_stage=True),
    ),
}


# Python modules of encoders whose outputs are a loss, or have a row per image or per window of an image.
ENCODER_MODULES = {module for module, _ in BLOCK_FAMILIES} | {
    "transformers.models.timm_backbone.modeling_timm_backbone",
    "transformers.models.timm_wrapper.modeling_timm_wrapper",
}


def has_image_rows(model: nn.Module) -> bool:
    """Tells whether all outputs of `model` are known to be separable by image."""
    return type(model).__module__ in ENCODER_MODULES


def family_of(module: nn.Module, families: Mapping[tuple[str, str], FamilyT]) -> FamilyT | None:
    """Returns the entry of the module's class, or of a base class, in a table by Python module and class name."""
    names = ((cls.__module__, cls.__name__) for cls in type(module).__mro__)
    return next((families[name] for name in names if name in families), None)


def find_blocks(model: nn.Module) -> list[Block]:
    """Returns the transformer blocks of known families in `model`, in order; empty if there are none."""
    blocks = []
    for name, module in model.named_modules():
        family = family_of(module, BLOCK_FAMILIES)
        if family is not None:
            # The norm may carry an adapter, whose first parameters are those of the norm.
            weight = next(module.get_submodule(family.norm).parameters())
            blocks.append(
                Block(
                    name=name,
                    width=weight.numel(),
                    attention=Sublayer(*(_join(name, part) for part in family.attention)),
                    feed_forward=Sublayer(*(_join(name, part) for part in family.feed_forward)),
                    self_attention=_join(name, family.self_attention),
                    projections=tuple(_join(name, part) for part in family.projections),
                    widens=family.widens,
                    uncalled=tuple(_join(name, part) for part in family.uncalled),
                )
            )
    return blocks


def encoder_modules(model: nn.Module, blocks: list[Block]) -> list[tuple[str, nn.Module]]:
    """Returns the named modules of the encoder from its start to its last block.

    It starts with the outermost `StageEncoder` or network of a known family around all blocks, or with the model if
    there is none. A final norm, a pooler or a head, before or after the encoder in the model, is left out.
    """
    paths = zip(*(block.name.split(".") for block in blocks), strict=False)
    common = [parts[0] for parts in takewhile(lambda parts: len(set(parts)) == 1, paths)]
    around = [".".join(common[:depth]) for depth in range(len(common) + 1)]
    start = next((name for name in around if _is_encoder(model.get_submodule(name))), "")
    modules = [(_join(start, name), module) for name, module in model.get_submodule(start).named_modules()]
    inside = "".join(f"{part}." for part in common)
    last = max(index for index, (name, _) in enumerate(modules) if f"{name}.".startswith(inside))
    return modules[: last + 1]


def _is_encoder(module: nn.Module) -> bool:
    return isinstance(module, StageEncoder) or any(cls.__module__ in ENCODER_MODULES for cls in type(module).__mro__)


def _join(*names: str) -> str:
    return ".".join(name for name in names if name)
