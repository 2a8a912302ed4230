# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""What it takes to start: the import of the package, and adapters for a large encoder.

    python recipes/benchmark_startup.py

Imports run in processes of their own, which have imported PEFT before. Seconds are those of the processor, the least
of the rounds: what else the machine does only adds to them.
"""

import subprocess
import sys
import time
from collections.abc import Sequence

from encoders import ENCODERS
from peft import get_peft_model

from peft_polyhistor import HyperformerConfig
from peft_polyhistor.studies.tables import align


BEFORE, PACKAGE = "peft", "peft_polyhistor"
LIMITS = (0.15, 2.0)  # seconds
ROUNDS = 5


def time_import() -> float:
    """Seconds that a fresh process with PEFT takes to import this package."""
    code = f"import time, {BEFORE}; start = time.process_time(); import {PACKAGE}; print(time.process_time() - start)"
    return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


def time_adapters() -> float:
    """Seconds for Hyperformer's hypernetworks, the largest there are, on a Swin-B."""
    encoder = ENCODERS["Swin-B"]()
    start = time.process_time()
    get_peft_model(encoder, HyperformerConfig())
    return time.process_time() - start


def main(rounds: int = ROUNDS) -> list[float]:
    figures = [min(measure() for _ in range(rounds)) for measure in (time_import, time_adapters)]
    names = ("import peft_polyhistor, beyond import peft", "get_peft_model: Hyperformer, Swin-B, 4 tasks")
    print(align(make_rows(names, figures)))
    return figures


def make_rows(names: Sequence[str], figures: Sequence[float]) -> list[list[str]]:
    cells = zip(names, figures, LIMITS, strict=True)
    return [["", "seconds", "goal"], *([name, f"{figure:.2f}", f"{limit:.2f}"] for name, figure, limit in cells)]


if __name__ == "__main__":
    main()
