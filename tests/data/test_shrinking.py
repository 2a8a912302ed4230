# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from datasets import Dataset

from peft_polyhistor import PASCAL_TASKS
from peft_polyhistor.__main__ import main
from peft_polyhistor.data import (
    JointTransform,
    check_archive,
    load_dense_dataset,
    load_pascal_context,
    shrink,
    write_shrunk,
)


@pytest.fixture
def dataset(archive, tmp_path):
    return load_pascal_context(archive, cache_dir=str(tmp_path / "cache"))


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
    assert "train.parquet exists already" in capsys.readouterr().err


@pytest.mark.parametrize(("arguments", "message"), [
    (["--longest", "0"], "`longest` must be at least 1 pixel, got 0"),
    (["--longest", "10", "--splits", "val", "--tasks", "semseg"], None),
])  # fmt: skip
def test_bad_sizes_write_nothing(archive, tmp_path, capsys, arguments, message):
    assert main(["data", "shrink", str(archive), str(tmp_path / "small"), *arguments]) == (message is not None)
    assert (message or "") in capsys.readouterr().err
    assert (tmp_path / "small").exists() == (message is None)


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
        check_archive(dataset)
    assert not (tmp_path / "small").exists()
