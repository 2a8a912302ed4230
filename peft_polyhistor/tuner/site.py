# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The record of a module of the encoder that carries adapters."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeGuard

from torch import nn


if TYPE_CHECKING:
    from .layer import AdapterLayer


@dataclass(frozen=True)
class Site:
    """A module of the encoder that carries adapters. Subclasses add the facts that a method's layer needs.

    Args:
        name: Path of the module in the model.
        layer: The `AdapterLayer` that wraps it.
        width: Channels it works on; where encoder parameters train, the last axis of the first of them.
        block: Index of the transformer block it is part of, whose sites may share parameters; `None` outside of them.
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
