# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Adapters on the Hub: publish them with a model card and the record of their training, and load them again."""

from .loading import load
from .publishing import publish
from .record import TrainingRecord


__all__ = ["TrainingRecord", "load", "publish"]
