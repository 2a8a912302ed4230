# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Comparison of the stage maps of encoders."""

import torch


def check_maps(actual, expected, **tolerance):
    """Four maps with, unless a tolerance is given, the same bits."""
    assert len(actual) == len(expected) == 4
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, **(tolerance or {"rtol": 0, "atol": 0}))
