# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Memory and time while as many pictures as PASCAL-Context has are prepared, and go by as in training.

    python recipes/benchmark_scale.py [--data PASCAL_MT] [--workers 2 0] [--output_dir runs/benchmark_scale]

Without --data it draws an archive of 10,103 pictures in the layout and sizes of PASCAL_MT; from 200 scenes, over and
over, but every file is opened, decoded and checked. Then both splits are prepared, an epoch of train goes by
augmented with each number of workers, and val with the last. Archive and cache are deleted in the end.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from atomic import write_json
from generated_archive import COUNTS, write_archive
from loaders import make_loader
from resident_memory import growth, sample_memory
from settings import Settings, option
from transformers import HfArgumentParser

from peft_polyhistor.data import DENSE_TASKS, JointTransform, load_pascal_context
from peft_polyhistor.studies.tables import align


SHARES = (1, 25, 50, 75, 100)  # percent of the time of a phase


@dataclass
class Options:
    data: str = option("", "a PASCAL_MT folder; empty: one that is drawn")
    train: int = option(COUNTS["train"], "pictures that are drawn to train on")
    val: int = option(COUNTS["val"], "pictures that are drawn to validate on")
    distinct: int = option(200, "scenes among them; the others are the same files under other names")
    image_size: int = option(512, "side of the pictures in training, pixels")
    batch_size: int = option(12, "pictures of a batch")
    workers: list[int] = option([2, 0], "processes that load pictures; each goes through train, the last through val")
    preparation_workers: int = option(1, "processes that prepare the data")
    output_dir: str = option("runs/benchmark_scale", "where results.json goes, and for a while archive and cache")

    def __post_init__(self):
        for name in ("train", "val", "distinct", "preparation_workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if not self.workers:
            raise ValueError("`workers` must be at least one number, got none. Give e.g. --workers 2 0.")
        self.loading(0)  # checks the rest

    def loading(self, workers: int) -> Settings:
        return Settings(image_size=self.image_size, batch_size=self.batch_size, workers=workers)


def main(options: Options) -> dict:
    torch.set_num_threads(1)
    folder = Path(options.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    phases = {}
    with TemporaryDirectory(dir=folder) as temporary:
        archive = options.data or draw_archive(options, Path(temporary) / "PASCAL_MT")
        processes = options.preparation_workers if options.preparation_workers > 1 else None
        load = partial(load_pascal_context, archive, num_proc=processes, cache_dir=f"{temporary}/cache")
        data = {}
        for split in COUNTS:
            name = f"prepare {split}"
            with measured(phases, name):
                data[split] = load(DENSE_TASKS, split)
            add_speed(phases[name], len(data[split]))
        runs = [("train", workers) for workers in options.workers] + [("val", options.workers[-1])]
        for split, workers in runs:
            transform = JointTransform(options.image_size, split == "train")
            loader = make_loader(data[split], transform, options.loading(workers))
            name = f"iterate {split}, {workers} workers"
            with measured(phases, name):
                for batch in loader:
                    assert batch["pixel_values"].isfinite().all()
            add_speed(phases[name], len(data[split]))
        counts = {split: len(rows) for split, rows in data.items()}
        nbytes = sum(file.stat().st_size for file in Path(temporary, "cache").rglob("*.arrow"))
    results = {"pictures": counts, "prepared_bytes": nbytes, "phases": phases, "options": asdict(options)}
    write_json(folder / "results.json", results)
    report(results)
    return results


def draw_archive(options: Options, root: Path) -> Path:
    write_archive(root, {"train": options.train, "val": options.val}, options.distinct)
    return root


@contextmanager
def measured(phases: dict[str, dict], name: str) -> Iterator[None]:
    """Adds time and memory of the block to `phases`."""
    start = time.perf_counter()
    with sample_memory() as samples:
        yield
    at = [samples[round(share / 100 * (len(samples) - 1))] for share in SHARES]
    phases[name] = {
        "seconds": round(time.perf_counter() - start, 3),
        "own_megabytes": [round(memory.own / 1e6) for memory in at],
        "mapped_megabytes": [round(memory.mapped / 1e6) for memory in at],
        "peak_own_megabytes": round(max(memory.own for memory in samples) / 1e6),
        "growth_percent": round(growth([memory.own for memory in samples]), 1),
    }
    print(name, phases[name], flush=True)


def add_speed(phase: dict, pictures: int) -> None:
    phase["pictures_per_second"] = round(pictures / phase["seconds"], 1)


def report(results: dict) -> None:
    shares = [f"{share} %" for share in SHARES]
    rows = [["", "pictures/s", *(f"MB at {share}" for share in shares), "peak", "last tenth / first", "mapped MB"]]
    for name, phase in results["phases"].items():
        figures = [phase["pictures_per_second"], *phase["own_megabytes"], phase["peak_own_megabytes"]]
        mapped = f"{phase['mapped_megabytes'][0]} to {phase['mapped_megabytes'][-1]}"
        rows.append([name, *map(str, figures), f"{phase['growth_percent']:+.1f} %", mapped])
    print(align(rows, left=(0,)))
    print(f"{results['pictures']} pictures, {results['prepared_bytes'] / 1e9:.1f} GB prepared.")


if __name__ == "__main__":
    main(*HfArgumentParser(Options, description=__doc__).parse_args_into_dataclasses(sys.argv[1:]))
