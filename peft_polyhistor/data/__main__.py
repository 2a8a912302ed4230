# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""`python -m peft_polyhistor.data check FOLDER`: lists every fault of a PASCAL_MT archive."""

import argparse
import sys
from collections.abc import Sequence

from .archive import DENSE_TASKS, SPLITS, PascalArchive
from .check import find_faults


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code: 0 if the archive is whole, 1 if it has faults."""
    parser = argparse.ArgumentParser(prog="python -m peft_polyhistor.data", description=__doc__)
    commands = parser.add_subparsers(required=True)
    check = commands.add_parser("check", help="list all faults of a PASCAL_MT folder, one a line")
    check.add_argument("folder", help="the folder that holds ImageSets, JPEGImages and the labels")
    check.add_argument("--tasks", nargs="+", choices=DENSE_TASKS, default=DENSE_TASKS, help="default: all")
    check.add_argument("--splits", nargs="+", choices=SPLITS, default=SPLITS, help="default: all")
    check.add_argument("--workers", type=int, default=1, help="processes that read (default: 1)")
    options = parser.parse_args(arguments)

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
