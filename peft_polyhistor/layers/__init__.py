# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""What an adapted layer computes, and the algebra that makes its weights."""
