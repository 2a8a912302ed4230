# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Commands of `python -m peft_polyhistor`.

predict    writes what a checkpoint predicts for images, as maps and as a page to look at
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code: 0, or 1 where it could not be run or a picture could not be read."""
    parser = argparse.ArgumentParser(
        prog="python -m peft_polyhistor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    predict = commands.add_parser("predict", help="write the maps of all tasks, and index.html to look at them")
    predict.add_argument("checkpoint", help="a folder, or 'user/name' on the Hub")
    predict.add_argument("pictures", nargs="+", metavar="picture", help="a file or a URL")
    predict.add_argument("--out", required=True, help="a new folder")
    predict.add_argument("--tasks", nargs="+", help="default: all of the checkpoint")
    predict.add_argument("--image_size", type=int, help="pixels of a side in the model; default: that of its training")
    predict.add_argument("--revision", help="branch, tag or commit on the Hub")
    predict.set_defaults(run=run_predict)
    report = commands.add_parser("report", help="make one HTML page of finished runs")
    report.add_argument("folder", type=Path, help="the --output_dir of train_pascal.py or compare_methods.py")
    report.add_argument("--out", type=Path, help="the file to write; default: report.html in the folder")
    report.set_defaults(run=run_report)
    options = parser.parse_args(arguments)
    try:
        return options.run(options)
    except (ImportError, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1


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


def run_report(options: argparse.Namespace) -> int:
    from .studies.report import make_report  # needs matplotlib, which the other commands do not

    file = make_report(options.folder, options.out)
    print(f"{file}: {file.stat().st_size / 1e6:.1f} MB.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
