# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Finished runs side by side: their results, tables, figures and one page that shows all of it."""
