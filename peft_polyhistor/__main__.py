# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Command-line interface of peft-polyhistor: `python -m peft_polyhistor <command> --help` describes each command."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from accelerate import PartialState
from tqdm.auto import tqdm

from .inference import MultiTaskPredictor
from .inference.page import PredictionPage
from .tasks import PASCAL_TASKS, declare_tasks


Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code: 0, or 1 if it failed or found a fault."""
    parser = argparse.ArgumentParser(
        prog="python -m peft_polyhistor",
        description="Predict with a multi-task checkpoint, check and shrink dense datasets, and report on runs.",
    )
    commands = parser.add_subparsers(required=True)
    add_predict(commands)
    add_data(commands)
    add_report(commands)
    options = parser.parse_args(arguments)
    try:
        return options.run(options)
    except (ImportError, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1


def add_command(commands: Commands, name: str, text: str) -> argparse.ArgumentParser:
    """Adds a command; `text` is its line in the list of commands and the start of its own help."""
    return commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")


def add_predict(commands: Commands) -> None:
    parser = add_command(
        commands, "predict", "predict all tasks for images, and write the maps and an index.html that shows them"
    )
    parser.add_argument("checkpoint", help="Checkpoint folder, or model id on the Hub such as user/name.")
    parser.add_argument("images", nargs="+", metavar="image", help="Path or URL of an image.")
    parser.add_argument("--out", required=True, help="Output folder. It is created, and must be empty if it exists.")
    parser.add_argument("--tasks", nargs="+", help="Tasks to predict. Default: all tasks of the checkpoint.")
    parser.add_argument(
        "--image_size",
        type=int,
        help="Side in pixels to which images are resized for the model. Default: the size used in training.",
    )
    parser.add_argument("--revision", help="Branch, tag or commit on the Hub.")
    parser.set_defaults(run=run_predict)


def run_predict(options: argparse.Namespace) -> int:
    predictor = MultiTaskPredictor.from_pretrained(
        options.checkpoint, options.tasks, options.image_size, revision=options.revision
    )
    predictor.model.to(PartialState().device)  # type: ignore[arg-type]  # `to` of transformers is not annotated
    faults = 0
    with PredictionPage(options.out, f"Predictions of {options.checkpoint}") as page:
        for source in (bar := tqdm(options.images, desc="predicting", unit="image")):
            try:
                prediction = predictor(source)
            except (OSError, ValueError) as error:
                faults += 1
                bar.write(str(error), file=sys.stderr)
            else:
                page.add(source, prediction)
    if faults == len(options.images):
        print("No image could be predicted.", file=sys.stderr)
    else:
        print(f"{len(options.images) - faults} of {len(options.images)} images are in {page.folder / 'index.html'}.")
    return 1 if faults else 0


def add_data(commands: Commands) -> None:
    parser = add_command(commands, "data", "check a dense dataset, or write a smaller copy of it")
    parts = parser.add_subparsers(required=True)
    check = add_command(parts, "check", "list all faults of a dataset, one per line")
    check.set_defaults(run=run_check)
    shrink = add_command(parts, "shrink", "write a copy with smaller images and labels, as parquet files")
    shrink.set_defaults(run=run_shrink)
    for command in (check, shrink):
        command.add_argument(
            "source", help="Folder of images and labels, folder of parquet files, or dataset id on the Hub."
        )
        command.add_argument(
            "--config", type=Path, help="YAML file of train_pascal.py; supplies `tasks` and `layout`."
        )
        command.add_argument(
            "--tasks", nargs="+", help="Tasks to read. Default: those of --config, else the four of PASCAL_MT."
        )
        command.add_argument(
            "--splits", nargs="+", default=["train", "val"], help="Splits to read. Default: train and val."
        )
        command.add_argument("--workers", type=int, default=1, help="Number of processes that read. Default: 1.")
    shrink.add_argument("folder", help="Output folder, which receives one <split>.parquet per split.")
    shrink.add_argument("--longest", type=int, required=True, help="Maximum length of the longer side, in pixels.")


def read_data_options(options: argparse.Namespace) -> tuple[list[str], dict[str, str]]:
    """Reads the tasks and the layout of a data command, and registers tasks that the config defines."""
    # These need the extra `train`, which `predict` does not.
    from .training.arguments import read_layout, read_mapping, read_tasks

    settings = read_mapping(options.config) if options.config else {}
    described = settings.get("tasks", list(PASCAL_TASKS))
    tasks = read_tasks(described if isinstance(described, list) else [described])
    names = declare_tasks(read_tasks(options.tasks) if options.tasks else tasks)
    return names, read_layout(settings.get("layout", []))


def run_check(options: argparse.Namespace) -> int:
    from .data import check_dataset

    tasks, layout = read_data_options(options)
    report = check_dataset(options.source, tasks, options.splits, layout=layout, workers=options.workers)
    for line in (*report.faults, *(f"Note: {note}" for note in report.notes)):
        print(line)
    if report.faults:
        if not options.config and not options.tasks:
            print(f"Neither --tasks nor --config was given, so the tasks were {', '.join(tasks)}.", file=sys.stderr)
        count = len(report.faults)
        print(f"{count} fault{'s' if count > 1 else ''} in {options.source}.", file=sys.stderr)
        return 1
    counts = ", ".join(f"{count} {split}" for split, count in report.counts.items())
    print(f"No faults in {options.source}: images {counts}; tasks {', '.join(tasks)}.")
    return 0


def run_shrink(options: argparse.Namespace) -> int:
    from .data import write_shrunk

    tasks, layout = read_data_options(options)
    workers = options.workers if options.workers > 1 else None
    files = write_shrunk(options.source, options.folder, options.longest, tasks, options.splits, workers, layout)
    print(f"Wrote {' and '.join(map(str, files))}.")
    return 0


def add_report(commands: Commands) -> None:
    parser = add_command(commands, "report", "write one HTML page about finished runs")
    parser.add_argument("folder", type=Path, help="The --output_dir of train_pascal.py or compare_methods.py.")
    parser.add_argument("--out", type=Path, help="File to write, or a folder for report.html. Default: the folder.")
    parser.set_defaults(run=run_report)


def run_report(options: argparse.Namespace) -> int:
    from .studies.report import make_report

    file = make_report(options.folder, options.out)
    print(f"{file}: {file.stat().st_size / 1e6:.1f} MB.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
