# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""What the logits of a task say: class ids, a probability, or directions."""

import torch.nn.functional as F
from torch import Tensor


def class_ids(logits: Tensor) -> Tensor:
    """The class of the highest logit: `(batch, classes, height, width)` to int64 `(batch, height, width)`."""
    return logits.argmax(dim=1)


def probability(logits: Tensor) -> Tensor:
    """That a pixel is foreground, 0 to 1: `(batch, 1, height, width)`."""
    return logits.float().sigmoid()


def unit_vectors(logits: Tensor) -> Tensor:
    """Directions of length 1 `(batch, 3, height, width)`; a zero vector, which has none, stays zero."""
    return F.normalize(logits.float(), dim=1)
