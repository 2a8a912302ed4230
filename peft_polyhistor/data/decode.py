# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Decodes the files of a PASCAL_MT archive into uint8 arrays, or says what is wrong with them.

A fault is a ValueError of one line: the file, what was found, what is allowed or what to do.
"""

from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from ..extras import needs_extra


IGNORE = 255  # unlabeled pixels in VOC
NUM_SEMSEG_CLASSES = 21  # VOC 2012, background included
NUM_CONTEXT_IDS = 460  # PASCAL-Context's 459 classes, and 0 for none
PERSON = 15  # VOC class index; only persons have their parts labelled

# PASCAL-Part's names of the parts of a person (Chen et al. 2014, part2ind.m), grouped as in ASTMT (arXiv:1904.08918).
PART_GROUPS = (
    (1, "head hair lear rear leye reye lebrow rebrow nose mouth"),
    (2, "torso neck"),
    (3, "luarm ruarm"),
    (4, "llarm rlarm lhand rhand"),
    (5, "luleg ruleg"),
    (6, "llleg rlleg lfoot rfoot"),
)
PART_CLASSES = {name: part for part, names in PART_GROUPS for name in names.split()}
NUM_PART_CLASSES = 1 + len(PART_GROUPS)  # background included

# Of the 459 classes, those that PASCAL-Context shares with NYU, and tvmonitor: only there do the distilled normals
# count (ASTMT, arXiv:1904.08918).
NORMALS_VALID_IDS = (
    3, 4, 6, 9, 10, 11, 13, 15, 17, 18, 22, 23, 29, 30, 33, 34, 36, 37, 38, 39, 41, 43, 46, 49, 50, 51, 53, 55, 56, 59,
    61, 62, 65, 66, 68, 69, 72, 73, 78, 83, 84, 85, 87, 88, 95, 96, 101, 104, 105, 107, 111, 113, 115, 122, 124, 135,
    141, 142, 143, 146, 150, 154, 157, 158, 159, 165, 172, 174, 181, 183, 184, 191, 193, 195, 197, 199, 202, 213, 215,
    216, 219, 220, 223, 225, 228, 230, 232, 233, 238, 239, 242, 243, 246, 250, 251, 252, 255, 260, 261, 263, 269, 272,
    273, 275, 281, 283, 284, 285, 286, 287, 288, 290, 291, 292, 293, 295, 304, 307, 309, 310, 314, 315, 319, 323, 329,
    330, 331, 336, 342, 345, 349, 350, 351, 352, 355, 357, 368, 370, 371, 374, 379, 380, 383, 384, 397, 401, 403, 405,
    407, 408, 411, 412, 413, 414, 417, 419, 421, 423, 427, 429, 430, 432, 440, 441, 442, 443, 444, 446, 454, 457,
)  # fmt: skip

# Far beyond PASCAL's pictures, which have up to 500 x 500 pixels and 200 KB: what is larger is not decoded.
MAX_PIXELS = 2**26
MAX_FILE_SIZE = 2**28  # bytes

MATLAB_TASKS = ("human_parts", "normals")  # whose files SciPy reads

# How far the length of a decoded normal may be from 1. Labels that are cut off to steps of 16 are off by up to
# sqrt(3) * 15 / 127.5 = 0.20, and averages of two normals, as at edges of resized files, by 0.25 at 83 degrees.
# Gray (128, 128, 128) has length 0.007, black and white 1.73.
NORMAL_TOLERANCE = 0.25
# (255 * component)^2 by stored value, as value / 127.5 - 1 = (2 * value - 255) / 255.
_SQUARES = np.square(2 * np.arange(256, dtype=np.int32) - 255)
_LIMITS = (255 * (1 - NORMAL_TOLERANCE)) ** 2, (255 * (1 + NORMAL_TOLERANCE)) ** 2

Size = tuple[int, int]  # (width, height) in pixels, as Pillow orders them


def read_bytes(path: Path) -> bytes:
    """The content of a file; ValueError if it is larger than `MAX_FILE_SIZE`."""
    with path.open("rb") as file:
        data = file.read(MAX_FILE_SIZE + 1)  # of a link to a device, the size says nothing
    if len(data) > MAX_FILE_SIZE:
        raise ValueError(f"{path}: found more than {MAX_FILE_SIZE} bytes, allowed are so many. Restore it.")
    return data


def open_picture(path: Path, data: bytes, kind: str) -> Image.Image:
    """The decoded picture of `data`, the bytes of a file that must be a `kind` of "JPEG" or "PNG"."""
    try:
        # Of all that Pillow opens, some formats run other programs. From memory: it leaves a damaged file open.
        image = Image.open(BytesIO(data), formats=["JPEG", "PNG"])
        is_small = image.width * image.height <= MAX_PIXELS
        if is_small:
            image.load()
    except UnidentifiedImageError as error:
        raise ValueError(f"{path}: found no picture in it, allowed is {kind}. Restore it from the archive.") from error
    except Exception as error:
        raise ValueError(f"{path}: found a damaged picture ({error}). Restore it from the archive.") from error
    if image.format not in (kind, "MPO" if kind == "JPEG" else kind):  # MPO: a JPEG with others behind it
        raise ValueError(f"{path}: found a {image.format} file, allowed is {kind}. Restore it from the archive.")
    if not is_small:
        raise ValueError(f"{path}: found {image.width} x {image.height} pixels, allowed are {MAX_PIXELS}. Restore it.")
    return image


def is_turned(image: Image.Image) -> bool:
    """Whether a picture's metadata turn it, or cannot be read."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    except Exception:
        return True


def least_foreground(label: Image.Image) -> int:
    """The least value of the foreground in a binary map: 1 where it holds 0 and 1 alone, else 128 (value / 255 > 0.5).

    Raises:
        ValueError: It holds 1 and 255 and nothing else but 0, so that either can be the foreground.
    """
    values = {value for value, count in enumerate(label.histogram()) if count}
    if {1, 255} <= values <= {0, 1, 255}:
        raise ValueError(
            f"found the values {', '.join(map(str, sorted(values)))}, of which 1 or 255 can be the foreground; "
            "allowed are masks of 0 and 1, masks of 0 and 255, and gray levels. Write 0 where there is no label"
        )
    return 1 if max(values) <= 1 else 128


def find_normals(colors: np.ndarray) -> np.ndarray:
    """Where a color `(height, width, 3)` uint8 decodes to a vector of about unit length, bool `(height, width)`."""
    squares = _SQUARES[colors]
    length = squares[..., 0] + squares[..., 1] + squares[..., 2]  # squared; far faster than `sum` over the last axis
    return (length >= _LIMITS[0]) & (length <= _LIMITS[1])


def check_readers(tasks: Sequence[str]) -> None:
    """Raises ModuleNotFoundError where the files of one of `tasks` need SciPy and it is not installed."""
    if set(tasks) & set(MATLAB_TASKS):
        with needs_extra("train"):
            import scipy.io  # noqa: F401


def _read_label(path: Path, modes: tuple[str, ...], size: Size | None) -> Image.Image:
    """An 8-bit PNG, whose array holds the stored values: of a palette picture the indices, never the colours."""
    image = open_picture(path, read_bytes(path), "PNG")
    if image.mode not in modes:
        raise ValueError(f"{path}: found pixels of mode {image.mode}, allowed is {' or '.join(modes)}. Restore it.")
    _check_size(path, image.size, size)
    return image


def _check_size(path: Path, found: Size, size: Size | None, what: str = "") -> None:
    if size is not None and found != size:
        raise ValueError(
            f"{path}: found {what}{found[0]} x {found[1]} pixels, its JPEG has {size[0]} x {size[1]}. Restore both "
            "from the same archive."
        )


def _check_values(path: Path, values: np.ndarray, valid: np.ndarray, allowed: str) -> None:
    if not valid.all():
        found = ", ".join(map(str, np.unique(values[~valid])[:8]))
        raise ValueError(f"{path}: found the values {found}, allowed are {allowed}. Restore it from the archive.")


def _read_semseg(path: Path, size: Size | None) -> np.ndarray:
    classes = np.asarray(_read_label(path, ("L", "P"), size))
    valid = (classes < NUM_SEMSEG_CLASSES) | (classes == IGNORE)
    _check_values(path, classes, valid, f"0 to {NUM_SEMSEG_CLASSES - 1} and {IGNORE}")
    return classes


def _read_saliency(path: Path, size: Size | None) -> np.ndarray:
    image = _read_label(path, ("L", "P"), size)
    try:
        least_foreground(image)
    except ValueError as error:
        raise ValueError(f"{path}: {error}.") from error
    return np.asarray(image)


def _read_normals(path: Path, context_path: Path, size: Size | None) -> np.ndarray:
    normals = np.asarray(_read_label(path, ("RGB",), size))
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
    """Names and masks of all parts of all persons, in file order."""
    _, objects = anno.item()
    # An object's fields are class, class_ind, mask and parts; without parts, an empty matrix in place of the structs.
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
    """`extract` of the variable `key` of a MATLAB file."""
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
    "semseg": _read_semseg,
    "human_parts": _read_human_parts,
    "saliency": _read_saliency,
    "normals": _read_normals,
}
