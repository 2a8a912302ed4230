# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Compares finished runs: reads their results, and makes tables, figures and an HTML report."""
