# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""A PASCAL_MT archive of four small pictures."""

import numpy as np
import pytest
from matlab_structs import structs
from PIL import Image
from scipy.io import savemat
from unit_colors import random_unit_colors


# (width, height) by id: uneven, so that a swapped axis fails.
SIZES = {"2008_000001": (20, 14), "2008_000002": (14, 20), "2008_000003": (17, 11), "2008_000004": (20, 15)}
SPLITS = {"train": ["2008_000001", "2008_000002", "2008_000003"], "val": ["2008_000004"]}


def _save_parts(path, objects):
    """Writes PASCAL-Part's layout; `objects` holds (class index, object mask, [(part name, mask), ...])."""
    rows = []
    for class_index, mask, parts in objects:
        part_rows = [{"part_name": name, "mask": part.astype(np.uint8)} for name, part in parts]
        rows.append(
            {
                "class": "any",
                "class_ind": np.array([[class_index]]),
                "mask": mask.astype(np.uint8),
                "parts": structs(*part_rows) if part_rows else np.zeros((0, 0)),
            }
        )
    savemat(path, {"anno": structs({"imname": path.stem, "objects": structs(*rows)})}, do_compression=True)


@pytest.fixture
def save_parts():
    return _save_parts


@pytest.fixture
def write_archive():
    """`write_archive(root)` writes the archive and returns root.

    Every picture has a person, whose torso fills its left half under a head and a hand; only 000003 has none, but a
    dog with a head. Its semseg is gray and lies in pascal-context; the others are palette pictures in VOC12. Columns 0
    to 4 of the 459-class map are class 3 (normals count), the rest is 2 (they do not).
    """

    def write(root):
        folders = ["ImageSets/Context", "JPEGImages", "semseg/VOC12", "semseg/pascal-context", "human_parts"]
        for folder in [*folders, "sal_distill", "normals_distill", "pascal-context/trainval"]:
            (root / folder).mkdir(parents=True)
        for split, image_ids in SPLITS.items():
            (root / "ImageSets/Context" / f"{split}.txt").write_text("\n".join(image_ids) + "\n")
        for image_id, size in SIZES.items():
            _write_picture(root, image_id, *size)
        return root

    return write


def _write_picture(root, image_id, width, height):
    random = np.random.default_rng(int(image_id[-1]))
    Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8)).save(root / f"JPEGImages/{image_id}.jpg")
    semseg = Image.fromarray(random.choice(np.array([0, 1, 15, 20, 255], np.uint8), (height, width)))
    if image_id == "2008_000003":
        semseg.save(root / f"semseg/pascal-context/{image_id}.png")
    else:
        semseg.putpalette(random.integers(0, 256, 768, np.uint8).tobytes())
        semseg.save(root / f"semseg/VOC12/{image_id}.png")
    gray = random.integers(0, 256, (height, width), np.uint8)
    Image.fromarray(gray).save(root / f"sal_distill/{image_id}.png")
    Image.fromarray(random_unit_colors(height, width, seed=int(image_id[-1]))).save(
        root / f"normals_distill/{image_id}.png"
    )
    context = np.full((height, width), 2, np.uint16)
    context[:, :5] = 3
    savemat(root / f"pascal-context/trainval/{image_id}.mat", {"LabelMap": context})

    left, top, corner = (np.zeros((height, width), bool) for _ in range(3))
    left[:, : width // 2], top[:4], corner[:2, :3] = True, True, True
    if image_id == "2008_000003":
        objects = [(12, left, [("head", top)])]
    else:
        objects = [(15, left, [("torso", left), ("hair", top), ("rhand", corner)]), (15, top, [])]
    _save_parts(root / f"human_parts/{image_id}.mat", objects)


@pytest.fixture
def archive(write_archive, tmp_path):
    return write_archive(tmp_path / "PASCAL_MT")


@pytest.fixture
def cache(tmp_path):
    return str(tmp_path / "cache")
