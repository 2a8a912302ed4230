# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Rows of the paper's tables, found by our methods and their settings, and encoders."""

from pathlib import Path

import pytest
import torch

from peft_polyhistor import METHODS
from peft_polyhistor.studies.paper import find_row, make_encoder, read_rows


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


@pytest.mark.parametrize(
    ("backbone", "parameters"), [("Swin-T", 27_519_354), ("Swin-B", 86_743_224), ("Swin-L", 194_995_476)]
)
def test_encoders_have_the_published_sizes(backbone, parameters):
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in make_encoder(backbone).parameters()) == parameters


def test_an_unknown_encoder_is_an_error():
    with pytest.raises(ValueError, match=r"must be one of \['Swin-T', .*'PVT-S'\], got 'Swin-X'"):
        make_encoder("Swin-X")
