# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Rows of the paper's Tables 1 to 8 (Polyhistor, arXiv:2210.03265), and their methods, settings and encoders here."""

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PvtConfig, PvtModel, SwinConfig, SwinModel

from ..config import MultiTaskConfig
from ..tasks import PASCAL_TASKS


PARTS = ("encoder", "all")

METHOD_OF = {  # our method by the name in the paper; settings that a row does not name are our defaults
    "Single-task Full Fine-tuning": "single_task",
    "Fine-tuning Decoders": "decoders",
    "Multi-task Full Fine-tuning": "full",
    "Bitfit": "bitfit",
    "Relative bias": "relative_bias",
    "VPT-shallow": "vpt_shallow",
    "VPT-deep": "vpt_deep",
    "PHM layer": "phm",
    "Compacter": "compacter",
    "Compacter++": "compacter_plus_plus",
    "LoRA": "lora",
    "Adapter": "adapter",
    "Low-rank adapter": "low_rank_adapter",
    "Shared Adapter": "shared_adapter",
    "Hyperformer": "hyperformer",
    "Polyhistor": "polyhistor",
    "Polyhistor-Lite": "polyhistor_lite",
}
SETTING_OF: dict[str, dict[str, Any]] = {  # our field and value by the column `setting`
    "": {},
    **{f"lambda={factor}": {"reduction_factor": factor} for factor in (1, 2, 4, 8, 16, 32)},
    **{f"k={length}": {"embedding_dim": length} for length in (16, 32, 64)},
    "rank=1": {"rank": 1},
    **{f"rank=n/{divisor}": {"rank_divisor": divisor} for divisor in (2, 4, 8)},
}
# In these tables Hyperformer also adapts the attention blocks; in all other tables, only the feed-forward blocks.
HYPERFORMER_BESIDE_ATTENTION = (1, 6)

SWINS = {"Swin-T": (96, 6), "Swin-B": (128, 18), "Swin-L": (192, 18)}  # channels of stage 1, and blocks of stage 3


@dataclass(frozen=True)
class PaperRow:
    """A row of the paper's tables, with its figures as printed.

    Args:
        table: Number of the table.
        backbone: Encoder, as the paper writes it.
        pretraining: Data that the encoder was trained on.
        method: Method, as the paper writes it.
        setting: Setting that the table varies; empty for none.
        parameters: Trainable parameters in millions of the `encoder` and of `all`; empty if not transcribed.
        scores: Scores by task, in percent; in degrees for normals.
        change: Mean relative change against single-task full fine-tuning, in percent.
    """

    table: int
    backbone: str
    pretraining: str
    method: str
    setting: str
    parameters: Mapping[str, str]
    scores: Mapping[str, str]
    change: str

    def as_ours(self) -> tuple[str, dict[str, Any]]:
        """Returns our name of the method, and the settings of the row."""
        method, settings = METHOD_OF[self.method], SETTING_OF[self.setting]
        if method == "hyperformer" and self.table in HYPERFORMER_BESIDE_ATTENTION:
            settings = {"reduction_factor": 8, **settings, "sublayers": ["attention", "feed_forward"]}
        return method, settings


def read_rows(file: Path) -> list[PaperRow]:
    """Reads all rows of `recipes/paper/tables.csv`, in the order of the tables."""
    with file.open(encoding="utf-8", newline="") as lines:
        records = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    return [
        PaperRow(
            table=int(record["table"]),
            parameters={part: record[part] for part in PARTS},
            scores={task: record[task] for task in PASCAL_TASKS},
            **{name: record[name] for name in ("backbone", "pretraining", "method", "setting", "change")},
        )
        for record in records
    ]


def make_encoder(backbone: str) -> PreTrainedModel:
    """Creates an encoder with random weights, to count its parameters and to measure it.

    Args:
        backbone: Encoder, as the paper writes it: "Swin-T", "Swin-B" or "PVT-S"; also "Swin-L".

    Raises:
        ValueError: No encoder has this name.
    """
    if backbone == "PVT-S":
        return PvtModel(PvtConfig(depths=[3, 4, 6, 3]))
    if backbone not in SWINS:
        raise ValueError(f"`backbone` must be one of {[*SWINS, 'PVT-S']}, got {backbone!r}.")
    width, depth = SWINS[backbone]
    heads = [width // 32 * 2**stage for stage in range(4)]
    return SwinModel(SwinConfig(embed_dim=width, depths=[2, 2, depth, 2], num_heads=heads), add_pooling_layer=False)


def find_row(rows: Iterable[PaperRow], method: str, config: MultiTaskConfig | None) -> PaperRow | None:
    """Finds a method in the paper's main setting, a Swin-T trained on ImageNet-1k.

    Args:
        rows: Rows of the paper's tables.
        method: Our name of the method.
        config: Config of an adapter method, which must agree with the row's settings; `None` for other methods.

    Returns:
        The first such row; `None` where the paper has none with these settings.
    """
    for row in rows:
        name, settings = row.as_ours()
        if (name, row.backbone, row.pretraining) != (method, "Swin-T", "ImageNet-1k"):
            continue
        if config is None or config == type(config)(tasks=config.tasks, **settings):
            return row
    return None
