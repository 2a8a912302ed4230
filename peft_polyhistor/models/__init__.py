# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
