# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Injects adapters into a model, and runs each forward pass with the weights of its tasks."""
