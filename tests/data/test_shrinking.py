# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import numpy as np
import pytest
from datasets import Array2D, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

from peft_polyhistor import PASCAL_TASKS, TASKS, register_task, regression, segmentation
from peft_polyhistor.__main__ import main
from peft_polyhistor.data import (
    JointTransform,
    check_dataset,
    load_dense_dataset,
    shrink,
    write_shrunk,
)
from peft_polyhistor.data.shrinking import _shrink_row


@pytest.fixture
def dataset(archive, tmp_path):
    return load_dense_dataset(archive, cache_dir=str(tmp_path / "cache"))


def test_the_longer_side_is_cut_and_the_ratio_stays(dataset):
    assert [row["image"].size for row in dataset] == [(20, 14), (14, 20), (17, 11)]
    assert [row["image"].size for row in shrink(dataset, 10)] == [(10, 7), (7, 10), (10, 6)]


def test_labels_keep_their_size_and_hold_no_new_values(dataset):
    for row, small in zip(dataset, shrink(dataset, 10), strict=True):
        for task in PASCAL_TASKS:
            assert small[task].size == small["image"].size and small[task].mode == row[task].mode
            channels = np.asarray(row[task]).shape[2:]
            colors = {tuple(color) for color in np.asarray(row[task]).reshape(-1, *channels or (1,)).tolist()}
            assert {
                tuple(color) for color in np.asarray(small[task]).reshape(-1, *channels or (1,)).tolist()
            } <= colors


def test_a_nearest_label_is_the_pixel_at_the_centre(dataset):
    row, small = dataset[0], shrink(dataset, 10)[0]
    assert (np.asarray(small["semseg"]) == np.asarray(row["semseg"])[1::2, 1::2]).all()


def test_small_pictures_stay_bit_for_bit(dataset):
    same = shrink(dataset, 20)
    for row, other in zip(dataset.with_format("arrow"), same.with_format("arrow"), strict=True):
        assert row.equals(other)


def test_the_command_writes_what_training_reads(archive, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    arguments = ["data", "shrink", str(archive), str(tmp_path / "small"), "--longest", "10"]
    assert main(arguments) == 0
    assert sorted(file.name for file in (tmp_path / "small").iterdir()) == ["train.parquet", "val.parquet"]
    assert "train.parquet and" in capsys.readouterr().out
    loaded = load_dense_dataset(tmp_path / "small", split="val")
    assert loaded.with_transform(JointTransform(8, train=True))[0]["normals"].shape == (3, 8, 8)
    assert main(arguments) == 1
    assert "holds images or parquet files of the split 'train' already" in capsys.readouterr().err


@pytest.mark.parametrize(("arguments", "message"), [
    (["--longest", "0"], "`longest` must be at least 1 pixel, got 0"),
    (["--longest", "10", "--splits", "val", "--tasks", "semseg"], None),
])  # fmt: skip
def test_bad_sizes_write_nothing(archive, tmp_path, capsys, arguments, message):
    assert main(["data", "shrink", str(archive), str(tmp_path / "small"), *arguments]) == (message is not None)
    assert (message or "") in capsys.readouterr().err
    assert (tmp_path / "small").exists() == (message is None)


@pytest.mark.parametrize("name", ["images", "train-00000-of-00001.parquet", "data/train.parquet"])
def test_a_folder_that_holds_data_is_left_as_it_is(name, dataset, tmp_path):
    (tmp_path / "data").mkdir()
    if name == "images":
        (tmp_path / name).mkdir()
    else:
        dataset.to_parquet(tmp_path / name)
    before = sorted(tmp_path.rglob("*.parquet"))
    with pytest.raises(FileExistsError, match=r"of the split 'train' already\. Remove them, or give another folder"):
        write_shrunk(dataset, tmp_path, 10, splits=["train"])
    assert sorted(tmp_path.rglob("*.parquet")) == before
    if name != "images":
        assert write_shrunk(dataset, tmp_path, 10, splits=["val"]) == [tmp_path / "val.parquet"]


@pytest.mark.parametrize("longest", [10, 100])
def test_a_label_of_another_size_is_not_squashed_into_its_image(longest):
    rows = [{"image_id": 7, "image": Image.new("RGB", (64, 32)), "semseg": Image.new("L", (32, 64))}]
    with pytest.raises(ValueError, match=r"semseg of 7: found 32 x 64 pixels, its image has 64 x 32"):
        shrink(Dataset.from_list(rows), longest)


def test_a_copy_does_not_need_the_files_of_its_images(tmp_path):
    for name, mode in (("a", "RGB"), ("b", "L")):
        Image.new(mode, (8, 8)).save(tmp_path / f"{name}.png")
    paths = [str(tmp_path / "a.png")], [str(tmp_path / "b.png")]
    source = Dataset.from_dict(dict(zip(("image", "saliency"), paths, strict=True)))
    source = source.cast_column("image", ImageFeature()).cast_column("saliency", ImageFeature())
    write_shrunk(source, tmp_path / "small", 10, ["saliency"], ["train"])
    for name in ("a", "b"):
        (tmp_path / f"{name}.png").unlink()
    [row] = load_dense_dataset(tmp_path / "small", ["saliency"], cache_dir=str(tmp_path / "cache"))
    assert row["image"].size == row["saliency"].size == (8, 8)


def test_arrays_become_images_and_a_mode_is_kept():
    features = Features(
        {"image": ImageFeature(), "lanes": ImageFeature(mode="L"), "depth": Array2D((8, 8), "float32")}
    )
    register_task(segmentation("lanes", classes=["road", "lane", "curb"]))
    register_task(regression("depth", unit="m"))
    depth = np.random.default_rng(0).random((8, 8), np.float32)
    row = {"image": Image.new("RGB", (8, 8)), "lanes": Image.new("RGB", (8, 8), (1, 1, 1)), "depth": depth}
    dataset = load_dense_dataset(Dataset.from_list([row, row | {"depth": None}], features), ["lanes", "depth"])
    for longest in (8, 4):
        small = shrink(dataset, longest)
        step = 8 // longest
        np.testing.assert_array_equal(np.array(small[0]["depth"]), depth[step // 2 :: step, step // 2 :: step])
        assert small[1]["depth"] is None and small[0]["lanes"].getextrema() == (1, 1)


def test_processes_that_are_spawned_shrink_own_tasks(dataset):
    register_task(segmentation("lanes", classes=["road", "lane", "curb"]))
    rows = dataset.select_columns(["image_id", "image"]).add_column(
        "lanes", [np.zeros((14, 20), np.uint8).tolist()] * 3
    )
    function = partial(_shrink_row, longest=10, images={"image": ImageFeature()}, rows={"lanes": TASKS["lanes"]})
    encoded = rows.cast_column("image", ImageFeature(decode=False))[0]
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        assert pool.submit(function, encoded).result()["lanes"].size == (10, 7)


def test_columns_that_are_no_tasks_are_refused(dataset):
    with pytest.raises(ValueError, match=r"The columns \['semantic'\] are no tasks; known are .*semseg"):
        shrink(dataset.rename_column("semseg", "semantic"), 10)


def test_where_a_split_fails_no_file_is_left(archive, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (archive / "JPEGImages" / "2008_000004.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="2008_000004"):
        write_shrunk(archive, tmp_path / "small", 10)
    assert not (tmp_path / "small").exists()


def test_where_the_disk_is_full_no_file_is_left(archive, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    original = Dataset.to_parquet

    def fill_the_disk(dataset, file):
        original(dataset, file)
        if "val" in file.name:
            raise OSError("no space left")

    monkeypatch.setattr(Dataset, "to_parquet", fill_the_disk)
    with pytest.raises(OSError, match="no space left"):
        write_shrunk(archive, tmp_path / "small", 10, ["semseg"])
    assert not list((tmp_path / "small").iterdir())


def test_a_single_dataset_is_not_read_as_several_splits(dataset, tmp_path):
    message = r"one Dataset, so the splits \['train', 'val'\] would all have the same rows.*splits=\['train'\]"
    with pytest.raises(ValueError, match=message):
        write_shrunk(dataset, tmp_path / "small", 10)
    with pytest.raises(ValueError, match=message):
        check_dataset(dataset)
    assert not (tmp_path / "small").exists()
