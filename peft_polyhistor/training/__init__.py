# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Parts of a training that recipes share; the loop itself stands in `recipes/train_pascal.py`, to be copied."""
