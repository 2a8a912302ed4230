# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Predictions for images: from files to label maps, painted maps and a page that shows them."""

from .predictor import MultiTaskPredictor, Prediction


__all__ = ["MultiTaskPredictor", "Prediction"]
