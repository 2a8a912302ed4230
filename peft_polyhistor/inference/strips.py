# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Computes large maps in strips of rows, which bounds the memory for intermediate values."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor


STRIP = 2**24  # values in a strip: 64 MB in float32


def split_rows(height: int, values_per_row: int) -> Iterator[slice]:
    """Splits a map into slices of rows with at most `STRIP` values each, or of one row."""
    rows = max(1, STRIP // max(1, values_per_row))
    return (slice(start, min(start + rows, height)) for start in range(0, height, rows))


def resize_rows(logits: Tensor, size: tuple[int, int], rows: slice) -> Tensor:
    """Computes some rows of the result of `tasks.losses.resize_to_label` (bilinear, float32).

    Note: All rows at once are bit-identical to `resize_to_label`. A strip differs by rounding, about 1e-6 of the
    largest logit, as PyTorch fuses the sums of both directions.

    Args:
        logits: `(batch, channels, h, w)`.
        size: (height, width) of the whole map.
        rows: Rows to compute.

    Returns:
        `(batch, channels, rows, width)`.
    """
    logits = logits.float()
    height, width = size
    count, given = rows.stop - rows.start, logits.shape[-2]
    if count < height:
        # With align_corners=False, the centre of row i lies at (i + 0.5) * given / height.
        centres = torch.arange(rows.start, rows.stop, dtype=torch.float32, device=logits.device) + 0.5
        places = (centres * (given / height) - 0.5).clamp(min=0)
        above = places.long().clamp(max=given - 1)
        below = (above + 1).clamp(max=given - 1)
        share = (places - above)[:, None]
        logits = logits[..., above, :] * (1 - share) + logits[..., below, :] * share
    if logits.shape[-2:] == (count, width):
        return logits
    return F.interpolate(logits, size=(count, width), mode="bilinear", align_corners=False)
