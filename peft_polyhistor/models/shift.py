# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The shift of Swin's windows, which depends on the size of the map in each call."""

import threading
from typing import Any


class Call(threading.local):
    """The current call of a block in the running thread."""

    def __init__(self) -> None:  # runs once in every thread
        self.side = 0  # the shorter side of its map


CALL = Call()


class FittedShift:
    """Mixin of Swin blocks that fits `shift_size` to each map; transformers and timm use one shift for all sizes.

    A subclass defines `shift_for`, and calls `fit_shift` at the start of each forward pass.
    """

    @staticmethod
    def fit_shift(height: int, width: int) -> None:
        """Records the size of the current map."""
        CALL.side = min(height, width)

    @property
    def shift_size(self) -> Any:
        return self.shift_for(CALL.side)

    def shift_for(self, side: int) -> Any:
        """Returns the shift for a map whose shorter side is `side`: zero if a window covers the side."""
        raise NotImplementedError(f"{type(self).__name__} must define `shift_for`.")
