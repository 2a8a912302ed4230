# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The recorded grids of learning rates: their tables are those of their JSON files."""

import json
from statistics import mean

import pytest
from documents import ROOT, read, tables_of

from peft_polyhistor.evaluation import format_scores


@pytest.mark.parametrize("name", ["rates_scenes", "rates_photographs", "rates_nyud_frames"])
def test_a_grid_of_rates_shows_what_its_json_holds(name):
    recorded = json.loads(read(ROOT / f"recipes/results/{name}.json"))
    header, *lines = tables_of(ROOT / f"recipes/results/{name}.md")[0]
    shown = {
        label: dict(zip(header[1:], cells, strict=True)) for label, *cells in lines if not label.startswith("order")
    }
    assert shown.keys() == recorded.keys()
    for label, row in recorded.items():
        changes = row["changes"]
        assert shown[label].pop("encoder") == f"{row['parameters']:,}"
        assert shown[label].pop("best") == f"{max(map(mean, changes.values())):+.2f}"
        assert shown[label] == {
            rate: format_scores(changes[rate], "+") if rate in changes else "-" for rate in shown[label]
        }
        assert changes.keys() <= shown[label].keys()
