# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Draws images beside the labels and the predictions of all tasks."""

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..tasks import TASKS
from ..tasks.losses import resize_to_label
from ..tasks.task import UNLABELED, KeyEntry
from .paint import paint_label


LONGEST = 256  # pixels of the longer side of a map
GAP = 4  # pixels between maps
LARGEST_FONT = 20  # pixels
LEGEND_FONT = 14  # pixels
NO_CHARACTER = "\U0010ffff"  # by Unicode; fonts draw a box for it, as for all characters that they lack
FRAME = "silver"
ROWS = "label", "prediction"


def draw_grid(images: np.ndarray, labels: Mapping[str, Tensor], logits: Mapping[str, Tensor]) -> Image.Image:
    """Draws the images below each other, each beside a row of labels and a row of predictions.

    Each task has a column. The maps are shrunk to at most 256 pixels, and an image is as high as both its rows. A
    legend below them names the colours of the classes in the labels and the predictions, the values that black and
    white stand for, in all rows alike, and the colour of unlabelled pixels.

    Args:
        images: RGB images `(batch, height, width, 3)` uint8.
        labels: Targets by task.
        logits: Logits by task, at any size.
    """
    full = images.shape[1:3]
    factor = math.ceil(max(full) / LONGEST)
    height, width = (math.ceil(side / factor) for side in full)
    titles, sides = _write(["image", *logits], width), _write(ROWS, height)
    top, left = titles[0].height, 2 * (width + GAP) + sides[0].height  # of the first map
    pitch = 2 * (height + GAP) + GAP  # from an image to the next one
    right, bottom = left + len(logits) * (width + GAP) - GAP, top + len(images) * pitch - 2 * GAP
    keys: dict[str, list[KeyEntry]] = {}
    painted: dict[str, list[list[np.ndarray]]] = {}  # by task, one item per row, which holds all images
    for task in logits:
        label, prediction = labels[task].cpu(), _predict(task, logits[task], full)
        keys[task], ends = list(TASKS[task].key(label, prediction)), TASKS[task].find_ends(label)
        painted[task] = [[paint_label(task, item, ends) for item in maps] for maps in (label, prediction)]
    others = [rows for task, rows in painted.items() if UNLABELED not in TASKS[task].palette]
    if any((item == UNLABELED).all(axis=-1).any() for rows in others for item in rows[0]):
        keys["all tasks"] = [("unlabelled", UNLABELED)]
    _check_glyphs([*keys, *(text for entries in keys.values() for text, _ in entries)])
    legend = _draw_legend(keys, right)
    sheet = Image.new("RGB", (right + 1, bottom + 1 + legend.height), "white")  # with the frames of the last maps
    draw = ImageDraw.Draw(sheet)
    sheet.paste(legend, (0, bottom + 1))
    sheet.paste(titles[0], ((width + GAP) // 2, 0))  # above the middle of the images
    for column, title in enumerate(titles[1:]):
        sheet.paste(title, (left + column * (width + GAP), 0))
    for i, image in enumerate(images):
        enlarged = Image.fromarray(image).resize((2 * width + GAP, 2 * height + GAP))
        sheet.paste(enlarged, (0, top + i * pitch))
        tops = top + i * pitch, top + i * pitch + height + GAP  # of both rows
        for side, y in zip(sides, tops, strict=True):
            sheet.paste(side.transpose(Image.Transpose.ROTATE_90), (left - side.height, y))
        for column, rows in enumerate(painted.values()):
            for maps, y in zip(rows, tops, strict=True):
                x = left + column * (width + GAP)
                draw.rectangle((x - 1, y - 1, x + width, y + height), outline=FRAME)  # a map may be white
                sheet.paste(Image.fromarray(maps[i]).reduce(factor), (x, y))
    return sheet


def _predict(task: str, logits: Tensor, size: Sequence[int]) -> Tensor:
    """Returns the predictions of (height, width) `size` of a batch of logits."""
    return TASKS[task].predict(resize_to_label(logits.detach().cpu(), torch.empty(1, *size)))


def _draw_legend(keys: Mapping[str, Sequence[KeyEntry]], width: int) -> Image.Image:
    """Draws texts and colours, in lines that begin with the name of their task, on an image of this width."""
    font, line = ImageFont.load_default(LEGEND_FONT), math.ceil(1.5 * LEGEND_FONT)
    legend = Image.new("RGB", (width, line * sum(1 + len(entries) for entries in keys.values())), "white")
    draw, top = ImageDraw.Draw(legend), GAP
    for task, entries in keys.items():
        if not entries:
            continue
        left, middle = math.ceil(font.getlength(f"{task}: ")), top + line / 2
        draw.text((0, middle), f"{task}: ", fill="black", font=font, anchor="lm")
        for text, colour in entries:
            length = LEGEND_FONT + GAP + math.ceil(font.getlength(text))
            if left + length > width:
                left, middle = 0, middle + line
            square = left, middle - LEGEND_FONT / 2, left + LEGEND_FONT, middle + LEGEND_FONT / 2
            draw.rectangle(square, fill=colour, outline="black")
            draw.text((left + LEGEND_FONT + GAP, middle), text, fill="black", font=font, anchor="lm")
            left += length + 3 * GAP
        top = math.ceil(middle + line / 2)
    return legend.crop((0, 0, width, top if any(keys.values()) else 0))


def _write(texts: Sequence[str], width: int) -> list[Image.Image]:
    """Writes each text in the middle of an image of this width in pixels, smaller if it is long."""
    largest = ImageFont.load_default(LARGEST_FONT)
    sizes = [LARGEST_FONT * min(1, width / largest.getlength(text)) for text in texts]
    height, written = math.ceil(1.5 * max(sizes)), []
    for text, size in zip(texts, sizes, strict=True):
        written.append(Image.new("RGB", (width, height), "white"))
        font = ImageFont.load_default(size)
        ImageDraw.Draw(written[-1]).text((width / 2, height / 2), text, fill="black", font=font, anchor="mm")
    return written


def _check_glyphs(texts: Iterable[str]) -> None:
    """Warns of characters that the font lacks."""
    font = ImageFont.load_default(LARGEST_FONT)
    box = bytes(font.getmask(NO_CHARACTER))
    missing = [character for character in dict.fromkeys("".join(texts)) if bytes(font.getmask(character)) == box]
    if missing:
        warnings.warn(
            f"The image of predictions shows boxes in place of {', '.join(missing)}, which its font lacks. Write the "
            "names of tasks and classes in ASCII to read them there.",
            stacklevel=3,
        )
