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

from .data import DENSE_TASKS, check_archive, write_shrunk
from .data.archive import SPLITS, PascalArchive
from .inference import MultiTaskPredictor
from .inference.page import PredictionPage


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
    check = commands.add_parser("check", help="list all faults of a PASCAL_MT folder, one a line")
    check.add_argument("folder", help="the folder that holds ImageSets, JPEGImages and the labels")
    check.set_defaults(run=run_check)
    shrink = commands.add_parser("shrink", help="write a copy of smaller pictures, as parquet files")
    shrink.add_argument("source", help="a PASCAL_MT folder, a folder of parquet files, or the id of a dataset")
    shrink.add_argument("folder", help="where <split>.parquet is written")
    shrink.add_argument("--longest", type=int, required=True, help="pixels of the longer side, at most")
    shrink.set_defaults(run=run_shrink)
    for command in (check, shrink):
        command.add_argument("--tasks", nargs="+", choices=DENSE_TASKS, default=DENSE_TASKS, help="default: all")
        command.add_argument("--splits", nargs="+", choices=SPLITS, default=SPLITS, help="default: all")
        command.add_argument("--workers", type=int, default=1, help="processes that read (default: 1)")


def run_check(options: argparse.Namespace) -> int:
    report = check_archive(options.folder, options.tasks, options.splits, workers=options.workers)
    for line in (*report.faults, *report.notes):
        print(line)
    if report.faults:
        count = len(report.faults)
        print(f"{count} fault{'s' if count > 1 else ''} in {options.folder}.", file=sys.stderr)
        return 1
    archive = PascalArchive(options.folder)
    counts = ", ".join(f"{len(archive.read_ids(split))} {split}" for split in options.splits)
    print(f"No faults in {options.folder}: pictures {counts}; tasks {', '.join(options.tasks)}.")
    return 0


def run_shrink(options: argparse.Namespace) -> int:
    workers = options.workers if options.workers > 1 else None
    files = write_shrunk(options.source, options.folder, options.longest, options.tasks, options.splits, workers)
    print(f"Wrote {' and '.join(map(str, files))}.")
    return 0


def add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="the --output_dir of train_pascal.py or compare_methods.py")
    parser.add_argument("--out", type=Path, help="the file to write; default: report.html in the folder")
    parser.set_defaults(run=run_report)


def run_report(options: argparse.Namespace) -> int:
    from .studies.report import make_report  # needs matplotlib, which the other commands do not

    file = make_report(options.folder, options.out)
    print(f"{file}: {file.stat().st_size / 1e6:.1f} MB.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
