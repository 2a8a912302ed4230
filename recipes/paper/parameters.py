# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Compares our parameter counts with the paper's Tables 1 to 8 (Polyhistor, arXiv:2210.03265).

    python recipes/paper/parameters.py

Models are built on PyTorch's meta device, so neither weights nor data are needed.
"""

import json
from decimal import ROUND_HALF_UP, Decimal
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from peft import get_peft_model

from peft_polyhistor import METHODS, PASCAL_TASKS, MultiTaskDenseModel
from peft_polyhistor.evaluation import count_trainable
from peft_polyhistor.models.encoder import view_encoder
from peft_polyhistor.studies.paper import PARTS, PaperRow, make_encoder, read_rows
from peft_polyhistor.studies.tables import align
from peft_polyhistor.training.methods import shares_pass


TABLES = Path(__file__).with_name("tables.csv")


class Slip(NamedTuple):
    """Figures of the paper that contradict its own other rows."""

    backbone: str
    method: str
    explanation: str
    setting: str = ""
    tables: tuple[int, ...] = tuple(range(1, 9))

    def is_of(self, row: PaperRow) -> bool:
        place = (self.backbone, self.method, self.setting)
        return (row.backbone, row.method, row.setting) == place and row.table in self.tables


SLIPS = (
    Slip("Swin-T", "Multi-task Full Fine-tuning", "27,517,818 cut to 27.51, where rounding gives 27.52"),
    Slip(
        "Swin-T",
        "Polyhistor-Lite",
        "the paper adds its rounded 0.23 and 2.55; 225,248 + 2,549,024 = 2,774,272",
        "k=16",
    ),
    Slip("Swin-B", "Low-rank adapter", "the paper prints 0.34 and 2.89, its figures of Swin-T"),
    Slip("Swin-B", "LoRA", "the paper prints 4.31 in all; its encoder and decoders add up to 3.91"),
    Slip("Swin-B", "Bitfit", "the paper counts one set, where its Swin-T has one per task"),
    Slip("Swin-B", "Relative bias", "the paper counts one set, where its Swin-T has one per task"),
    Slip(
        "Swin-T", "Hyperformer", "the paper prints 44.25 in all; 19.29 and the decoders' 2.55 make 21.84", tables=(8,)
    ),
)


def count(row: PaperRow) -> dict[str, int]:
    """Counts the trainable parameters of a row by part, for the four tasks."""
    method, settings = row.as_ours()
    return _count(row.backbone, method, json.dumps(settings))


@cache
def _count(backbone: str, method: str, settings: str) -> dict[str, int]:
    with torch.device("meta"):
        encoder = view_encoder(make_encoder(backbone))
        model = MultiTaskDenseModel.from_encoder(encoder, PASCAL_TASKS, shared_norms=shares_pass(method))
        if method in METHODS:
            model = get_peft_model(model, METHODS[method](tasks=PASCAL_TASKS, **json.loads(settings)))
    sizes = count_trainable(model)
    if method == "single_task":
        others = (len(PASCAL_TASKS) - 1) * sizes["encoder"]
        return {part: size + others for part, size in sizes.items()}
    return sizes


def to_millions(parameters: int) -> str:
    """Formats millions with two decimals, rounded half up."""
    return str((Decimal(parameters) / 10**6).quantize(Decimal("0.01"), ROUND_HALF_UP))


def make_line(row: PaperRow) -> list[str]:
    """Returns the cells of a row: our counts, the paper's, and the verdict."""
    name = [str(row.table), row.backbone, f"{row.method} {row.setting}".strip()]
    sizes = count(row)
    cells = [cell for part in PARTS for cell in (to_millions(sizes[part]), row.parameters[part] or "-")]
    return [*name, *cells, judge(row, sizes)]


def judge(row: PaperRow, sizes: dict[str, int]) -> str:
    """Returns the verdict on a row: its figures agree, were not transcribed, or differ, with the known reason."""
    differs = any(figure and figure != to_millions(sizes[part]) for part, figure in row.parameters.items())
    known = next((slip.explanation for slip in SLIPS if slip.is_of(row)), None)
    if known and (differs or not all(row.parameters.values())):
        return f"slip: {known}"
    if differs:
        return "DIFFERS"
    return "ok" if any(row.parameters.values()) else "not transcribed"


def main() -> list[list[str]]:
    lines = [make_line(row) for row in read_rows(TABLES)]
    header = ["table", "encoder", "method", "encoder M", "paper", "all M", "paper", ""]
    print(align([header, *lines], left=(1, 2, 7)))
    print("Millions of trainable parameters for four tasks. The paper: Polyhistor, arXiv:2210.03265.")
    verdicts = [line[-1].partition(":")[0] for line in lines]
    print(", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in dict.fromkeys(verdicts)))
    return lines


if __name__ == "__main__":
    main()
