# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Random labels of the kinds of tasks, of which a share of the pixels is unlabelled."""

import torch
from torch.nn import functional as F


def class_labels(batch, height, width, classes, unlabelled):
    """Classes `(batch, height, width)`, and 255 for unlabelled pixels."""
    labels = torch.randint(0, classes, (batch, height, width))
    labels[torch.rand(labels.shape) < unlabelled] = 255
    return labels


def binary_labels(batch, height, width, positive, unlabelled=0.0):
    """0 and, for a share `positive` of the pixels, 1, `(batch, 1, height, width)`; -1 for unlabelled pixels."""
    labels = (torch.rand(batch, 1, height, width) < positive).float()
    labels[torch.rand(labels.shape) < unlabelled] = -1
    return labels


def normal_labels(batch, height, width):
    """Unit vectors `(batch, 3, height, width)`, and zeros for three tenths of the pixels, which are unlabelled."""
    labels = F.normalize(torch.randn(batch, 3, height, width), dim=1)
    return labels * (torch.rand(batch, 1, height, width) < 0.7)
