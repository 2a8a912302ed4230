# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Reads the PASCAL-Context multi-task archive (PASCAL_MT).

PASCAL_MT/
  ImageSets/Context/{train,val}.txt   one image id per line
  JPEGImages/<id>.jpg
  semseg/VOC12/<id>.png               if it exists, else semseg/pascal-context/<id>.png
  human_parts/<id>.mat                PASCAL-Part annotation, key `anno`
  sal_distill/<id>.png                8-bit greyscale
  normals_distill/<id>.png            RGB, component = value / 127.5 - 1
  pascal-context/trainval/<id>.mat    459-class ids, key `LabelMap`; selects the pixels whose normals count
"""

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from ..tasks import PASCAL_TASKS
from .decode import READERS, Size, check_readers
from .folder import DenseFolder


SPLITS = ("train", "val")

# Folders and suffixes of the files that each column is read from.
_PLACES = {
    "image": [("JPEGImages", ".jpg")],
    "semseg": [("semseg/VOC12", ".png"), ("semseg/pascal-context", ".png")],  # the second only replaces the first
    "human_parts": [("human_parts", ".mat")],
    "saliency": [("sal_distill", ".png")],
    "normals": [("normals_distill", ".png"), ("pascal-context/trainval", ".mat")],
}


class PascalArchive(DenseFolder):
    """A PASCAL_MT folder.

    Args:
        data_dir: Folder with `ImageSets`, `JPEGImages` and the labels.

    Raises:
        FileNotFoundError: `data_dir` has no `ImageSets/Context`.
    """

    image_formats = ("JPEG",)

    def _check_root(self) -> None:
        if not (self.root / "ImageSets" / "Context").is_dir():
            raise FileNotFoundError(
                f"{self.root}: no folder ImageSets/Context in it, so it is no PASCAL_MT archive. Give the folder that "
                "holds ImageSets, JPEGImages and the labels."
            )

    def choose_tasks(self, tasks: Sequence[str]) -> tuple[str, ...]:
        """Returns the names of the tasks in the order of `PASCAL_TASKS`.

        Raises:
            ValueError: A task is unknown, or there is none.
            ModuleNotFoundError: The files of a task need SciPy, which is not installed.
        """
        tasks = check_tasks(tasks)
        check_readers(tasks)
        return tasks

    def find_list(self, split: str) -> Path:
        """Finds the file that lists a split; ValueError for an unknown split, FileNotFoundError for a missing file."""
        if split not in SPLITS:
            raise ValueError(f"Unknown split {split!r}; PASCAL_MT has {', '.join(SPLITS)}.")
        path = self.root / "ImageSets" / "Context" / f"{split}.txt"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file. Restore it from the archive, or leave out the split.")
        return path

    def is_id(self, line: str) -> bool:
        """Extends `DenseFolder.is_id`: all files lie directly in their folders."""
        return super().is_id(line) and "/" not in line

    def paths(self, image_id: str, column: str) -> tuple[Path, ...]:
        """Finds the files that `column` (`image` or a task) of an image is read from.

        Raises:
            FileNotFoundError: A file is missing.
        """
        paths = tuple(self.root / folder / f"{image_id}{suffix}" for folder, suffix in _PLACES[column])
        if column == "semseg":
            paths = paths[:1] if paths[0].is_file() else paths[1:]
        missing = [str(path) for path in paths if not path.is_file()]
        if missing:
            also = " (nor in semseg/VOC12)" if column == "semseg" else ""
            raise FileNotFoundError(
                f"{', '.join(missing)}: no such file{also}. Restore it from the archive, or leave out the task that "
                "needs it."
            )
        return paths

    def read_label(self, image_id: str, task: str, size: Size | None) -> np.ndarray:
        """Reads a label as uint8: class ids, saliency, or normals, which are black where they do not count."""
        return READERS[task](*self.paths(image_id, task), size)


def check_tasks(tasks: Sequence[str]) -> tuple[str, ...]:
    """Returns `tasks` in the order of `PASCAL_TASKS`; ValueError if a task is unknown or there is none."""
    is_list = isinstance(tasks, Collection) and not isinstance(tasks, str)
    unknown = [task for task in tasks if task not in PASCAL_TASKS] if is_list else [tasks]
    if unknown or not tasks:
        found = f"Unknown tasks {unknown}" if unknown else "No task"
        raise ValueError(f"{found}; give a list with one or more of {', '.join(PASCAL_TASKS)}.")
    return tuple(task for task in PASCAL_TASKS if task in tasks)
