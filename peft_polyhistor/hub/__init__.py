# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Publishes adapters on the Hub with a model card and a training record, and loads them again."""

from .loading import load
from .publishing import publish
from .record import TrainingRecord


__all__ = ["TrainingRecord", "load", "publish"]
