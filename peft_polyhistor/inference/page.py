# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Writes predictions to a folder: the maps as image files, and an HTML page that shows them."""

import re
from pathlib import Path
from types import TracebackType
from typing import Any

from jinja2 import Environment, PackageLoader
from PIL import Image

from ..tasks import TASKS
from .predictor import Prediction


LONGEST_SHOWN = 960  # pixels of the longer side of an image on the page; the maps keep their size
LONGEST_NAME = 200  # bytes of the name of a subfolder; file systems allow 255
RESERVED = re.compile(r"(con|prn|aux|nul|(com|lpt)[\d¹²³])(\..*)?", re.IGNORECASE)  # names of devices on Windows


class PredictionPage:
    """Writes predictions to a folder, with a subfolder per image; a context manager that writes index.html on exit.

    Without a prediction there is no index.html, and the folder stays empty.

    For each task, TASK.png holds the map at the size of the image: class ids with the palette of the task,
    255 * probability, or 127.5 * (vector + 1), rounded; other values in grey, black and white being the values of
    `Task.find_ends`, which the page names. TASK.jpg is a smaller overlay for the page, and image.jpg the image
    (image-2.jpg beside a task of that name).

    Args:
        folder: Output folder. It is created, and must be empty if it exists.
        title: Title of the page.

    Raises:
        FileExistsError: The folder is not empty, or a file.
        OSError: The folder cannot be written.
    """

    def __init__(self, folder: str | Path, title: str):
        self.folder, self.title = Path(folder).expanduser(), title
        self._entries: list[dict[str, Any]] = []
        if self.folder.is_file():
            raise FileExistsError(f"'{folder}' is a file. Give a new folder.")
        self.folder.mkdir(parents=True, exist_ok=True)
        if any(self.folder.iterdir()):
            raise FileExistsError(f"'{folder}' is not empty. Give a new folder, so that nothing in it is lost.")

    def __enter__(self) -> "PredictionPage":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The page is written after an interruption too, with the predictions made so far.
        if not self._entries:
            return
        template = Environment(loader=PackageLoader("peft_polyhistor", "assets"), autoescape=True)
        page = template.get_template("predictions.html").render(title=self.title, entries=self._entries)
        (self.folder / "index.html").write_text(page, encoding="utf-8")

    def add(self, source: str, prediction: Prediction) -> Path:
        """Writes the maps of the image `source`, a path or URL, and returns their folder."""
        folder = self.folder / self._name_for(source)
        folder.mkdir()
        # The name of a task is an identifier, without a hyphen; file systems may ignore the case.
        image = "image-2.jpg" if "image" in map(str.lower, prediction.maps) else "image.jpg"
        _shrink(prediction.image).save(folder / image)
        for task in prediction.maps:
            prediction.paint(task).save(folder / f"{task}.png")
            _shrink(prediction.overlay(task)).save(folder / f"{task}.jpg")
        self._entries.append(
            {
                "source": source,
                "folder": folder.name,
                "image": image,
                "size": prediction.image.size,
                "tasks": {task: list(TASKS[task].legend(prediction.label(task))) for task in prediction.maps},
            }
        )
        return folder

    def _name_for(self, source: str) -> str:
        """Chooses a unique folder name for an image, valid on any file system."""
        stem = re.sub(r"[^\w.-]+", "_", Path(source.partition("?")[0]).stem)
        stem = stem.strip("._").encode()[:LONGEST_NAME].decode(errors="ignore").rstrip("._") or "image"
        if RESERVED.fullmatch(stem):
            stem = f"image-{stem}"
        taken = {entry["folder"].lower() for entry in self._entries}
        names = (stem, *(f"{stem}-{number}" for number in range(2, len(taken) + 2)))
        return next(name for name in names if name.lower() not in taken)


def _shrink(image: Image.Image) -> Image.Image:
    shown = image.copy()
    shown.thumbnail((LONGEST_SHOWN, LONGEST_SHOWN))
    return shown
