# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Trains methods with several seeds, everything else equal, and prints mean and range.

    accelerate launch recipes/compare_methods.py CONFIG --methods decoders polyhistor_lite full --seeds 0 1

Takes the settings of train_pascal.py. Every run resumes, and finished runs are not repeated, so the command can be
given again after an interruption, or with more methods or seeds. Writes comparison.json and comparison.md.
"""

import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from dataclasses import replace
from pathlib import Path

from accelerate import PartialState
from checkpoints import write_json
from settings import Settings, parse_settings
from tables import make_rows, to_markdown, to_text
from train_pascal import train


def run_all(settings: Settings, seeds: list[int]) -> dict[str, list[dict]]:
    """Results by method, one per seed; trains what is missing.

    Raises:
        ValueError: A seed is below 0 or given twice, or a run was made with other settings.
    """
    if len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise ValueError(f"`seeds` must be 0 or more, each once, got {seeds}.")
    results = {method: [] for method in settings.methods}
    for seed in seeds:
        run = replace(settings, seed=seed, output_dir=str(Path(settings.output_dir) / f"seed{seed}"), resume=True)
        for method in settings.methods:
            results[method].append(train(method, run))
    return results


def main(argv: list[str]) -> dict[str, list[dict]]:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter, add_help=False)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    own, others = parser.parse_known_args(argv)
    settings = parse_settings(others, __doc__)
    results = run_all(settings, own.seeds)
    if PartialState().is_main_process:
        rows, folder = make_rows(results), Path(settings.output_dir)
        write_json(folder / "comparison.json", results)
        (folder / "comparison.md").write_text(to_markdown(rows), encoding="utf-8")
        print(to_text(rows))
    return results


if __name__ == "__main__":
    main(sys.argv[1:])
    PartialState().destroy_process_group()
