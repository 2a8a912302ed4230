# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Pictures as users have them, opened to upright RGB."""

import io
from http.client import HTTPException
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
from PIL import Image, ImageOps

from ..version import __version__


Picture = str | Path | Image.Image | np.ndarray

# Of Pillow, those that become RGB without a loss of range.
MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
LARGEST_DOWNLOAD = 2**28  # bytes
TIMEOUT = 30  # seconds that a server may be silent


def open_picture(source: Picture) -> Image.Image:
    """The picture of a path, a URL, a PIL picture, or a uint8 array `(height, width)` or `(height, width, 3)`.

    Raises:
        FileNotFoundError: There is no such file.
        ConnectionError: The URL cannot be had.
        ValueError: It is no picture, damaged or enormous, or its values are not 8 bits wide.
        TypeError: It is nothing of all that.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Image.Image):
        return _to_rgb(source, "the picture")
    if not isinstance(source, str | Path):
        raise TypeError(f"A picture is a path, a URL, a PIL picture or an array, got {type(source).__name__}.")
    file: io.BytesIO | Path
    if str(source).startswith(("http://", "https://")):
        file = io.BytesIO(_download(str(source)))
    else:
        file = Path(source).expanduser()
        if not file.is_file():
            raise FileNotFoundError(f"There is no file '{source}'. Give a picture's path, or its URL with http(s)://.")
    try:
        with Image.open(file) as picture:
            return _to_rgb(picture, f"'{source}'")
    except Exception as error:
        raise ValueError(f"'{source}' cannot be read as a picture: {error}") from error


def _download(url: str) -> bytes:
    try:
        request = Request(url, headers={"User-Agent": f"peft-polyhistor/{__version__}"})
        with urlopen(request, timeout=TIMEOUT) as answer:
            content = answer.read(LARGEST_DOWNLOAD + 1)
    except (OSError, ValueError, HTTPException) as error:
        raise ConnectionError(f"'{url}' cannot be downloaded: {error}. Check it, or give a file.") from error
    if len(content) > LARGEST_DOWNLOAD:
        raise ConnectionError(f"'{url}' is larger than {LARGEST_DOWNLOAD} bytes. Download it and give the file.")
    return content


def _from_array(values: np.ndarray) -> Image.Image:
    if values.dtype != np.uint8 or values.ndim not in (2, 3) or values.shape[2:] not in ((), (3,)) or not values.size:
        raise ValueError(
            f"An array of a picture must be uint8 (height, width) or (height, width, 3), got {values.dtype} of shape "
            f"{values.shape}. Scale and round its values to 0 ... 255, channels last."
        )
    return Image.fromarray(values).convert("RGB")


def _to_rgb(picture: Image.Image, name: str) -> Image.Image:
    if picture.mode not in MODES:
        raise ValueError(
            f"{name} has mode {picture.mode}, which is not 8 bits a channel. Scale it to 0 ... 255 first."
        )
    return ImageOps.exif_transpose(picture).convert("RGB")
