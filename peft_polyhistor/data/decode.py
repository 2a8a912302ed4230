# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Decodes the files of a PASCAL_MT archive into uint8 arrays.

A fault raises a ValueError of one line, which names the file, the finding, and the allowed values or the remedy.
"""

from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from ..extras import needs_extra
from ..tasks import TASKS, Task


NUM_CONTEXT_IDS = 460  # the 459 classes of PASCAL-Context, and 0 for none
PERSON = 15  # class index in VOC; the task uses the parts of persons only

# Parts of a person by their names in PASCAL-Part (Chen et al. 2014, part2ind.m), grouped as in ASTMT
# (arXiv:1904.08918).
PART_GROUPS = (
    (1, "head hair lear rear leye reye lebrow rebrow nose mouth"),
    (2, "torso neck"),
    (3, "luarm ruarm"),
    (4, "llarm rlarm lhand rhand"),
    (5, "luleg ruleg"),
    (6, "llleg rlleg lfoot rfoot"),
)
PART_CLASSES = {name: part for part, names in PART_GROUPS for name in names.split()}

# The classes that PASCAL-Context shares with NYU, and tvmonitor. The distilled normals count on their pixels only
# (ASTMT, arXiv:1904.08918).
NORMALS_VALID_IDS = (
    3, 4, 6, 9, 10, 11, 13, 15, 17, 18, 22, 23, 29, 30, 33, 34, 36, 37, 38, 39, 41, 43, 46, 49, 50, 51, 53, 55, 56, 59,
    61, 62, 65, 66, 68, 69, 72, 73, 78, 83, 84, 85, 87, 88, 95, 96, 101, 104, 105, 107, 111, 113, 115, 122, 124, 135,
    141, 142, 143, 146, 150, 154, 157, 158, 159, 165, 172, 174, 181, 183, 184, 191, 193, 195, 197, 199, 202, 213, 215,
    216, 219, 220, 223, 225, 228, 230, 232, 233, 238, 239, 242, 243, 246, 250, 251, 252, 255, 260, 261, 263, 269, 272,
    273, 275, 281, 283, 284, 285, 286, 287, 288, 290, 291, 292, 293, 295, 304, 307, 309, 310, 314, 315, 319, 323, 329,
    330, 331, 336, 342, 345, 349, 350, 351, 352, 355, 357, 368, 370, 371, 374, 379, 380, 383, 384, 397, 401, 403, 405,
    407, 408, 411, 412, 413, 414, 417, 419, 421, 423, 427, 429, 430, 432, 440, 441, 442, 443, 444, 446, 454, 457,
)  # fmt: skip

# Larger files are not decoded. The images of PASCAL have at most 500 x 500 pixels and 200 KB.
MAX_PIXELS = 2**26
MAX_FILE_SIZE = 2**28  # bytes

MATLAB_TASKS = ("human_parts", "normals")  # SciPy reads their files

Size = tuple[int, int]  # (width, height) in pixels, as Pillow orders them


def read_bytes(path: Path) -> bytes:
    """Reads a file; ValueError if it is larger than `MAX_FILE_SIZE`."""
    with path.open("rb") as file:
        data = file.read(MAX_FILE_SIZE + 1)  # a link to a device reports no size
    if len(data) > MAX_FILE_SIZE:
        raise ValueError(f"{path}: found more than the allowed {MAX_FILE_SIZE} bytes. Restore it.")
    return data


def decode_image(path: Path, data: bytes, kinds: Sequence[str]) -> Image.Image:
    """Decodes `data`, the bytes of `path`, in one of these formats of Pillow."""
    allowed = f"allowed is {' or '.join(kinds)}"
    try:
        # For some formats Pillow runs other programs, so the list is closed. The bytes come from memory, as Pillow
        # leaves a damaged file open.
        image = Image.open(BytesIO(data), formats=list({"JPEG", "PNG", *kinds}))
        is_small = image.width * image.height <= MAX_PIXELS
        is_turned_tiff = image.format == "TIFF" and is_turned(image)  # `load` turns it, and drops the orientation
        if is_small:
            image.load()
    except UnidentifiedImageError as error:
        raise ValueError(f"{path}: found no image in it, {allowed}. Restore it.") from error
    except Exception as error:
        raise ValueError(f"{path}: found a damaged image ({error}). Restore it.") from error
    if image.format not in (*kinds, "MPO" if "JPEG" in kinds else ""):  # MPO: a JPEG with further images behind it
        raise ValueError(f"{path}: found a {image.format} file, {allowed}. Restore it.")
    if not is_small:
        raise ValueError(f"{path}: found {image.width} x {image.height} pixels, allowed are {MAX_PIXELS}. Restore it.")
    if is_turned_tiff:
        raise ValueError(
            f"{path}: found a TIFF with an orientation, by which some programs turn it and others do not. Save image "
            "and labels upright, without an orientation."
        )
    return image


def is_turned(image: Image.Image) -> bool:
    """Tells whether the EXIF orientation of an image turns or mirrors it, or cannot be read."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation) in range(2, 9)  # 1, and unknown values, do nothing
    except Exception:
        return True


def check_readers(tasks: Sequence[str]) -> None:
    """Raises ModuleNotFoundError if the files of one of `tasks` need SciPy and it is not installed."""
    if set(tasks) & set(MATLAB_TASKS):
        with needs_extra("train"):
            import scipy.io  # noqa: F401


def read_stored(path: Path, row: Task, size: Size | None, kinds: Sequence[str] = ("PNG",)) -> np.ndarray:
    """Reads a label file, an image or a NumPy array.

    Raises:
        ValueError: The file is damaged, or the task does not allow such a label.
    """
    data = read_bytes(path)
    stored = _read_array(path, data) if path.suffix == ".npy" else decode_image(path, data, kinds)
    try:
        image = row.to_image(stored)
        row.check_stored(image, size)
        row.read(image)
    except ValueError as error:
        raise ValueError(f"{path}: {error}.") from error
    return np.asarray(image.convert("L") if image.mode == "1" else image)


def _read_array(path: Path, data: bytes) -> np.ndarray:
    try:
        return np.lib.format.read_array(BytesIO(data), allow_pickle=False)
    except Exception as error:
        raise ValueError(f"{path}: found a damaged array ({error}). Restore it.") from error


def _check_size(path: Path, found: Size, size: Size | None, what: str = "") -> None:
    if size is not None and found != size:
        raise ValueError(
            f"{path}: found {what}{found[0]} x {found[1]} pixels, its image has {size[0]} x {size[1]}. Restore both "
            "from the same archive."
        )


def _check_values(path: Path, values: np.ndarray, valid: np.ndarray, allowed: str) -> None:
    if not valid.all():
        found = ", ".join(map(str, np.unique(values[~valid])[:8]))
        raise ValueError(f"{path}: found the values {found}, allowed are {allowed}. Restore it from the archive.")


def _read_normals(path: Path, context_path: Path, size: Size | None) -> np.ndarray:
    normals = read_stored(path, TASKS["normals"], size)
    context = _load_mat(context_path, "LabelMap", _matrix)
    _check_size(context_path, context.shape[::-1], normals.shape[1::-1], "a LabelMap of ")
    valid = (context >= 0) & (context < NUM_CONTEXT_IDS) & (context % 1 == 0)
    _check_values(context_path, context, valid, f"whole numbers from 0 to {NUM_CONTEXT_IDS - 1}")
    return np.where(np.isin(context, NORMALS_VALID_IDS)[..., None], normals, np.uint8(0))


def _read_human_parts(path: Path, size: Size | None) -> np.ndarray:
    parts = _load_mat(path, "anno", _person_parts)
    unknown = sorted({name for name, _ in parts} - PART_CLASSES.keys())
    if unknown:
        raise ValueError(f"{path}: found parts of a person named {unknown}, allowed are {sorted(PART_CLASSES)}.")
    for name, mask in parts:
        size = size or mask.shape[::-1]
        _check_size(path, mask.shape[::-1], size, f"a mask of {name!r} of ")
    width, height = size or (1, 1)
    classes = np.zeros((height, width), np.uint8)
    for name, mask in parts:  # in file order: a later part covers an earlier one
        classes[mask] = PART_CLASSES[name]
    return classes


def _person_parts(anno: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Reads the names and masks of all parts of all persons, in file order."""
    _, objects = anno.item()
    # The fields of an object are class, class_ind, mask and parts. An object without parts has an empty matrix there.
    persons = [item for item in objects.flat if item[1].item() == PERSON]
    return [(_text(name), _matrix(mask).astype(bool)) for item in persons for name, mask in item[3].flat]


def _text(value: np.ndarray) -> str:
    if value.dtype.kind != "U":
        raise ValueError("no text")
    return value.item()


def _matrix(value: np.ndarray) -> np.ndarray:
    if value.ndim != 2 or value.dtype.kind not in "biuf":
        raise ValueError("no matrix of numbers")
    return value


def _load_mat(path: Path, key: str, extract: Callable[[np.ndarray], Any]) -> Any:
    """Applies `extract` to the variable `key` of a MATLAB file."""
    check_readers(MATLAB_TASKS)
    from scipy.io import loadmat

    content = BytesIO(read_bytes(path))
    try:
        variables = loadmat(content, variable_names=[key])
    except Exception as error:
        raise ValueError(f"{path}: found a damaged MATLAB file ({error}). Restore it from the archive.") from error
    if key not in variables:
        raise ValueError(f"{path}: found no variable {key!r} in it. Restore it from the archive.")
    try:
        return extract(variables[key])
    except Exception as error:
        raise ValueError(
            f"{path}: found another structure under {key!r} than the archive's ({error}). Restore it."
        ) from error


READERS: dict[str, Callable[..., np.ndarray]] = {
    "semseg": lambda path, size: read_stored(path, TASKS["semseg"], size),
    "human_parts": _read_human_parts,
    "saliency": lambda path, size: read_stored(path, TASKS["saliency"], size),
    "normals": _read_normals,
}
