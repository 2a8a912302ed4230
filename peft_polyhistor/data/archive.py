# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Reads the PASCAL-Context multi-task archive (PASCAL_MT).

PASCAL_MT/
  ImageSets/Context/{train,val}.txt   one picture id a line
  JPEGImages/<id>.jpg
  semseg/VOC12/<id>.png               where it exists, else semseg/pascal-context/<id>.png
  human_parts/<id>.mat                PASCAL-Part annotation, key `anno`
  sal_distill/<id>.png                8-bit gray
  normals_distill/<id>.png            RGB, component = value / 127.5 - 1
  pascal-context/trainval/<id>.mat    459-class ids, key `LabelMap`; says where normals count
"""

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from ..tasks import PASCAL_TASKS
from .decode import READERS, Size, check_readers
from .folder import DenseFolder


SPLITS = ("train", "val")

# Folder and suffix of the files of each column.
_PLACES = {
    "image": [("JPEGImages", ".jpg")],
    "semseg": [("semseg/VOC12", ".png"), ("semseg/pascal-context", ".png")],  # the second stands in for the first
    "human_parts": [("human_parts", ".mat")],
    "saliency": [("sal_distill", ".png")],
    "normals": [("normals_distill", ".png"), ("pascal-context/trainval", ".mat")],
}


class PascalArchive(DenseFolder):
    """One PASCAL_MT folder.

    Args:
        data_dir: The folder that holds `ImageSets`, `JPEGImages` and the labels.

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
        """The names of tasks, in the order of `PASCAL_TASKS`.

        Raises:
            ValueError: One is unknown, or there is none.
            ModuleNotFoundError: The files of one need SciPy, which is not installed.
        """
        tasks = check_tasks(tasks)
        check_readers(tasks)
        return tasks

    def find_list(self, split: str) -> Path:
        """The file that lists a split."""
        if split not in SPLITS:
            raise ValueError(f"Unknown split {split!r}; PASCAL_MT has {', '.join(SPLITS)}.")
        path = self.root / "ImageSets" / "Context" / f"{split}.txt"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file. Restore it from the archive, or leave out the split.")
        return path

    def is_id(self, line: str) -> bool:
        """As in `DenseFolder`; the files lie in no folders below."""
        return super().is_id(line) and "/" not in line

    def paths(self, image_id: str, column: str) -> tuple[Path, ...]:
        """The files that `column` (`image` or a task) of a picture is read from; all of them exist.

        Raises:
            FileNotFoundError: One of them is missing.
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
        """A task's label: class ids, saliency, or normals that are black where none count; uint8.

        Args:
            image_id: Picture id.
            task: One of `PASCAL_TASKS`.
            size: (width, height) the label must have, in pixels; None if the picture's is not known.
        """
        return READERS[task](*self.paths(image_id, task), size)


def check_tasks(tasks: Sequence[str]) -> tuple[str, ...]:
    """`tasks` in the order of `PASCAL_TASKS`; ValueError if one is unknown or there is none."""
    is_list = isinstance(tasks, Collection) and not isinstance(tasks, str)
    unknown = [task for task in tasks if task not in PASCAL_TASKS] if is_list else [tasks]
    if unknown or not tasks:
        found = f"Unknown tasks {unknown}" if unknown else "No task"
        raise ValueError(f"{found}; give a list with one or more of {', '.join(PASCAL_TASKS)}.")
    return tuple(task for task in PASCAL_TASKS if task in tasks)
