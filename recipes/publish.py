# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Publishes a checkpoint of train_pascal.py on the Hugging Face Hub.

    hf auth login
    python recipes/publish.py runs/scenes/polyhistor_lite/best --repo user/name

The recipe uploads adapters and decoders (safetensors), adapter_config.json, preprocessor_config.json, the model card,
the settings (training.yaml), results.json and predictions.png in one commit. predictions.png shows images of the split
val, and results.json names the ids of images with the best and worst scores; --no_preview leaves out both. After a
failed upload, the same command resumes it.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from peft_polyhistor import METHODS, DenseImageProcessor, load
from peft_polyhistor.hub.record import RESULTS
from peft_polyhistor.hub.run_record import record_of, write_files
from peft_polyhistor.hub.weights import CONFIG
from peft_polyhistor.models.image_processor import FILE as PROCESSOR
from peft_polyhistor.training.files import read_json
from peft_polyhistor.training.methods import parse_methods
from peft_polyhistor.training.settings import NEUTRAL


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("checkpoint", type=Path, help="folder `best` or `last` of a finished run")
    parser.add_argument("--repo", required=True, help="repository on the Hub, as user/name; created if missing")
    parser.add_argument("--private", action="store_true", help="create a private repository")
    parser.add_argument("--revision", help="branch, created if missing (default: main)")
    parser.add_argument("--create_pr", action="store_true", help="open a pull request instead of committing")
    preview = "upload neither predictions.png, which shows images of the split val, nor ids of images"
    parser.add_argument("--no_preview", action="store_true", help=preview)
    base = "Hub id of the encoder, if it was loaded from a folder, which may be gone"
    parser.add_argument("--base_model", help=base)
    parser.add_argument("--license", default="apache-2.0", help="license of the weights (default: %(default)s)")
    seeds = "folders of runs with other seeds; the card shows mean and range of the scores"
    parser.add_argument("--other_seeds", type=Path, nargs="+", default=[], help=seeds)
    return parser.parse_args(argv)


def read_results(run: Path, how: str) -> dict:
    if not (run / RESULTS).is_file():
        raise FileNotFoundError(f"There is no {run / RESULTS}. {how}")
    return read_json(run / RESULTS)


def check_method(results: dict) -> None:
    """Raises ValueError for a run whose checkpoints have no adapter of this package."""
    [choice] = parse_methods(results["settings"]["methods"])
    if choice.name not in METHODS:
        raise ValueError(
            f"The run trained '{choice.name}', and this recipe publishes the methods {', '.join(METHODS)}. Upload the "
            "checkpoint by `hf upload`, without its folder `state`."
        )


def main(argv: Sequence[str]) -> str:
    arguments = parse_arguments(argv)
    checkpoint = arguments.checkpoint.expanduser().absolute()  # keeps the link `best` or `last`
    how = "Give the folder `best` or `last` of a run, and finish the run with --resume True if it was interrupted."
    if (checkpoint / RESULTS).is_file():
        how = f"Give {checkpoint / 'best'}."
    elif (checkpoint / CONFIG).is_file():
        how += " A model without a run is published by `load(folder).push_to_hub(repository)` in Python."
    results = read_results(checkpoint.parent, how)
    check_method(results)
    how = "Give --other_seeds folders of runs, which hold `best` and `last`, and finish them with --resume True."
    others = [read_results(run, how) for run in arguments.other_seeds]
    training = record_of(results, checkpoint.name, others, neutral=NEUTRAL)
    model = load(checkpoint, encoder=arguments.base_model)  # a checkpoint that does not load is not published
    if arguments.base_model:
        results["settings"]["encoder"] = arguments.base_model
    has_processor = (checkpoint / PROCESSOR).is_file()
    with TemporaryDirectory() as folder:
        files = write_files(checkpoint.parent, results, Path(folder), with_images=not arguments.no_preview)
        commit = model.push_to_hub(
            arguments.repo,
            base_model=arguments.base_model,
            training=replace(training, files=files),
            processor=DenseImageProcessor.from_pretrained(str(checkpoint)) if has_processor else None,
            license=arguments.license,
            private=arguments.private or None,
            revision=arguments.revision,
            create_pr=arguments.create_pr,
        )
    print(commit.pr_url or commit.commit_url)
    return commit.oid


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (OSError, ValueError) as error:
        sys.exit(str(error))
