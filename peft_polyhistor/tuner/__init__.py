# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Adapters get into a model here, and a forward pass is led to the weights of its tasks."""
