# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The rows of the paper's Tables 1 to 8 (Polyhistor, arXiv:2210.03265), and what each one is called here."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from peft import PeftConfig


FILE = Path(__file__).with_name("paper_tables.csv")
PARTS = ("encoder", "all")
SCORES = ("semseg", "human_parts", "saliency", "normals")

# Our method and its settings, by the paper's name; what is not named is our default.
METHOD_OF = {
    "Single-task Full Fine-tuning": ("single_task", {}),
    "Fine-tuning Decoders": ("decoders", {}),
    "Multi-task Full Fine-tuning": ("full", {}),
    "Bitfit": ("bitfit", {}),
    "Relative bias": ("relative_bias", {}),
    "VPT-shallow": ("vpt_shallow", {}),
    "VPT-deep": ("vpt_deep", {}),
    "PHM layer": ("phm", {}),
    "Compacter": ("compacter", {}),
    "Compacter++": ("compacter_plus_plus", {}),
    "LoRA": ("lora", {}),
    "Adapter": ("adapter", {}),
    "Low-rank adapter": ("low_rank_adapter", {}),
    "Shared Adapter": ("shared_adapter", {}),
    "Hyperformer": ("hyperformer", {}),
    "Polyhistor": ("polyhistor", {}),
    "Polyhistor-Lite": ("polyhistor_lite", {}),
}
# Our field and value, by the column `setting`.
SETTING_OF = {
    "": {},
    **{f"lambda={factor}": {"reduction_factor": factor} for factor in (1, 2, 4, 8, 16, 32)},
    **{f"k={length}": {"embedding_dim": length} for length in (16, 32, 64)},
    "rank=1": {"rank": 1},
    **{f"rank=n/{divisor}": {"rank_divisor": divisor} for divisor in (2, 4, 8)},
}
# In these tables Hyperformer stands beside attention too, in the others beside the feed-forward block alone.
HYPERFORMER_BESIDE_ATTENTION = (1, 6)


@dataclass(frozen=True)
class PaperRow:
    """A row of the paper's tables, figures as printed."""

    table: int
    backbone: str
    pretraining: str
    method: str
    setting: str
    parameters: Mapping[str, str]  # millions, by part; empty where there is no figure
    scores: Mapping[str, str]  # by task; percent, of normals degrees
    change: str  # against single-task full fine-tuning, percent

    def as_ours(self) -> tuple[str, dict[str, Any]]:
        """The method here, and the settings that make it the row's."""
        method, settings = METHOD_OF[self.method]
        settings = settings | SETTING_OF[self.setting]
        if method == "hyperformer" and self.table in HYPERFORMER_BESIDE_ATTENTION:
            settings = {"reduction_factor": 8, **settings, "sublayers": ["attention", "feed_forward"]}
        return method, settings


@cache
def read_rows() -> tuple[PaperRow, ...]:
    """All rows, in the order of the tables."""
    with FILE.open(encoding="utf-8", newline="") as file:
        records = list(csv.DictReader(line for line in file if not line.startswith("#")))
    return tuple(
        PaperRow(
            int(record["table"]),
            *(record[name] for name in ("backbone", "pretraining", "method", "setting")),
            {part: record[part] for part in PARTS},
            {task: record[task] for task in SCORES},
            record["change"],
        )
        for record in records
    )


def find_row(method: str, config: PeftConfig | None) -> PaperRow | None:
    """The row of a method in the paper's main setting, Swin-T of ImageNet-1k, if there is one with these settings.

    Args:
        method: Our name.
        config: Settings of an adapter method.
    """
    for row in read_rows():
        name, settings = row.as_ours()
        if (name, row.backbone, row.pretraining) != (method, "Swin-T", "ImageNet-1k"):
            continue
        if config is None or config == type(config)(tasks=config.tasks, **settings):
            return row
    return None
