# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Reads images and dense labels from folders with one file per image and per label.

    FOLDER/
      images/<id>.jpg      JPEG, PNG, TIFF, BMP or WebP
      <task>/<id>.png      a folder named after each task, with image files or .npy; a missing file is a missing label
      train.txt, val.txt   one id per line, here or in splits, gt_sets or ImageSets. Without lists, the splits are the
                           images in images/train and images/val, and the labels lie in <task>/train and <task>/val

A layout gives other names: `{"image": "photos", "lanes": "masks/lanes", "train": "lists/first.txt"}`. A star stands
for the id if the file names go on after it: `{"lanes": "masks/*_lanes.png"}`.

The loader and the checker both read through `DenseFolder`, so they accept the same folders. Nothing is ever written
into the folder. A fault raises a ValueError or FileNotFoundError of one line: file, finding, remedy.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from ..checks import check_image, find_repeated
from ..tasks import TASKS, get_tasks
from ..tasks.table import CarriesTasks
from .decode import Size, decode_image, is_turned, read_bytes, read_stored


FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP")
_LOWER = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp")
IMAGE_SUFFIXES = (*_LOWER, *(suffix.upper() for suffix in _LOWER))
SUFFIXES = (*IMAGE_SUFFIXES, ".npy")
LISTS = ("{}.txt", "splits/{}.txt", "gt_sets/{}.txt", "ImageSets/{}.txt")

_LONGEST_ID = 200  # bytes; file names may have 255

FAULTS = (OSError, ValueError)  # raised for a fault of a folder


def split_star(name: str) -> tuple[str, str | None]:
    """Splits a name of a layout into the folder and the text after the star; `None` if there is no star.

    Raises:
        ValueError: A file name has text before the star, or there are several stars.
    """
    folder, star, end = name.partition("*")
    if (star and folder[-1:] not in ("", "/", os.sep)) or "*" in end:
        raise ValueError(
            f"The layout has {name!r}, where file names must be one star, which stands for the id, and the text after "
            "it, such as 'masks/*_mask.png'. Rename the files, so that their names begin with the id."
        )
    return folder, end if star else None


class DenseFolder(CarriesTasks):
    """A folder of images and labels.

    Args:
        data_dir: Path of the folder.
        layout: Folders of `image` and of tasks, and list files of splits, if they have other names.

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
            raise FileNotFoundError(
                f"{folder}: no such folder. Put the images there, or name their folder as `image` in the layout."
            )

    def _split_name(self, column: str) -> tuple[str, tuple[str, ...]]:
        """Returns the folder of a column, and the endings that may follow the id in its file names."""
        folder, end = split_star(self.layout.get(column, "images" if column == "image" else column))
        return folder, (end,) if end is not None else IMAGE_SUFFIXES if column == "image" else SUFFIXES

    def choose_tasks(self, tasks: Sequence[str]) -> tuple[str, ...]:
        """Returns the names of the tasks.

        Raises:
            ValueError: A task is no row of `TASKS`.
            FileNotFoundError: A task has no folder of labels.
        """
        names = tuple(task.name for task in get_tasks(tasks))
        for folder in (self.root / self._split_name(name)[0] for name in names):
            if not folder.is_dir():
                raise FileNotFoundError(
                    f"{folder}: no such folder. Put the labels there, name their folder in the layout, or leave the "
                    "task out."
                )
        return names

    def find_list(self, split: str) -> Path:
        """Finds the list file of a split or the folder of its images; FileNotFoundError if there is neither."""
        name = self.layout.get(split, split)
        folder = self.root / self._split_name("image")[0]
        places = [*(self.root / place.format(name) for place in LISTS), folder / name]
        if split in self.layout:
            places.insert(0, self.root / name)
        for place in places:
            if place.is_file() or (place.is_dir() and (place == folder or folder in place.parents)):
                return place
        raise FileNotFoundError(
            f"{places[0]}: no such file, nor {', '.join(map(str, places[1:]))}. List the ids of the split there, one "
            f"per line, or name the list file as `{split}` in the layout."
        )

    def read_lines(self, split: str) -> list[str]:
        """Reads the image ids of a split without checking them; ValueError if its list is no text."""
        place = self.find_list(split)
        if place.is_dir():
            return sorted({line for name in self._list_files(place) if (line := self._to_id(name)) is not None})
        text = read_bytes(place).decode("utf-8-sig", errors="replace")
        if "\0" in text:
            raise ValueError(f"{place}: found no text in UTF-8. Save the list with this encoding, one id per line.")
        # One spelling of an id, such as that of `find`: ./0 and a//0
        return [PurePosixPath(line.strip()).as_posix() for line in text.splitlines() if line.strip()]

    def find_others(self, split: str) -> list[str]:
        """Lists the visible files in the folder of a split that are no images; none if a list or a star chooses."""
        place = self.find_list(split)
        if place.is_file() or "*" in self.layout.get("image", ""):
            return []
        return [name for name in self._list_files(place) if self._to_id(name) is None]

    def _list_files(self, place: Path) -> list[str]:
        """Lists the visible files below `place`, relative to the folder of the images, in order."""
        names = []
        for here, folders, files in os.walk(place, followlinks=True):
            # A link to a folder that the walk came through would lead in a circle.
            through = [path.resolve() for path in (Path(here), *Path(here).parents) if path.is_relative_to(place)]
            inner = {folder: Path(here, folder).resolve() for folder in folders if not folder.startswith(".")}
            folders[:] = [folder for folder, real in inner.items() if not _is_around(real, through)]
            names += [Path(here, file) for file in files if not file.startswith(".")]
        start = self.root / self._split_name("image")[0]
        return sorted(path.relative_to(start).as_posix() for path in names if path.is_file())

    def _to_id(self, name: str) -> str | None:
        """Returns the id of an image file, or `None` for a file with another ending."""
        return next((name.removesuffix(end) for end in self._split_name("image")[1] if name.endswith(end)), None)

    def check_lines(self, lines: Sequence[str], split: str) -> None:
        """Raises ValueError if the list of a split is empty, repeats an id, or has a line that is no id."""
        path = self.find_list(split)
        if not lines:
            raise ValueError(f"{path}: found no image id. Restore the file: one id per line, such as 2008_000002.")
        twice = find_repeated(lines)
        if twice:
            raise ValueError(f"{path}: found ids listed more than once: {', '.join(twice)}. Keep one line for each.")
        wrong = [line for line in lines if not self.is_id(line)]
        if wrong:
            raise ValueError(
                f"{path}: found {', '.join(map(repr, wrong[:3]))}, which cannot be image ids: an id is the name of an "
                "image file without the folder of the images and without suffix. Restore the list."
            )

    def is_id(self, line: str) -> bool:
        """Tells whether a line can be an image id. An id never leads to a file outside the folders."""
        parts = PurePosixPath(line).parts
        is_inside = "\\" not in line and bool(parts) and not {"/", "..", "."} & set(parts)
        return is_inside and line.isprintable() and len(line.encode()) <= _LONGEST_ID

    def read_ids(self, split: str) -> list[str]:
        """Reads the image ids of a split.

        Raises:
            FileNotFoundError: The list is missing.
            ValueError: The split is unknown; or its list is empty, repeats an id, or has a line that is no id.
        """
        lines = self.read_lines(split)
        self.check_lines(lines, split)
        return lines

    def paths(self, image_id: str, column: str) -> tuple[Path, ...]:
        """Finds the files that `column` (`image` or a task) of an image is read from; none if a label is missing.

        Raises:
            FileNotFoundError: The image is missing.
            ValueError: Several files could be meant.
        """
        folder, ends = self._split_name(column)
        start = self.root / folder / image_id
        paths = [path for path in (Path(f"{start}{end}") for end in ends) if path.is_file()]
        # On a case-insensitive file system, one file answers to several of these names.
        found = tuple({path.stat().st_ino: path for path in reversed(paths)}.values())
        if len(found) > 1:
            raise ValueError(f"{found[0]}: found {len(found)} files of this name, such as {found[1]}. Keep one.")
        if not found and column == "image":
            how = "Take it off the list"
            for name in (image_id, image_id.split()[0]):  # a file, or a file and that of its label
                if (self.root / folder / Path(name).name).is_file():
                    how = f"List an image without its suffix and the folder of the images: {Path(name).stem}"
            raise FileNotFoundError(f"{start}: no such file with an ending of {', '.join(ends)}. {how}.")
        return found

    def find_unlabeled(self, image_ids: Sequence[str], tasks: Sequence[str], split: str) -> list[str]:
        """Describes each task for which no image of a split has a label, with a place where one was looked for."""

        def has_label(image_id: str, task: str) -> bool:
            try:
                return bool(self.paths(image_id, task))
            except FAULTS:  # a label that is reported when it is read
                return True

        return [
            f"{self.root / self._split_name(task)[0] / image_ids[0]}: no such file with an ending of "
            f"{', '.join(self._split_name(task)[1])}, and no label of {task} for any other image of the split "
            f"{split!r}. Correct the layout or the names of the files, or leave the task out."
            for task in tasks
            if image_ids and not any(has_label(image_id, task) for image_id in image_ids)
        ]

    def read_image(self, image_id: str) -> tuple[bytes, Size]:
        """Reads the encoded bytes of an image, and its size as stored.

        The bytes are those of the file, but an image with an EXIF orientation loses its metadata: `datasets` would
        turn it on decoding, while its labels refer to the stored pixels.
        """
        (path,) = self.paths(image_id, "image")
        data = read_bytes(path)
        image = decode_image(path, data, self.image_formats)
        check_image(f"{path}: the image", image)
        if is_turned(image):
            data = _strip_metadata(data) if image.format in ("JPEG", "MPO") else _encode(image)
            bare = decode_image(path, data, self.image_formats)
            if is_turned(bare) or bare.size != image.size:
                raise ValueError(f"{path}: found metadata that cannot be removed. Save the image without metadata.")
        return data, image.size

    def read_label(self, image_id: str, task: str, size: Size | None) -> np.ndarray | None:
        """Reads a label as it is stored; `None` if it is missing.

        Args:
            image_id: Id of the image.
            task: Row of `TASKS`.
            size: (width, height) that the label must have, in pixels; `None` if the size of the image is unknown.
        """
        for path in self.paths(image_id, task):
            return read_stored(path, TASKS[task], size, FORMATS)
        return None

    def read(self, image_id: str, tasks: Sequence[str]) -> dict[str, bytes | None]:
        """Reads image and labels as encoded bytes by column, `None` for a missing label.

        Raises:
            FileNotFoundError: The image or a mandatory label is missing.
            ValueError: A file is damaged, differs from the image in size, or holds values out of range.
        """
        image, size = self.read_image(image_id)
        labels = {task: self.read_label(image_id, task, size) for task in tasks}
        encoded = {
            task: None if label is None else _encode(TASKS[task].to_image(label)) for task, label in labels.items()
        }
        return {"image": image} | encoded


def _is_around(folder: Path, others: Iterable[Path]) -> bool:
    return any(other.is_relative_to(folder) for other in others)


def _encode(image: Image.Image) -> bytes:
    """Encodes an image without loss and without metadata."""
    buffer = BytesIO()
    image.info.clear()
    image.getexif().clear()
    image.save(buffer, "TIFF" if image.mode == "F" else "PNG")
    return buffer.getvalue()


def _strip_metadata(jpeg: bytes) -> bytes:
    """Removes the APP1 segments (EXIF and XMP) of a JPEG file; the compressed pixels stay unchanged."""
    kept, position = [jpeg[:2]], 2
    while jpeg[position : position + 1] == b"\xff" and jpeg[position + 1] != 0xDA:  # 0xDA starts the pixels
        if jpeg[position + 1] == 0xFF:  # a fill byte
            position += 1
            continue
        end = position + 2 + int.from_bytes(jpeg[position + 2 : position + 4], "big")
        if jpeg[position + 1] != 0xE1:
            kept.append(jpeg[position:end])
        position = end
    return b"".join(kept) + jpeg[position:]
