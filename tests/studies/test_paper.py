# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Rows of the paper's tables, found by our methods and their settings."""

from pathlib import Path

import pytest

from peft_polyhistor import METHODS
from peft_polyhistor.studies.paper import find_row, read_rows


ROWS = read_rows(Path(__file__).parents[2] / "recipes" / "paper" / "tables.csv")


@pytest.mark.parametrize(
    ("method", "settings", "found"),
    [
        ("single_task", {}, (1, "Single-task Full Fine-tuning", "")),
        ("decoders", {}, (1, "Fine-tuning Decoders", "")),
        ("full", {}, (1, "Multi-task Full Fine-tuning", "")),
        ("compacter_plus_plus", {}, (1, "Compacter++", "")),
        ("compacter", {}, (1, "Compacter", "")),
        ("adapter", {"reduction_factor": 4}, (6, "Adapter", "lambda=4")),
        ("polyhistor", {"rank": 1}, (5, "Polyhistor", "rank=1")),
        ("hyperformer", {}, None),  # beside the feed-forward block alone, which the paper does not have on Swin-T
        ("polyhistor_lite", {"placement": "serial"}, None),
        ("peft_lora", {}, None),
    ],
)
def test_the_papers_row_is_of_the_same_settings(method, settings, found):
    row = find_row(ROWS, method, METHODS[method](**settings) if method in METHODS else None)
    assert (row and (row.table, row.method, row.setting)) == found
