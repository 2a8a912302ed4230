# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The layers that adapters compute with, and the algebra that generates their weights."""
