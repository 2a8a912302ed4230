# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""An archive in PASCAL_MT's layout, of drawn scenes: as many pictures and files as the real one, of its sizes."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

from peft_polyhistor.data.scenes import render_scene


COUNTS = {"train": 4998, "val": 5105}  # of PASCAL_MT
SIZE = (375, 500)  # height and width of most of its pictures, pixels
# Noise (standard deviation) and JPEG quality that bring drawn pictures to the 110 KB of its photographs.
GRAIN, QUALITY = 9.0, 95
# Names of PASCAL-Part for the labels 1 to 6 of human_parts.
PARTS = ("head", "torso", "luarm", "llarm", "luleg", "llleg")
PERSON, DOG = 15, 12  # VOC classes
COUNTED, NOT_COUNTED = 3, 2  # ids of PASCAL-Context where normals count, and where they do not


def write_archive(root: Path, counts: Mapping[str, int] = COUNTS, distinct: int = 200) -> None:
    """Writes the archive.

    Args:
        root: A folder, made here.
        counts: Pictures of the splits.
        distinct: Scenes that are drawn; the files of further pictures are hard links to theirs.
    """
    ids = [f"2008_{number:06d}" for number in range(sum(counts.values()))]
    drawn = [_write_scene(root, image_id, number) for number, image_id in enumerate(ids[:distinct])]
    for number, image_id in enumerate(ids[distinct:]):
        for file in drawn[number % distinct]:
            os.link(file, file.with_stem(image_id))
    lists, start = root / "ImageSets" / "Context", 0
    lists.mkdir(parents=True)
    for split, count in counts.items():
        (lists / f"{split}.txt").write_text("\n".join(ids[start : start + count]) + "\n", encoding="utf-8")
        start += count


def _write_scene(root: Path, image_id: str, number: int) -> list[Path]:
    scene = render_scene(0, number, SIZE)
    files = {
        "image": root / "JPEGImages" / f"{image_id}.jpg",
        "semseg": root / "semseg" / ("VOC12", "pascal-context")[number % 2] / f"{image_id}.png",
        "human_parts": root / "human_parts" / f"{image_id}.mat",
        "saliency": root / "sal_distill" / f"{image_id}.png",
        "normals": root / "normals_distill" / f"{image_id}.png",
        "context": root / "pascal-context" / "trainval" / f"{image_id}.mat",
    }
    for file in files.values():
        file.parent.mkdir(parents=True, exist_ok=True)
    grain = np.random.default_rng(number).normal(0, GRAIN, scene["image"].shape)
    image = np.clip(scene["image"] + grain, 0, 255).astype(np.uint8)
    Image.fromarray(image).save(files["image"], quality=QUALITY)
    for task in ("semseg", "saliency", "normals"):
        Image.fromarray(scene[task]).save(files[task])
    savemat(files["human_parts"], {"anno": _annotation(image_id, scene["human_parts"])}, do_compression=True)
    context = np.where(scene["normals"].any(axis=-1), np.uint16(COUNTED), np.uint16(NOT_COUNTED))
    savemat(files["context"], {"LabelMap": context}, do_compression=True)
    return list(files.values())


def _annotation(image_id: str, labels: np.ndarray) -> np.ndarray:
    """The structs of PASCAL-Part: one object, a person with its parts where the scene shows any."""
    masks = {name: (labels == label).astype(np.uint8) for label, name in enumerate(PARTS, start=1)}
    parts = [{"part_name": name, "mask": mask} for name, mask in masks.items() if mask.any()]
    thing = {
        "class": "person" if parts else "dog",
        "class_ind": np.array([[PERSON if parts else DOG]]),
        "mask": (labels > 0).astype(np.uint8),
        "parts": _structs(parts) if parts else np.zeros((0, 0)),
    }
    return _structs([{"imname": image_id, "objects": _structs([thing])}])


def _structs(rows: list[dict]) -> np.ndarray:
    array = np.empty((1, len(rows)), dtype=[(name, object) for name in rows[0]])
    for index, row in enumerate(rows):
        array[0, index] = tuple(row.values())
    return array
