# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Reads the PASCAL-Context multi-task archive (PASCAL_MT), one picture at a time.

    PASCAL_MT/
      ImageSets/Context/{train,val}.txt   one picture id a line
      JPEGImages/<id>.jpg
      semseg/VOC12/<id>.png               where it exists, else semseg/pascal-context/<id>.png
      human_parts/<id>.mat                PASCAL-Part annotation, key `anno`
      sal_distill/<id>.png                8-bit gray
      normals_distill/<id>.png            RGB, component = value / 127.5 - 1
      pascal-context/trainval/<id>.mat    459-class ids, key `LabelMap`; says where normals count

The loader and the checker both read through `PascalArchive`, so what one accepts the other accepts. Nothing is ever
written into the archive. Every fault is a ValueError or FileNotFoundError of one line: file, finding, remedy.
"""

import os
from collections import Counter
from collections.abc import Collection, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from .decode import READERS, Size, is_turned, open_picture, read_bytes


DENSE_TASKS = ("semseg", "human_parts", "saliency", "normals")
SPLITS = ("train", "val")

_LONGEST_ID = 200  # bytes; the names of files may have 255

# What reading an archive raises.
FAULTS = (OSError, ValueError)

# Folder and suffix of the files of each column.
_PLACES = {
    "image": [("JPEGImages", ".jpg")],
    "semseg": [("semseg/VOC12", ".png"), ("semseg/pascal-context", ".png")],  # the second stands in for the first
    "human_parts": [("human_parts", ".mat")],
    "saliency": [("sal_distill", ".png")],
    "normals": [("normals_distill", ".png"), ("pascal-context/trainval", ".mat")],
}


class PascalArchive:
    """One PASCAL_MT folder.

    Args:
        data_dir: The folder that holds `ImageSets`, `JPEGImages` and the labels.

    Raises:
        FileNotFoundError: `data_dir` has no `ImageSets/Context`.
    """

    def __init__(self, data_dir: str | os.PathLike[str]):
        self.root = Path(os.path.abspath(os.path.expanduser(data_dir)))
        if not (self.root / "ImageSets" / "Context").is_dir():
            raise FileNotFoundError(
                f"{self.root}: no folder ImageSets/Context in it, so it is no PASCAL_MT archive. Give the folder that "
                "holds ImageSets, JPEGImages and the labels."
            )

    def read_lines(self, split: str) -> list[str]:
        """The picture ids of a split as its file lists them, faults and all."""
        if split not in SPLITS:
            raise ValueError(f"Unknown split {split!r}; PASCAL_MT has {', '.join(SPLITS)}.")
        path = self.root / "ImageSets" / "Context" / f"{split}.txt"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file. Restore it from the archive, or leave out the split.")
        lines = read_bytes(path).decode("utf-8", errors="replace").splitlines()
        return [line.strip() for line in lines if line.strip()]

    def check_lines(self, lines: Sequence[str], split: str) -> None:
        """ValueError if a split's list is empty, names an id twice or what is no id."""
        path = self.root / "ImageSets" / "Context" / f"{split}.txt"
        if not lines:
            raise ValueError(f"{path}: found no picture id. Restore the file: one id a line, such as 2008_000002.")
        twice = [image_id for image_id, count in Counter(lines).items() if count > 1]
        if twice:
            raise ValueError(f"{path}: found ids listed more than once: {', '.join(twice)}. Keep one line for each.")
        wrong = [line for line in lines if not is_id(line)]
        if wrong:
            raise ValueError(
                f"{path}: found {', '.join(map(repr, wrong[:3]))}, which cannot be picture ids: those are names of "
                "files, without folder and suffix. Restore the list from the archive."
            )

    def read_ids(self, split: str) -> list[str]:
        """The picture ids of a split.

        Raises:
            FileNotFoundError: The list is missing.
            ValueError: The split is unknown, or its list is empty, names an id twice or what is no id.
        """
        lines = self.read_lines(split)
        self.check_lines(lines, split)
        return lines

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

    def read_image(self, image_id: str) -> tuple[bytes, Size]:
        """A picture's JPEG bytes and its size in stored orientation.

        The bytes are the file's own, except that a picture with an EXIF orientation loses its metadata: `datasets`
        turns such pictures on decoding, and the labels are drawn on the stored pixels.
        """
        (path,) = self.paths(image_id, "image")
        data = read_bytes(path)
        image = open_picture(path, data, "JPEG")
        if is_turned(image):
            data = _strip_metadata(data)
            bare = open_picture(path, data, "JPEG")
            if is_turned(bare) or bare.size != image.size:
                raise ValueError(f"{path}: found metadata that cannot be taken off. Save it without, as it is stored.")
        return data, image.size

    def read_label(self, image_id: str, task: str, size: Size | None) -> np.ndarray:
        """A task's label: class ids, saliency, or normals that are black where none count; uint8.

        Args:
            image_id: Picture id.
            task: One of `DENSE_TASKS`.
            size: (width, height) the label must have, in pixels; None if the picture's is not known.
        """
        return READERS[task](*self.paths(image_id, task), size)

    def read(self, image_id: str, tasks: Sequence[str]) -> dict[str, bytes]:
        """Picture and labels as encoded bytes by column.

        Raises:
            FileNotFoundError: A file of `tasks` is missing.
            ValueError: A file is damaged, of another size than the picture, or out of range.
        """
        image, size = self.read_image(image_id)
        return {"image": image} | {task: _encode_png(self.read_label(image_id, task, size)) for task in tasks}


def check_tasks(tasks: Sequence[str]) -> tuple[str, ...]:
    """`tasks` in the order of `DENSE_TASKS`; ValueError if one is unknown or there is none."""
    is_list = isinstance(tasks, Collection) and not isinstance(tasks, str)
    unknown = [task for task in tasks if task not in DENSE_TASKS] if is_list else [tasks]
    if unknown or not tasks:
        found = f"Unknown tasks {unknown}" if unknown else "No task"
        raise ValueError(f"{found}; give a list with one or more of {', '.join(DENSE_TASKS)}.")
    return tuple(task for task in DENSE_TASKS if task in tasks)


def _encode_png(label: np.ndarray) -> bytes:
    buffer = BytesIO()
    Image.fromarray(label).save(buffer, "PNG")
    return buffer.getvalue()


def is_id(line: str) -> bool:
    """Whether a line can be a picture id, by which no file outside of the archive's folders is read."""
    return line.isprintable() and not {"/", "\\"} & set(line) and len(line.encode()) <= _LONGEST_ID


def _strip_metadata(jpeg: bytes) -> bytes:
    """A JPEG without its APP1 segments (EXIF and XMP); the compressed pixels stay as they are."""
    kept, position = [jpeg[:2]], 2
    while jpeg[position : position + 1] == b"\xff" and jpeg[position + 1] != 0xDA:  # up to the start of the scan
        if jpeg[position + 1] == 0xFF:  # a fill byte
            position += 1
            continue
        end = position + 2 + int.from_bytes(jpeg[position + 2 : position + 4], "big")
        if jpeg[position + 1] != 0xE1:
            kept.append(jpeg[position:end])
        position = end
    return b"".join(kept) + jpeg[position:]
