# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Opens images from files, URLs and arrays as upright RGB."""

import io
from http.client import HTTPException
from pathlib import Path
from urllib.parse import quote
from urllib.request import Request, urlopen

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..checks import check_image
from ..models.image_processor import from_array
from ..version import __version__


ImageSource = str | Path | Image.Image | np.ndarray

OF_URLS = "%:/?#[]@!$&'()*+,;=~"  # characters that stay; "%" too, as parts of a URL may be quoted already
LARGEST_DOWNLOAD = 2**28  # bytes
TIMEOUT = 30  # seconds to wait for an answer of the server


def open_image(source: ImageSource) -> Image.Image:
    """Opens a path, a URL, a PIL image, or a uint8 array `(height, width)` or `(height, width, 3)`.

    Raises:
        FileNotFoundError: There is no such file.
        ConnectionError: The URL cannot be downloaded.
        ValueError: The source is no image, is damaged or too large, or has more than 8 bits per channel.
        TypeError: The source has another type.
    """
    if isinstance(source, np.ndarray):
        return from_array(source).convert("RGB")
    if isinstance(source, Image.Image):
        return _to_rgb(source, "the image")
    if not isinstance(source, str | Path):
        raise TypeError(f"An image must be a path, a URL, a PIL image or an array, got {type(source).__name__}.")
    file: io.BytesIO | Path
    if str(source).startswith(("http://", "https://")):
        file = io.BytesIO(_download(str(source)))
    else:
        file = Path(source).expanduser()
        if not file.is_file():
            found = f"'{source}' is a folder" if file.is_dir() else f"There is no file '{source}'"
            raise FileNotFoundError(f"{found}. Give the path of an image, or a URL with http(s)://.")
    try:
        with Image.open(file) as image:
            return _to_rgb(image, "it")
    except UnidentifiedImageError as error:
        raise ValueError(f"'{source}' is no image. Give a file that Pillow reads, such as JPEG or PNG.") from error
    except Exception as error:
        raise ValueError(f"'{source}' cannot be read as an image: {error}") from error


def _download(url: str) -> bytes:
    try:
        request = Request(quote(url, safe=OF_URLS), headers={"User-Agent": f"peft-polyhistor/{__version__}"})
        with urlopen(request, timeout=TIMEOUT) as answer:
            content = answer.read(LARGEST_DOWNLOAD + 1)
    except (OSError, ValueError, HTTPException) as error:
        raise ConnectionError(f"'{url}' cannot be downloaded: {error}. Check the URL, or give a file.") from error
    if len(content) > LARGEST_DOWNLOAD:
        raise ConnectionError(f"'{url}' is larger than {LARGEST_DOWNLOAD} bytes. Download it and give the file.")
    return content


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    check_image(name, image)
    return ImageOps.exif_transpose(image).convert("RGB")
