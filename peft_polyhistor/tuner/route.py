# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The state of one pass of the encoder, which belongs to the call and its thread, and to no module."""

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

from torch import Tensor, nn

from .weights import KeptWeights, SiteWeights


class Route(NamedTuple):
    """One pass of the encoder: its tasks, their weights, and the tensors that layers hand on within the pass."""

    router: nn.Module  # the `Router` whose layers follow this route
    tasks: tuple[str, ...]
    weights: SiteWeights
    is_shared: bool  # the pass serves all tasks at once; otherwise the batch is laid out task by task
    features: dict[int, Tensor]  # by stage `(tasks, batch, tokens, channels)`, added to the maps of a shared pass
    streams: dict[str, Tensor]  # by site the residual stream, from the block's norm to the sublayer behind it


class Present(threading.local):
    """State of the running thread. (Not a `ContextVar`, which torch.compile cannot trace.)

    Attributes:
        route: The pass of the encoder; `None` outside of one.
        kept: The weights of the `generate_once` blocks, the innermost first.
    """

    def __init__(self) -> None:  # of every thread
        self.route: Route | None = None
        self.kept: tuple[KeptWeights, ...] = ()


PRESENT = Present()


class Following(AbstractContextManager[None]):
    """Runs a block of code as part of the pass of `route`."""

    def __init__(self, route: Route):
        self.route = route

    def __enter__(self) -> None:
        self.before, PRESENT.route = PRESENT.route, self.route

    def __exit__(self, *error: Any) -> None:
        PRESENT.route = self.before


def follow_again() -> Callable[[], AbstractContextManager[None]]:
    """Remembers the present pass for layers that are recomputed in the backward pass, maybe by another thread.

    Returns:
        A function that makes the context in which they run: the same pass, whose stores are empty.
    """
    if PRESENT.route is None:
        return nullcontext
    # Not the stores themselves: their tensors hold the graph, and the graph would hold them.
    route = PRESENT.route._replace(features={}, streams={})
    return lambda: Following(route._replace(features={}, streams={}))
