# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Predictions for images: label maps, painted maps, and an HTML page that shows them."""

from .predictor import MultiTaskPredictor, Prediction


__all__ = ["MultiTaskPredictor", "Prediction"]
