# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The state of one pass of the encoder. It belongs to the call and its thread, not to a module."""

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

from torch import Tensor, nn

from .weights import KeptWeights, SiteWeights


class Route(NamedTuple):
    """One pass of the encoder: its tasks, their weights, and the tensors that layers pass to each other."""

    router: nn.Module  # the `Router` whose layers read this route
    tasks: tuple[str, ...]
    weights: SiteWeights
    is_shared: bool  # one set of images serves all tasks; otherwise the batch is laid out task by task
    images: int  # per task; 0 if it is unknown
    features: dict[int, Tensor]  # by stage, `(tasks, batch, tokens, channels)`; added to the maps of a shared pass
    streams: dict[str, Tensor]  # by site, the residual stream before the block's norm


class ThreadState(threading.local):
    """The state of the running thread; torch.compile cannot trace a `ContextVar`.

    Attributes:
        route: The current pass of the encoder; `None` outside of a pass.
        kept: The weights of the `generate_once` blocks, the innermost first.
    """

    def __init__(self) -> None:  # runs once in every thread
        self.route: Route | None = None
        self.kept: tuple[KeptWeights, ...] = ()


THREAD = ThreadState()


class OnRoute(AbstractContextManager[None]):
    """Runs a block of code as part of the pass `route`."""

    def __init__(self, route: Route):
        self.route = route

    def __enter__(self) -> None:
        self.before, THREAD.route = THREAD.route, self.route

    def __exit__(self, *error: Any) -> None:
        THREAD.route = self.before


def record_route() -> Callable[[], AbstractContextManager[None]]:
    """Records the current pass for layers that are recomputed in the backward pass, perhaps by another thread.

    Returns:
        A function that makes the context of the recomputation: the same pass with empty `features` and `streams`.
    """
    if THREAD.route is None:
        return nullcontext
    # Without the stored tensors: they hold the autograd graph, and the graph would hold them.
    route = THREAD.route._replace(features={}, streams={})
    return lambda: OnRoute(route._replace(features={}, streams={}))
