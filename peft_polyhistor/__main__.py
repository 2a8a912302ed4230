# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Commands of `python -m peft_polyhistor`.

predict    writes what a checkpoint predicts for images, as maps and as a page to look at
data       lists the faults of a data set, or copies it smaller
report     makes one page of finished runs
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from accelerate import PartialState
from tqdm.auto import tqdm

from .inference import MultiTaskPredictor
from .inference.page import PredictionPage
from .tasks import PASCAL_TASKS, declare_tasks


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code: 0, or 1 where it could not be run or found a fault."""
    parser = argparse.ArgumentParser(
        prog="python -m peft_polyhistor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    add_predict(commands.add_parser("predict", help="write the maps of all tasks, and index.html to look at them"))
    add_data(commands.add_parser("data", help="list all faults of a data set, or copy it smaller"))
    add_report(commands.add_parser("report", help="make one HTML page of finished runs"))
    options = parser.parse_args(arguments)
    try:
        return options.run(options)
    except (ImportError, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1


def add_predict(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help="a folder, or 'user/name' on the Hub")
    parser.add_argument("pictures", nargs="+", metavar="picture", help="a file or a URL")
    parser.add_argument("--out", required=True, help="a new folder")
    parser.add_argument("--tasks", nargs="+", help="default: all of the checkpoint")
    parser.add_argument("--image_size", type=int, help="pixels of a side in the model; default: that of its training")
    parser.add_argument("--revision", help="branch, tag or commit on the Hub")
    parser.set_defaults(run=run_predict)


def run_predict(options: argparse.Namespace) -> int:
    predictor = MultiTaskPredictor.from_pretrained(
        options.checkpoint, options.tasks, options.image_size, revision=options.revision
    )
    predictor.model.to(PartialState().device)  # type: ignore[arg-type]  # transformers does not say of what
    faults = 0
    with PredictionPage(options.out, f"Predictions of {options.checkpoint}") as page:
        for source in (bar := tqdm(options.pictures, desc="predicting", unit="picture")):
            try:
                prediction = predictor(source)
            except (OSError, ValueError) as error:
                faults += 1
                bar.write(str(error), file=sys.stderr)
            else:
                page.add(source, prediction)
    print(f"{len(options.pictures) - faults} of {len(options.pictures)} pictures are in {page.folder / 'index.html'}.")
    return 1 if faults else 0


def add_data(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(required=True)
    check = commands.add_parser("check", help="list all faults of a data set, one a line")
    check.set_defaults(run=run_check)
    shrink = commands.add_parser("shrink", help="write a copy of smaller pictures, as parquet files")
    for command in (check, shrink):
        command.add_argument("source", help="a folder of files, of parquet files, or the id of a dataset on the Hub")
    shrink.add_argument("folder", help="where <split>.parquet is written")
    shrink.add_argument("--longest", type=int, required=True, help="pixels of the longer side, at most")
    shrink.set_defaults(run=run_shrink)
    for command in (check, shrink):
        command.add_argument(
            "--config", type=Path, help="YAML file of train_pascal.py: its `tasks` and `layout` count"
        )
        command.add_argument("--tasks", nargs="+", help="names of tasks (default: those of the file, or of PASCAL_MT)")
        command.add_argument("--splits", nargs="+", default=["train", "val"], help="default: train and val")
        command.add_argument("--workers", type=int, default=1, help="processes that read (default: 1)")


def read_data_options(options: argparse.Namespace) -> tuple[list[str], dict[str, str]]:
    """The tasks, whose rows are registered, and the layout of a command."""
    from .training.arguments import read_layout, read_yaml  # needs the extra `train`, which `predict` does not

    settings = read_yaml(options.config.read_text(encoding="utf-8")) if options.config else {}
    tasks = declare_tasks(settings.get("tasks", PASCAL_TASKS))
    return declare_tasks(options.tasks or tasks), read_layout(settings.get("layout", []))


def run_check(options: argparse.Namespace) -> int:
    from .data import check_archive

    tasks, layout = read_data_options(options)
    report = check_archive(options.source, tasks, options.splits, layout=layout, workers=options.workers)
    for line in (*report.faults, *report.notes):
        print(line)
    if report.faults:
        count = len(report.faults)
        print(f"{count} fault{'s' if count > 1 else ''} in {options.source}.", file=sys.stderr)
        return 1
    counts = ", ".join(f"{count} {split}" for split, count in report.counts.items())
    print(f"No faults in {options.source}: pictures {counts}; tasks {', '.join(tasks)}.")
    return 0


def run_shrink(options: argparse.Namespace) -> int:
    from .data import write_shrunk

    tasks, layout = read_data_options(options)
    workers = options.workers if options.workers > 1 else None
    files = write_shrunk(options.source, options.folder, options.longest, tasks, options.splits, workers, layout)
    print(f"Wrote {' and '.join(map(str, files))}.")
    return 0


def add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="the --output_dir of train_pascal.py or compare_methods.py")
    parser.add_argument("--out", type=Path, help="the file to write; default: report.html in the folder")
    parser.set_defaults(run=run_report)


def run_report(options: argparse.Namespace) -> int:
    from .studies.report import make_report

    file = make_report(options.folder, options.out)
    print(f"{file}: {file.stat().st_size / 1e6:.1f} MB.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
