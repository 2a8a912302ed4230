# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""`python -m peft_polyhistor.data`: `check` lists every fault of a PASCAL_MT archive, `shrink` copies it smaller."""

import argparse
import sys
from collections.abc import Sequence

from .archive import DENSE_TASKS, SPLITS, PascalArchive
from .check import find_faults
from .shrink import write_shrunk


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code: 0, or 1 where it found faults or could not be run."""
    parser = argparse.ArgumentParser(prog="python -m peft_polyhistor.data", description=__doc__)
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
    options = parser.parse_args(arguments)
    return options.run(options)


def run_shrink(options: argparse.Namespace) -> int:
    workers = options.workers if options.workers > 1 else None
    try:
        files = write_shrunk(options.source, options.folder, options.longest, options.tasks, options.splits, workers)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"Wrote {' and '.join(map(str, files))}.")
    return 0


def run_check(options: argparse.Namespace) -> int:
    faults = find_faults(options.folder, options.tasks, options.splits, workers=options.workers)
    for fault in faults:
        print(fault)
    if faults:
        print(f"{len(faults)} fault{'s' if len(faults) > 1 else ''} in {options.folder}.", file=sys.stderr)
        return 1
    archive = PascalArchive(options.folder)
    counts = ", ".join(f"{len(archive.read_ids(split))} {split}" for split in options.splits)
    print(f"No faults in {options.folder}: pictures {counts}; tasks {', '.join(options.tasks)}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
