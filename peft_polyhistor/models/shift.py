# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The shift of Swin's windows, which follows from the map of a call, and so belongs to the call and its thread."""

import threading
from abc import abstractmethod
from typing import Any


class Call(threading.local):
    """The call of a block that the running thread is in."""

    def __init__(self) -> None:  # of every thread
        self.side = 0  # the shorter side of its map


CALL = Call()


class FittedShift:
    """Mixin of Swin blocks that read `shift_size`, where transformers and timm keep one shift for all sizes of maps.

    A subclass calls `fit_shift` at the start of each forward pass, and defines `shift_for`.
    """

    @staticmethod
    def fit_shift(height: int, width: int) -> None:
        """Notes the size of the map that the block works on."""
        CALL.side = min(height, width)

    @property
    def shift_size(self) -> Any:
        return self.shift_for(CALL.side)

    @abstractmethod
    def shift_for(self, side: int) -> Any:
        """The shift on a map whose shorter side is `side`: none where a window covers it."""
