# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""How adapters get into a model, and whose weights run in a forward pass."""
