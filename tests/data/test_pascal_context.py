# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
import os
import shutil
import struct
import zlib

import numpy as np
import pytest
from datasets import Dataset, Image
from PIL import Image as PILImage
from scipy.io import loadmat, savemat

from peft_polyhistor import PASCAL_TASKS
from peft_polyhistor.data import (
    JointTransform,
    check_dataset,
    collate,
    decode,
    load_dense_dataset,
)
from peft_polyhistor.data import loading as module
from peft_polyhistor.data.archive import PascalArchive
from peft_polyhistor.data.decode import NORMALS_VALID_IDS


def pixels(path):
    return np.array(PILImage.open(path))


def test_pictures_and_labels_are_the_archives(archive, cache):
    dataset = load_dense_dataset(archive, split="train", cache_dir=cache)
    assert dataset["image_id"][:] == ["2008_000001", "2008_000002", "2008_000003"]
    assert dataset.column_names == ["image_id", "image", *PASCAL_TASKS]
    raw = dataset.cast_column("image", Image(decode=False))
    for row, raw_row in zip(dataset, raw, strict=True):
        name = row["image_id"]
        # A path would be read in place of the bytes, if such a file lies in the working folder.
        assert raw_row["image"] == {"bytes": (archive / f"JPEGImages/{name}.jpg").read_bytes(), "path": None}
        folder = "pascal-context" if name == "2008_000003" else "VOC12"
        assert [row[task].mode for task in PASCAL_TASKS] == ["L", "L", "L", "RGB"]
        np.testing.assert_array_equal(row["semseg"], pixels(archive / f"semseg/{folder}/{name}.png"))
        np.testing.assert_array_equal(row["saliency"], pixels(archive / f"sal_distill/{name}.png"))


def test_voc12_comes_before_pascal_context(archive, cache):
    shutil.copy(archive / "sal_distill/2008_000001.png", archive / "semseg/pascal-context/2008_000001.png")
    row = load_dense_dataset(archive, ["semseg"], cache_dir=cache)[0]
    np.testing.assert_array_equal(row["semseg"], pixels(archive / "semseg/VOC12/2008_000001.png"))


def test_parts_are_painted_in_file_order_and_only_on_persons(archive, cache):
    dataset = load_dense_dataset(archive, ["human_parts"], cache_dir=cache)
    parts = np.array(dataset[0]["human_parts"])
    expected = np.zeros((14, 20), np.uint8)
    expected[:, :10] = 2
    expected[:4] = 1
    expected[:2, :3] = 4
    np.testing.assert_array_equal(parts, expected)
    assert not np.array(dataset[2]["human_parts"]).any()  # the dog's head


@pytest.mark.parametrize(
    ("part", "names"),
    [
        (1, "head hair lear rear leye reye lebrow rebrow nose mouth"),
        (2, "torso neck"),
        (3, "luarm ruarm"),
        (4, "llarm rlarm lhand rhand"),
        (5, "luleg ruleg"),
        (6, "llleg rlleg lfoot rfoot"),
    ],
)
def test_left_and_right_parts_are_merged(part, names, archive, cache, save_parts):
    mask = np.zeros((15, 20), bool)
    parts = [(name, mask.copy()) for name in names.split()]
    for column, (_, part_mask) in enumerate(parts):
        part_mask[3, column] = True
    save_parts(archive / "human_parts/2008_000004.mat", [(15, mask, parts)])
    found = np.array(load_dense_dataset(archive, ["human_parts"], "val", cache_dir=cache)[0]["human_parts"])
    assert found[3, : len(parts)].tolist() == [part] * len(parts) and found.sum() == part * len(parts)


def test_normals_are_black_where_the_class_has_none(archive, cache):
    context = np.arange(300, dtype=np.uint16).reshape(15, 20) + 160
    savemat(archive / "pascal-context/trainval/2008_000004.mat", {"LabelMap": context})
    normals = np.array(load_dense_dataset(archive, ["normals"], "val", cache_dir=cache)[0]["normals"])
    original = pixels(archive / "normals_distill/2008_000004.png")
    for row, column in np.ndindex(15, 20):
        valid = context[row, column] in NORMALS_VALID_IDS
        assert normals[row, column].tolist() == (original[row, column].tolist() if valid else [0, 0, 0])


def test_valid_ids_are_complete():
    # Guards the list against a slip: count, sum and ends of the ids as published.
    assert len(set(NORMALS_VALID_IDS)) == len(NORMALS_VALID_IDS) == 170
    assert (sum(NORMALS_VALID_IDS), min(NORMALS_VALID_IDS), max(NORMALS_VALID_IDS)) == (37556, 3, 457)


def test_a_turned_picture_keeps_the_orientation_of_its_labels(archive, cache):
    path = archive / "JPEGImages/2008_000004.jpg"
    stored = PILImage.open(path)
    exif = stored.getexif()
    exif[PILImage.ExifTags.Base.Orientation] = 6
    stored.save(path, exif=exif)
    path.write_bytes(path.read_bytes().replace(b"\xff\xe1", b"\xff\xff\xe1", 1))  # fill bytes are legal
    image = load_dense_dataset(archive, ["semseg"], "val", cache_dir=cache)[0]["image"]
    assert image.size == (20, 15)
    np.testing.assert_array_equal(image, pixels(path))


def rewrite(path, array):
    PILImage.fromarray(array).save(path)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-60])


def declare_size(path, width, height):
    """Lets a PNG of one pixel say that it is of another size."""
    PILImage.new("L", (1, 1)).save(path)
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    path.write_bytes(data)


def save_label_map(archive, value):
    savemat(archive / "pascal-context/trainval/2008_000001.mat", {"LabelMap": value})


# A fault, how it arises, and what the error must tell.
FAULTS = {
    "no picture": (lambda a: (a / "JPEGImages/2008_000001.jpg").unlink(), "000001.jpg: no such file"),
    "no semseg": (lambda a: (a / "semseg/VOC12/2008_000001.png").unlink(), r"no such file \(nor in semseg/VOC12\)"),
    "no parts": (lambda a: (a / "human_parts/2008_000001.mat").unlink(), "000001.mat: no such file"),
    "no saliency": (lambda a: (a / "sal_distill/2008_000001.png").unlink(), "000001.png: no such file"),
    "no normals": (lambda a: (a / "normals_distill/2008_000001.png").unlink(), "000001.png: no such file"),
    "no context": (lambda a: (a / "pascal-context/trainval/2008_000001.mat").unlink(), "000001.mat: no such file"),
    "no list": (lambda a: (a / "ImageSets/Context/train.txt").unlink(), "train.txt: no such file"),
    "empty list": (lambda a: (a / "ImageSets/Context/train.txt").write_text(""), "found no image id"),
    "id twice": (
        lambda a: (a / "ImageSets/Context/train.txt").write_text("2008_000001\n2008_000002\n2008_000001\n"),
        "train.txt: found ids listed more than once: 2008_000001",
    ),
    "cut picture": (lambda a: truncate(a / "JPEGImages/2008_000001.jpg"), "000001.jpg: found a damaged image"),
    "cut semseg": (lambda a: truncate(a / "semseg/VOC12/2008_000001.png"), "000001.png: found a damaged image"),
    "cut parts": (lambda a: truncate(a / "human_parts/2008_000001.mat"), "000001.mat: found a damaged MATLAB file"),
    "text": (lambda a: (a / "sal_distill/2008_000001.png").write_text("404"), "000001.png: found no image"),
    "png as jpg": (
        lambda a: shutil.copy(a / "sal_distill/2008_000001.png", a / "JPEGImages/2008_000001.jpg"),
        "000001.jpg: found a PNG file, allowed is JPEG",
    ),
    "a path for an id": (
        lambda a: (a / "ImageSets/Context/train.txt").write_text("../JPEGImages/2008_000001\n"),
        "train.txt: found '../JPEGImages/2008_000001', which cannot be image ids",
    ),
    "jpg as png": (
        lambda a: PILImage.new("L", (20, 14)).save(a / "sal_distill/2008_000001.png", "JPEG"),
        "000001.png: found a JPEG file, allowed is PNG",
    ),
    "gif as png": (
        lambda a: PILImage.new("P", (20, 14)).save(a / "semseg/VOC12/2008_000001.png", "GIF"),
        "000001.png: found no image in it, allowed is PNG",
    ),
    "16 bits": (
        lambda a: rewrite(a / "sal_distill/2008_000001.png", np.zeros((14, 20), np.uint16)),
        "found pixels of mode I;16, allowed is L or P",
    ),
    "large png": (
        lambda a: declare_size(a / "sal_distill/2008_000001.png", 9000, 9000),
        "found 9000 x 9000 pixels, allowed are 67108864",
    ),
    "huge png": (
        lambda a: declare_size(a / "sal_distill/2008_000001.png", 99999, 99999),
        "found a damaged image .*decompression bomb",
    ),
    "class 21": (
        lambda a: rewrite(a / "semseg/VOC12/2008_000001.png", np.full((14, 20), 21, np.uint8)),
        "000001.png: found the values 21, allowed are 0 to 20 and 255",
    ),
    "colours": (
        lambda a: rewrite(a / "semseg/VOC12/2008_000001.png", np.zeros((14, 20, 3), np.uint8)),
        "found pixels of mode RGB, allowed is L or P",
    ),
    "gray normals": (
        lambda a: rewrite(a / "normals_distill/2008_000001.png", np.zeros((14, 20), np.uint8)),
        "found pixels of mode L, allowed is RGB",
    ),
    "turned semseg": (
        lambda a: rewrite(a / "semseg/VOC12/2008_000001.png", np.zeros((20, 14), np.uint8)),
        "found 14 x 20 pixels, its image has 20 x 14",
    ),
    "small normals": (
        lambda a: rewrite(a / "normals_distill/2008_000001.png", np.zeros((7, 10, 3), np.uint8)),
        "found 10 x 7 pixels, its image has 20 x 14",
    ),
    "small context": (lambda a: save_label_map(a, np.zeros((7, 10))), "found a LabelMap of 10 x 7 pixels"),
    "id 460": (
        lambda a: save_label_map(a, np.full((14, 20), 460)),
        "found the values 460, allowed are whole numbers from 0 to 459",
    ),
    "id 2.5": (lambda a: save_label_map(a, np.full((14, 20), 2.5)), "found the values 2.5, allowed are whole numbers"),
    "context text": (
        lambda a: save_label_map(a, "nothing"),
        r"another structure under 'LabelMap' .*\(no matrix of numbers\)",
    ),
    "no LabelMap": (
        lambda a: savemat(a / "pascal-context/trainval/2008_000001.mat", {"labels": np.zeros((14, 20))}),
        "found no variable 'LabelMap'",
    ),
    "mask of 1 and 255": (
        lambda a: rewrite(a / "sal_distill/2008_000001.png", np.tile(np.array([0, 1, 1, 255], np.uint8), (14, 5))),
        "sal_distill/2008_000001.png: found the values 0, 1, 255, of which 1 or 255 can be the foreground",
    ),
    "a number for a name": (
        lambda a: savemat(
            a / "human_parts/2008_000001.mat",
            {
                "anno": {
                    "imname": "x",
                    "objects": {"a": "person", "b": 15.0, "c": np.ones((14, 20)), "d": {"n": 3.0, "m": np.eye(3)}},
                }
            },
        ),
        r"found another structure under 'anno' than the archive's \(no text\)",
    ),
    "complex": (
        lambda a: savemat(a / "pascal-context/trainval/2008_000001.mat", {"LabelMap": np.full((14, 20), 1j)}),
        r"found another structure under 'LabelMap' .*no matrix of numbers",
    ),
    "no structs": (
        lambda a: savemat(a / "human_parts/2008_000001.mat", {"anno": np.zeros((3, 3))}),
        "found another structure under 'anno'",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_loader_and_checker_name_every_fault(name, archive, cache):
    damage, message = FAULTS[name]
    damage(archive)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        load_dense_dataset(archive, cache_dir=cache)
    assert check_dataset(archive, splits=["train"]).faults == [" ".join(str(error.value).split())]
    assert str(archive) in str(error.value)
    assert not [name for _, _, names in os.walk(cache) for name in names if name.endswith((".arrow", ".json"))]


def test_metadata_that_cannot_be_read_are_taken_off(archive, cache):
    path = archive / "JPEGImages/2008_000004.jpg"
    expected = pixels(path)
    data = path.read_bytes()
    exif = b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"
    path.write_bytes(data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:])
    image = load_dense_dataset(archive, ["semseg"], "val", cache_dir=cache)[0]["image"]
    np.testing.assert_array_equal(image, expected)


def test_files_may_be_links_to_another_place(archive, cache, tmp_path):
    shutil.move(archive / "JPEGImages", tmp_path / "elsewhere")
    (archive / "JPEGImages").symlink_to(tmp_path / "elsewhere")
    assert len(load_dense_dataset(archive, ["semseg"], cache_dir=cache)) == 3


def test_files_without_end_are_not_read_to_it(archive, cache, monkeypatch):
    monkeypatch.setattr(decode, "MAX_FILE_SIZE", 100)
    with pytest.raises(ValueError, match=r"000001.jpg: found more than the allowed 100 bytes"):
        load_dense_dataset(archive, cache_dir=cache)


def test_unknown_part_and_wrong_mask_are_named(archive, cache, save_parts):
    path = archive / "human_parts/2008_000001.mat"
    mask = np.zeros((14, 20), bool)
    save_parts(path, [(15, mask, [("tail", mask)])])
    with pytest.raises(ValueError, match=r"parts of a person named \['tail'\], allowed are"):
        load_dense_dataset(archive, cache_dir=cache)
    save_parts(path, [(15, mask, [("head", mask[:7])])])
    with pytest.raises(ValueError, match="a mask of 'head' of 20 x 7 pixels, its image has 20 x 14"):
        load_dense_dataset(archive, cache_dir=cache)


def test_workers_read_the_same_and_keep_the_type_of_a_fault(archive, tmp_path):
    alone = load_dense_dataset(archive, cache_dir=str(tmp_path / "one"))
    together = load_dense_dataset(archive, cache_dir=str(tmp_path / "two"), num_proc=2)
    assert alone.data.to_pylist() == together.data.to_pylist()
    truncate(archive / "JPEGImages/2008_000003.jpg")
    with pytest.raises(ValueError, match=r"000003.jpg: found a damaged image"):
        load_dense_dataset(archive, cache_dir=str(tmp_path / "three"), num_proc=2)
    assert not list((tmp_path / "three").rglob("*.arrow"))


def test_unknown_names_and_folders(archive, tmp_path):
    with pytest.raises(ValueError, match=r"Unknown tasks \['depth'\]; give .* semseg, human_parts, saliency, normals"):
        load_dense_dataset(archive, ["semseg", "depth"])
    with pytest.raises(ValueError, match="No task; give a list"):
        load_dense_dataset(archive, [])
    with pytest.raises(ValueError, match=r"Unknown tasks .'semseg'.; give a list"):
        load_dense_dataset(archive, "semseg")
    with pytest.raises(ValueError, match="Unknown split 'test'; PASCAL_MT has train, val"):
        load_dense_dataset(archive, split="test")
    with pytest.raises(FileNotFoundError, match="JPEGImages: found neither ImageSets/Context"):
        load_dense_dataset(archive / "JPEGImages")
    with pytest.raises(FileNotFoundError, match="JPEGImages: no folder ImageSets/Context"):
        PascalArchive(archive / "JPEGImages")


def test_only_the_files_of_the_tasks_are_needed(archive, cache):
    for folder in ("human_parts", "sal_distill", "normals_distill", "pascal-context"):
        shutil.rmtree(archive / folder)
    dataset = load_dense_dataset(archive, ["semseg"], cache_dir=cache)
    assert dataset.column_names == ["image_id", "image", "semseg"]


def test_cache_follows_the_files_and_the_folder(archive, cache, tmp_path, monkeypatch):
    def cache_file(folder):
        return load_dense_dataset(folder, ["saliency"], "val", cache_dir=cache).cache_files[0]["filename"]

    first = cache_file(archive)
    monkeypatch.chdir(archive.parent)
    assert cache_file(archive.name) == first  # a relative name of the same folder
    twin = shutil.copytree(archive, tmp_path / "twin")  # keeps sizes and times
    assert cache_file(twin) != first
    path = archive / "sal_distill/2008_000004.png"
    rewrite(path, 255 - pixels(path))
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    assert cache_file(archive) != first
    row = load_dense_dataset(archive, ["saliency"], "val", cache_dir=cache)[0]
    np.testing.assert_array_equal(row["saliency"], pixels(path))


def test_nothing_is_written_into_the_archive(archive, cache):
    def listing():
        return {path: path.stat().st_mtime_ns for path in [archive, *archive.rglob("*")]}

    before = listing()
    load_dense_dataset(archive, cache_dir=cache)
    check_dataset(archive)
    assert listing() == before


def test_parquet_keeps_features_and_every_byte(archive, cache, tmp_path):
    dataset = load_dense_dataset(archive, cache_dir=cache)
    folder = tmp_path / "parquet"
    folder.mkdir()
    dataset.select([0, 1]).to_parquet(folder / "train-00000-of-00002.parquet")
    dataset.select([2]).to_parquet(folder / "train-00001-of-00002.parquet")
    loaded = load_dense_dataset(folder, split="train", cache_dir=cache)
    assert loaded.features == dataset.features
    assert loaded.data.to_pylist() == dataset.data.to_pylist()
    chosen = load_dense_dataset(str(folder), ["normals"], "train", cache_dir=cache)
    assert chosen.column_names == ["image_id", "image", "normals"]
    with pytest.raises(FileNotFoundError, match=r"neither ImageSets/Context .* nor val.parquet"):
        load_dense_dataset(folder, split="val")


def test_damaged_parquet_files_are_named(archive, cache, tmp_path):
    file = tmp_path / "train.parquet"
    load_dense_dataset(archive, ["semseg"], cache_dir=cache).to_parquet(file)
    whole = file.read_bytes()
    for damaged in (b"", b"no parquet" * 9, whole[:-20], whole[:4] + b"\xff" * 60 + whole[64:]):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"train\.parquet: it is damaged, or no parquet file \(.+\)\. Write it"):
            load_dense_dataset(tmp_path, ["semseg"], cache_dir=cache)


def test_any_source_is_cut_to_the_columns_asked_for(archive, cache, monkeypatch):
    opened = load_dense_dataset(archive, ["semseg"], "val", cache_dir=cache)
    assert opened.column_names == ["image_id", "image", "semseg"]
    calls = []
    monkeypatch.setattr(module, "load_dataset", lambda *args, **kwargs: calls.append((args, kwargs)) or opened)
    assert load_dense_dataset("someone/scenes", ["semseg"], "val", revision="x").features == opened.features
    assert calls == [(("someone/scenes",), {"split": "val", "revision": "x"})]
    with pytest.raises(ValueError, match=r"someone/scenes: found no normals .* the dataset has .*'semseg': Image"):
        load_dense_dataset("someone/scenes", ["semseg", "normals"], "val")
    opened = Dataset.from_dict({"image_id": [1.5], "image": ["a.jpg"], "semseg": [[0]]})
    with pytest.raises(ValueError, match="found no image_id, image, semseg of the right kind"):
        load_dense_dataset("someone/scenes", ["semseg"], "val")


def test_ids_of_a_dataset_may_be_integers(archive, cache, tmp_path):
    dataset = load_dense_dataset(archive, ["semseg"], cache_dir=cache)
    dataset = dataset.remove_columns("image_id").add_column("image_id", np.arange(3))
    dataset.to_parquet(tmp_path / "train.parquet")
    opened = load_dense_dataset(tmp_path, ["semseg"], cache_dir=cache)
    assert opened["image_id"][:] == [0, 1, 2]
    batch = collate([opened.with_transform(JointTransform(8, train=True))[i] for i in range(3)])
    assert batch["pixel_values"].shape == (3, 3, 8, 8)


def test_the_written_parts_have_matlabs_layout(archive):
    # The positions by which the archive's files are read.
    anno = loadmat(archive / "human_parts/2008_000001.mat")["anno"]
    person, bare = anno[0][0][1][0]
    assert person[1][0][0] == 15 and person[2].shape == (14, 20) and bare[3].size == 0
    assert [str(part[0][0]) for part in person[3][0]] == ["torso", "hair", "rhand"]
    assert person[3][0][1][1].shape == (14, 20)
