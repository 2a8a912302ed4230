# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""A folder of predictions: the maps as pictures, and a page to look at them."""

import re
from pathlib import Path
from types import TracebackType
from typing import Any

from jinja2 import Environment, PackageLoader
from PIL import Image

from ..tasks import TASKS
from .predictor import Prediction


LONGEST_SHOWN = 960  # pixels, of the pictures on the page; the maps keep their size


class PredictionPage:
    """Writes predictions to a folder: a folder per picture, and index.html, which is written at the end.

    Of each task it writes TASK.png: class ids under the palette of the task, a probability times 255, or
    127.5 * (vector + 1), rounded; and what the page shows, smaller. `Task.find_ends` says how other values become
    gray, and the page names the values that are black and white.

    Args:
        folder: It is made, and must not hold anything yet.
        title: Of the page.

    Raises:
        FileExistsError: There is something in the folder.
        OSError: It cannot be written.
    """

    def __init__(self, folder: str | Path, title: str):
        self.folder, self.title = Path(folder).expanduser(), title
        self._entries: list[dict[str, Any]] = []
        self.folder.mkdir(parents=True, exist_ok=True)
        if any(self.folder.iterdir()):
            raise FileExistsError(f"'{folder}' is not empty. Give a new folder, so that nothing in it is lost.")

    def __enter__(self) -> "PredictionPage":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After an interruption too: the page shows what there is.
        template = Environment(loader=PackageLoader("peft_polyhistor", "assets"), autoescape=True)
        page = template.get_template("predictions.html").render(title=self.title, entries=self._entries)
        (self.folder / "index.html").write_text(page, encoding="utf-8")

    def add(self, source: str, prediction: Prediction) -> Path:
        """Writes the maps of the picture `source`, a path or URL, and returns their folder."""
        folder = self.folder / self._name_for(source)
        folder.mkdir()
        _shrink(prediction.picture).save(folder / "picture.jpg")
        for task in prediction.maps:
            prediction.paint(task).save(folder / f"{task}.png")
            _shrink(prediction.overlay(task)).save(folder / f"{task}.jpg")
        self._entries.append(
            {
                "source": source,
                "folder": folder.name,
                "size": prediction.picture.size,
                "tasks": {task: list(TASKS[task].legend(prediction.label(task))) for task in prediction.maps},
            }
        )
        return folder

    def _name_for(self, source: str) -> str:
        """The name of the picture, as it can be in any file system, told apart from those before it."""
        stem = re.sub(r"[^\w.-]+", "_", Path(source.partition("?")[0]).stem).strip("._") or "picture"
        taken = {entry["folder"].lower() for entry in self._entries}
        names = (stem, *(f"{stem}-{number}" for number in range(2, len(taken) + 2)))
        return next(name for name in names if name.lower() not in taken)


def _shrink(picture: Image.Image) -> Image.Image:
    shown = picture.copy()
    shown.thumbnail((LONGEST_SHOWN, LONGEST_SHOWN))
    return shown
