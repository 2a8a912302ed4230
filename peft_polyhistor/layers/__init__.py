# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The computation of adapted layers, and the algebra that makes their weights."""
