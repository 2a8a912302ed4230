# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Reads images and dense labels from folders, one file each.

    FOLDER/
      images/<id>.jpg      or another format of Pillow
      <task>/<id>.png      one folder for each task, by its name; .npy too. A missing file is a missing label
      train.txt, val.txt   one id a line, here or in splits, gt_sets or ImageSets; or none, where images lie in
                           images/train and images/val or below, and labels likewise

A layout gives other names: `{"image": "photos", "lanes": "masks/lanes", "train": "lists/first.txt"}`. A star in the
name of a column stands for the id, where files have more to their names: `{"lanes": "masks/*_lanes.png"}`.

The loader and the checker both read through `DenseFolder`, so what one accepts the other accepts. Nothing is ever
written into the folder. Every fault is a ValueError or FileNotFoundError of one line: file, finding, remedy.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from ..tasks import TASKS, get_tasks
from .decode import Size, is_turned, open_picture, read_bytes, read_stored


FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP")
_LOWER = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp")
IMAGE_SUFFIXES = (*_LOWER, *(suffix.upper() for suffix in _LOWER))
SUFFIXES = (*IMAGE_SUFFIXES, ".npy")
LISTS = ("{}.txt", "splits/{}.txt", "gt_sets/{}.txt", "ImageSets/{}.txt")

_LONGEST_ID = 200  # bytes; the names of files may have 255

# What reading a folder raises.
FAULTS = (OSError, ValueError)


class DenseFolder:
    """One folder of images and labels.

    Args:
        data_dir: The folder.
        layout: Folders of `image` and the tasks, and list files of the splits, where they have other names.

    Raises:
        FileNotFoundError: There is no folder of images.
    """

    image_formats: tuple[str, ...] = FORMATS

    def __init__(self, data_dir: str | os.PathLike[str], layout: Mapping[str, str] | None = None):
        self.root = Path(os.path.abspath(os.path.expanduser(data_dir)))
        self.layout = dict(layout or {})
        self._check_root()

    def _check_root(self) -> None:
        folder = self.root / self._split_name("image")[0]
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder. Put the images there, or name theirs as `image`.")

    def _split_name(self, column: str) -> tuple[str, tuple[str, ...]]:
        """The folder of a column, and the endings that may follow the id in the names of its files."""
        name = self.layout.get(column, "images" if column == "image" else column)
        folder, star, end = name.partition("*")
        return folder, (end,) if star else IMAGE_SUFFIXES if column == "image" else SUFFIXES

    def choose_tasks(self, tasks: Sequence[str]) -> tuple[str, ...]:
        """The names of tasks.

        Raises:
            ValueError: One is no row of `TASKS`.
            FileNotFoundError: There is no folder of its labels.
        """
        names = tuple(task.name for task in get_tasks(tasks))
        for folder in (self.root / self._split_name(name)[0] for name in names):
            if not folder.is_dir():
                raise FileNotFoundError(
                    f"{folder}: no such folder. Put labels there, name theirs in the layout, or leave the task out."
                )
        return names

    def find_list(self, split: str) -> Path:
        """The file that lists a split, or the folder that holds its images; FileNotFoundError if there is neither."""
        names = [self.layout[split]] if split in self.layout else [name.format(split) for name in LISTS]
        places = [*(self.root / name for name in names), self.root / self._split_name("image")[0] / split]
        for place in places:
            if place.exists():
                return place
        raise FileNotFoundError(
            f"{places[0]}: no such file, nor {', '.join(map(str, places[1:]))}. List the ids of the split there, one "
            f"a line, or name the list as `{split}`."
        )

    def read_lines(self, split: str) -> list[str]:
        """The image ids of a split as its file lists them, faults and all."""
        place = self.find_list(split)
        if place.is_dir():
            folder, ends = self._split_name("image")
            names = [path.relative_to(self.root / folder).as_posix() for path in place.rglob("*") if path.is_file()]
            return sorted({name.removesuffix(end) for name in names for end in ends if name.endswith(end)})
        lines = read_bytes(place).decode("utf-8", errors="replace").splitlines()
        return [line.strip() for line in lines if line.strip()]

    def check_lines(self, lines: Sequence[str], split: str) -> None:
        """ValueError if a split's list is empty, names an id twice or what is no id."""
        path = self.find_list(split)
        if not lines:
            raise ValueError(f"{path}: found no picture id. Restore the file: one id a line, such as 2008_000002.")
        twice = [image_id for image_id, count in Counter(lines).items() if count > 1]
        if twice:
            raise ValueError(f"{path}: found ids listed more than once: {', '.join(twice)}. Keep one line for each.")
        wrong = [line for line in lines if not self.is_id(line)]
        if wrong:
            raise ValueError(
                f"{path}: found {', '.join(map(repr, wrong[:3]))}, which cannot be picture ids: those are names of "
                "files, without the folder of all images and without suffix. Restore the list."
            )

    def is_id(self, line: str) -> bool:
        """Whether a line can be an image id, by which no file outside of the folders is read."""
        parts = PurePosixPath(line).parts
        is_inside = "\\" not in line and bool(parts) and not {"/", "..", "."} & set(parts)
        return is_inside and line.isprintable() and len(line.encode()) <= _LONGEST_ID

    def read_ids(self, split: str) -> list[str]:
        """The image ids of a split.

        Raises:
            FileNotFoundError: The list is missing.
            ValueError: The split is unknown, or its list is empty, names an id twice or what is no id.
        """
        lines = self.read_lines(split)
        self.check_lines(lines, split)
        return lines

    def paths(self, image_id: str, column: str) -> tuple[Path, ...]:
        """The files that `column` (`image` or a task) of an image is read from; none where a label is missing.

        Raises:
            FileNotFoundError: The image is missing.
            ValueError: There are several.
        """
        folder, ends = self._split_name(column)
        start = self.root / folder / image_id
        paths = [path for path in (Path(f"{start}{end}") for end in ends) if path.is_file()]
        # One file has several of these names where the system does not tell capitals from small letters.
        found = tuple({path.stat().st_ino: path for path in reversed(paths)}.values())
        if len(found) > 1:
            raise ValueError(f"{found[0]}: found {len(found)} files of this name, such as {found[1]}. Keep one.")
        if not found and column == "image":
            raise FileNotFoundError(
                f"{start}: no such file with an ending of {', '.join(ends)}. Take it off the list."
            )
        return found

    def read_image(self, image_id: str) -> tuple[bytes, Size]:
        """An image's encoded bytes and its size in stored orientation.

        The bytes are the file's own, except that a picture with an EXIF orientation loses its metadata: `datasets`
        turns such pictures on decoding, and the labels are drawn on the stored pixels.
        """
        (path,) = self.paths(image_id, "image")
        data = read_bytes(path)
        image = open_picture(path, data, self.image_formats)
        if is_turned(image):
            data = _strip_metadata(data) if image.format in ("JPEG", "MPO") else _encode(image)
            bare = open_picture(path, data, self.image_formats)
            if is_turned(bare) or bare.size != image.size:
                raise ValueError(f"{path}: found metadata that cannot be taken off. Save it without, as it is stored.")
        return data, image.size

    def read_label(self, image_id: str, task: str, size: Size | None) -> np.ndarray | None:
        """A task's label as it is stored, or None where it is missing.

        Args:
            image_id: Image id.
            task: A row of `TASKS`.
            size: (width, height) the label must have, in pixels; None if the image's is not known.
        """
        for path in self.paths(image_id, task):
            return read_stored(path, TASKS[task], size, FORMATS)
        return None

    def read(self, image_id: str, tasks: Sequence[str]) -> dict[str, bytes | None]:
        """Image and labels as encoded bytes by column, None for a missing label.

        Raises:
            FileNotFoundError: A file of `tasks` is missing that must be there.
            ValueError: A file is damaged, of another size than the image, or out of range.
        """
        image, size = self.read_image(image_id)
        labels = {task: self.read_label(image_id, task, size) for task in tasks}
        encoded = {
            task: None if label is None else _encode(TASKS[task].to_picture(label)) for task, label in labels.items()
        }
        return {"image": image} | encoded


def _encode(picture: Image.Image) -> bytes:
    """A picture in a format that loses nothing, and without metadata."""
    buffer = BytesIO()
    picture.info.clear()
    picture.getexif().clear()
    picture.save(buffer, "TIFF" if picture.mode == "F" else "PNG")
    return buffer.getvalue()


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
