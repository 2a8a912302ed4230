# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The record of an adapted module of the encoder."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeGuard

from torch import nn


if TYPE_CHECKING:
    from .layer import AdapterLayer


@dataclass(frozen=True)
class Site:
    """A module of the encoder that carries adapters. Subclasses add fields that the layer of a method needs.

    Args:
        name: Path of the module in the model.
        layer: The class of the `AdapterLayer` that wraps the module.
        width: Channels of the module; if encoder parameters train, the last axis of the first of these parameters.
        block: Index of the transformer block around the module, whose sites may share parameters; `None` if there is
            none.
    """

    name: str
    layer: "type[AdapterLayer]"
    width: int
    block: int | None


class Linear(Protocol):
    """A linear layer of any class."""

    in_features: int
    out_features: int


def is_linear(module: nn.Module) -> TypeGuard[Linear]:
    return hasattr(module, "in_features") and hasattr(module, "out_features")
