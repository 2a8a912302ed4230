# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Trains methods with several seeds, everything else equal, and prints mean and range.

    accelerate launch recipes/compare_methods.py CONFIG --methods decoders polyhistor_lite full --seeds 0 1

Takes the settings of train_pascal.py. Runs whose results.json is there are not repeated, so the command can be given
again after an interruption, or with more methods or seeds. Writes comparison.json and comparison.md.
"""

import json
import sys
from argparse import ArgumentParser
from dataclasses import asdict, replace
from pathlib import Path

from accelerate import PartialState
from settings import Settings, parse_settings
from train_pascal import train

from peft_polyhistor import TASKS, relative_change
from peft_polyhistor.evaluation import headline


def run_all(settings: Settings, seeds: list[int]) -> dict[str, list[dict]]:
    """Results by method, one per seed; trains what is missing.

    Raises:
        ValueError: A run was made with other settings.
    """
    results = {method: [] for method in settings.methods}
    for seed in seeds:
        folder = Path(settings.output_dir) / f"seed{seed}"
        for method in settings.methods:
            run = replace(settings, seed=seed, output_dir=str(folder), methods=[method], resume=True)
            file = folder / method / "results.json"
            if file.is_file():
                result = json.loads(file.read_text())
                other = {k: v for k, v in result["settings"].items() if v != asdict(run)[k] and k != "workers"}
                if other:
                    raise ValueError(f"{file} was made with other settings: {other}. Choose another --output_dir.")
            else:
                result = train(method, run)
            results[method].append(result)
    return results


def mean_and_range(values: list[float]) -> str:
    mean = sum(values) / len(values)
    return f"{mean:.2f} ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else f"{mean:.2f}"


def make_table(results: dict[str, list[dict]]) -> str:
    """A Markdown table; the change is against decoders only of the same seed."""
    tasks = list(next(iter(results.values()))[0]["scores"])
    arrows = {task: "↑" if TASKS[task].higher_is_better else "↓" for task in tasks}
    titles = [f"{task} {TASKS[task].score} {arrows[task]}" for task in tasks]
    header = ["method", "trainable in the encoder", "in all", *titles, "change, %"]
    lines = [" | ".join(header), "|".join(["---"] * len(header))]
    references = [headline(result["scores"]) for result in results.get("decoders", [])]
    for method, runs in results.items():
        scores = [headline(run["scores"]) for run in runs]
        changes = [relative_change(*pair) for pair in zip(scores, references, strict=False)]
        cells = [f"{runs[0]['parameters'][part]:,}" for part in ("encoder", "all")]
        cells += [mean_and_range([score[task] for score in scores]) for task in tasks]
        lines.append(" | ".join([method, *cells, mean_and_range(changes) if changes else "-"]))
    return "\n".join(f"| {line} |" for line in lines) + "\n"


def main(argv: list[str]) -> None:
    parser = ArgumentParser(description=__doc__, add_help=False)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    own, others = parser.parse_known_args(argv)
    settings = parse_settings(others, __doc__)
    results = run_all(settings, own.seeds)
    if PartialState().is_main_process:
        table, folder = make_table(results), Path(settings.output_dir)
        (folder / "comparison.json").write_text(json.dumps(results, indent=2) + "\n")
        (folder / "comparison.md").write_text(table)
        print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
