# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Data of one's own: folders of files, datasets with other names of columns, labels that some images lack."""

import math
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator
from datasets import Array2D, Dataset, DatasetDict, Features, Image, Split, Value
from PIL import Image as PILImage
from tiny_models import make_dense

from peft_polyhistor import TASKS, declare_tasks, register_task, regression, segmentation
from peft_polyhistor.__main__ import main
from peft_polyhistor.data import (
    JointTransform,
    check_dataset,
    collate,
    load_dense_dataset,
    loading,
    shrink,
    write_shrunk,
)
from peft_polyhistor.evaluation import evaluate_tasks
from peft_polyhistor.training import add_gradients


TWO = ["lanes", "depth"]
WIDTH, HEIGHT = 40, 33


@pytest.fixture(autouse=True)
def rows():
    register_task(segmentation("lanes", classes={"road": [9, 8, 7], "lane": [0, 255, 0], "curb": [200, 0, 0]}))
    register_task(regression("depth", unit="m", valid=(0.1, 80)))


def make_label(task, number):
    random = np.random.default_rng(number)
    if task == "lanes":
        return random.integers(0, 3, (HEIGHT, WIDTH), np.uint8)
    return (5 * random.random((HEIGHT, WIDTH)) + 1).astype(np.float32)


@pytest.fixture
def folder(tmp_path):
    """Images 0 to 3 in photos, lanes in masks in colours, depth as arrays; 1 has no lanes, 2 no depth, 3 neither."""
    root = tmp_path / "data"
    for name in ("photos", "masks", "depth", "lists"):
        (root / name).mkdir(parents=True)
    for number, suffix in enumerate((".png", ".PNG", ".bmp", ".png")):
        noise = np.random.default_rng(number).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
        PILImage.fromarray(noise).save(root / f"photos/{number}{suffix}")
        if number in (0, 2):
            colours = np.array(TASKS["lanes"].palette, np.uint8)[make_label("lanes", number)]
            PILImage.fromarray(colours).save(root / f"masks/{number}.png")
        if number in (0, 1):
            np.save(root / f"depth/{number}.npy", make_label("depth", number))
    (root / "lists/all.txt").write_text("0\n1\n2\n3\n")
    return root


LAYOUT = {"image": "photos", "lanes": "masks", "train": "lists/all.txt", "val": "lists/all.txt"}


@pytest.fixture
def dataset(folder, tmp_path):
    return load_dense_dataset(folder, TWO, layout=LAYOUT, cache_dir=str(tmp_path / "cache"))


def test_a_folder_is_read_by_its_layout(dataset):
    assert dataset.column_names == ["image_id", "image", *TWO]
    assert [[row[task] is None for task in TWO] for row in dataset] == [[0, 0], [1, 0], [0, 1], [1, 1]]
    sample = dataset.with_transform(JointTransform((HEIGHT, WIDTH), train=False))[0]
    np.testing.assert_array_equal(sample["lanes"], make_label("lanes", 0))
    np.testing.assert_array_equal(sample["depth"][0], make_label("depth", 0))


def test_processes_read_tasks_of_ones_own(folder, dataset, tmp_path):
    together = load_dense_dataset(folder, TWO, layout=LAYOUT, cache_dir=str(tmp_path / "two"), num_proc=2)
    assert [row["lanes"] for row in together] == [row["lanes"] for row in dataset]


def test_without_a_layout_folders_have_the_names_of_tasks_and_splits(folder, tmp_path):
    (folder / "photos").rename(folder / "images")
    (folder / "masks").rename(folder / "lanes")
    with pytest.raises(FileNotFoundError, match=r"train\.txt: no such file, nor .*images/train\. List the ids"):
        load_dense_dataset(folder, TWO)
    for name in ("images", "lanes", "depth"):
        (folder / name / "train").mkdir()
        for file in [*(folder / name).glob("*.*")]:
            file.rename(folder / name / "train" / file.name)
    dataset = load_dense_dataset(folder, TWO, cache_dir=str(tmp_path / "cache"))
    assert dataset["image_id"][:] == ["train/0", "train/1", "train/2", "train/3"] and dataset[2]["lanes"] is not None


def test_the_folder_of_the_images_may_be_a_split(folder, tmp_path):
    layout = {"image": "photos", "lanes": "masks", "train": "photos"}
    assert len(load_dense_dataset(folder, TWO, layout=layout, cache_dir=str(tmp_path / "cache"))) == 4


@pytest.mark.parametrize("place", ["validation.txt", "gt_sets/validation.txt", "images/validation"])
def test_a_layout_renames_a_split_wherever_it_is_found(place, folder, tmp_path):
    (folder / "photos").rename(folder / "images")
    (folder / "validation").mkdir()  # no list of ids
    if place.endswith(".txt"):
        (folder / place).parent.mkdir(exist_ok=True)
        (folder / place).write_text("0\n2\n")
    else:
        (folder / place).mkdir()
        for name in ("0.png", "2.bmp"):
            (folder / "images" / name).rename(folder / place / name)
        (folder / "depth/validation").mkdir()
        (folder / "depth/0.npy").rename(folder / "depth/validation/0.npy")
        (folder / place / ".cache").mkdir()
        (folder / place / ".cache/2.bmp").touch()  # of a program, no image of the split
    layout = {"lanes": "masks", "val": "validation"}
    data = load_dense_dataset(folder, ["depth"], "val", layout=layout, cache_dir=str(tmp_path / "cache"))
    assert [image_id[-1] for image_id in data["image_id"]] == ["0", "2"]


def test_a_folder_that_is_a_split_is_read_behind_links_and_its_other_files_are_noted(folder, tmp_path):
    (folder / "photos").rename(tmp_path / "elsewhere")
    (folder / "photos").mkdir()
    (folder / "photos/city").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/round").symlink_to(folder / "photos")
    for name in ("b.Png", "city/c.jfif", ".hidden"):
        (folder / "photos" / name).touch()
    layout = {"image": "photos", "depth": "depth", "train": "photos"}
    report = check_dataset(folder, ["depth"], ["train"], layout=layout)
    assert report.counts == {"train": 4}
    [note] = [note for note in report.notes if note.startswith("Files")]
    assert note == "Files of the split train whose endings are of no image: 2, such as b.Png, city/c.jfif."
    with pytest.warns(UserWarning, match="no label of depth"):
        data = load_dense_dataset(folder, ["depth"], layout=layout, cache_dir=str(tmp_path / "cache"))
    assert data["image_id"][:] == [f"city/{number}" for number in range(4)]


def test_a_list_of_windows_is_read(folder, tmp_path):
    (folder / "lists/all.txt").write_text("0\n2\n", encoding="utf-8-sig")
    data = load_dense_dataset(folder, TWO, layout=LAYOUT, cache_dir=str(tmp_path / "cache"))
    assert data["image_id"][:] == ["0", "2"]


def test_a_corrected_layout_reads_the_labels_anew(folder, tmp_path):
    register_task(TASKS["lanes"].__class__("again", classes=TASKS["lanes"].classes, colors=TASKS["lanes"].colors))
    (folder / "empty").mkdir()
    read = {}
    for full, empty in (("lanes", "again"), ("again", "lanes")):
        layout = LAYOUT | {full: "masks", empty: "empty"}
        with pytest.warns(UserWarning, match=f"no label of {empty} for any other image"):
            read[full] = load_dense_dataset(
                folder, ["lanes", "again"], layout=layout, cache_dir=str(tmp_path / "cache")
            )
    assert read["lanes"][0]["lanes"] is not None and read["again"][0]["lanes"] is None


def test_faults_of_a_folder_are_named(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data/normals: no such folder\. .* name their folder in the layout"):
        load_dense_dataset(folder, ["normals"], layout=LAYOUT)
    PILImage.new("RGB", (WIDTH, HEIGHT), (1, 2, 3)).save(folder / "masks/0.png")
    np.save(folder / "depth/0.npy", np.ones((4, 5), np.float32))
    (folder / "depth/1.npy").write_bytes(b"404")
    report = check_dataset(folder, TWO, ["train"], layout=LAYOUT)
    assert [fault.split(": found ")[1][:15] for fault in report.faults] == [
        "colours of no c",
        "5 x 4 pixels, i",
        "a damaged array",
    ]
    assert report.notes[0] == "Labels of depth that are missing: 2, such as 2, 3."
    with pytest.raises(ValueError, match=r"masks/0\.png: found colours of no class in 100\.0%"):
        load_dense_dataset(folder, TWO, layout=LAYOUT, cache_dir=str(tmp_path / "cache"))
    PILImage.new("L", (1, 1)).save(folder / "masks/0.tif")
    with pytest.raises(ValueError, match=r"masks/0\.tif: found 2 files of this name, such as .*0\.png\. Keep one"):
        load_dense_dataset(folder, TWO, layout=LAYOUT)
    (folder / "lists/all.txt").write_text("0\n./0\n")  # of `find`
    with pytest.raises(ValueError, match=r"found ids listed more than once: 0\."):
        load_dense_dataset(folder, TWO, layout=LAYOUT)
    (folder / "lists/all.txt").write_text("0\n1\n", encoding="utf-16")
    with pytest.raises(ValueError, match=r"all\.txt: found no text in UTF-8"):
        load_dense_dataset(folder, TWO, layout=LAYOUT)
    (folder / "lists/all.txt").write_text("../secret\n")
    with pytest.raises(ValueError, match=r"found '\.\./secret', which cannot be image ids"):
        load_dense_dataset(folder, TWO, layout=LAYOUT)


def test_the_command_checks_what_a_recipes_file_describes(folder, tmp_path, capsys):
    rows = {name: TASKS.pop(name).to_dict() for name in TWO}
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({"tasks": [{name: rows[name]} for name in TWO], "layout": LAYOUT}))
    assert main(["data", "check", str(folder), "--config", str(file)]) == 0
    output = capsys.readouterr().out.splitlines()
    assert output[-1] == f"No faults in {folder}: images 4 train, 4 val; tasks lanes, depth."
    assert output[:3] == [
        "Note: Images in several of the splits train, val: 4, such as 0, 1, 2.",
        "Note: Labels of depth that are missing: 2, such as 2, 3.",
        "Note: Labels of lanes that are missing: 2, such as 1, 3.",
    ]


@pytest.fixture
def hub_like():
    """A dataset with names of its own and without ids, arrays for depth, one of whose masks is missing."""
    features = Features(
        {"photo": Image(), "mask": Image(), "z": Array2D((HEIGHT, WIDTH), "float32"), "n": Value("int8")}
    )
    masks = [PILImage.fromarray(make_label("lanes", 0)), None]
    rows = {"photo": [PILImage.new("RGB", (WIDTH, HEIGHT))] * 2, "mask": masks, "n": [0, 1]}
    rows["z"] = [make_label("depth", number) for number in range(2)]
    return DatasetDict({"validation": Dataset.from_dict(rows, features)})


NAMES = {"image": "photo", "lanes": "mask", "depth": "z", "val": "validation"}


def test_columns_and_splits_of_any_dataset_are_mapped(hub_like, tmp_path):
    dataset = load_dense_dataset(hub_like, TWO, "val", layout=NAMES)
    samples = [dataset.with_transform(JointTransform((HEIGHT, WIDTH), train=False))[i] for i in range(2)]
    assert [sample["image_id"] for sample in samples] == [0, 1]
    for number, sample in enumerate(samples):
        np.testing.assert_array_equal(sample["depth"][0], make_label("depth", number))
    assert samples[1]["lanes"].unique().tolist() == [255]
    hub_like["validation"].to_parquet(tmp_path / "validation.parquet")
    again = load_dense_dataset(tmp_path, TWO, "val", layout=NAMES, cache_dir=str(tmp_path / "cache"))
    np.testing.assert_array_equal(np.array(again[1]["depth"]), make_label("depth", 1))
    with pytest.raises(ValueError, match=r"has the splits \['validation'\], not 'train'"):
        load_dense_dataset(hub_like, TWO, "train", layout=NAMES)
    with pytest.raises(ValueError, match=r"The layout names \['lane'\], which are none of image_id, image, "):
        load_dense_dataset(hub_like, TWO, "val", layout=NAMES | {"lane": "mask"})
    with pytest.raises(ValueError, match="found no normals of the right kind"):
        load_dense_dataset(hub_like["validation"], ["normals"], layout=NAMES)


def test_a_split_takes_no_parquet_files_of_another(hub_like, tmp_path):
    rows = hub_like["validation"]
    for name in ("train", "train-other", "val-00000-of-00002", "val-00001-of-00002", "val-other"):
        rows.to_parquet(tmp_path / f"{name}.parquet")
    layout = {name: column for name, column in NAMES.items() if name != "val"}

    def read(split):
        return load_dense_dataset(tmp_path, TWO, split, layout=layout, cache_dir=str(tmp_path / "cache"))

    assert [len(read(split)) for split in ("train", "val")] == [2, 4]
    rows.to_parquet(tmp_path / "val.parquet")
    with pytest.raises(ValueError, match=r"val\.parquet: found beside val-00000-of-00002\.parquet"):
        read("val")
    (tmp_path / "val.parquet").unlink()
    (tmp_path / "val-00001-of-00002.parquet").unlink()
    with pytest.raises(ValueError, match=r"found the parts \[0\] of 2 of the split 'val'"):
        read("val")
    for name in ("test-00000-of-00001-b42a775f407cee45", "other-00000", "other-00001"):  # as the Hub has them
        rows.to_parquet(tmp_path / f"{name}.parquet")
    assert [len(read(split)) for split in ("test", "other")] == [2, 4]


def test_a_folder_of_parquet_files_is_no_pattern(hub_like, tmp_path):
    rows = hub_like["validation"]
    for place, data in (("data1", rows.select([1])), ("data[12]", rows)):
        (tmp_path / place).mkdir()
        data.to_parquet(tmp_path / place / "val-clean.parquet")
    layout = NAMES | {"val": "val-clean"}
    data = load_dense_dataset(tmp_path / "data[12]", TWO, "val", layout=layout, cache_dir=str(tmp_path / "cache"))
    assert len(data) == 2


@pytest.mark.parametrize("kind", ["numpy", "torch", None])
def test_a_format_of_the_source_changes_nothing(kind, hub_like):
    rows = hub_like["validation"]
    own = rows.with_format(kind) if kind else rows.with_transform(lambda batch: {"photo": batch["photo"]})
    data = DatasetDict(validation=own)
    assert check_dataset(data, TWO, ["val"], layout=NAMES).faults == []
    assert shrink(load_dense_dataset(data, TWO, "val", layout=NAMES), 10)[0]["lanes"].size == (10, 8)


def test_a_layout_may_rename_any_split(hub_like, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    data = DatasetDict(train=hub_like["validation"], rest=hub_like["validation"])
    layout = {name: column for name, column in NAMES.items() if name != "val"} | {"extra": "rest"}
    assert check_dataset(data, TWO, ["train", "extra"], layout=layout).counts == {"train": 2, "extra": 2}
    files = write_shrunk(data, tmp_path / "small", 10, TWO, ["train", "extra"], layout=layout)
    assert [file.name for file in files] == ["train.parquet", "extra.parquet"]
    for read in (check_dataset, partial(write_shrunk, folder=tmp_path / "other", longest=10)):
        with pytest.raises(ValueError, match=r"The layout names \['lane'\], which are none of image_id, .*extra"):
            read(source=data, tasks=TWO, splits=["train", "extra"], layout=layout | {"lane": "mask"})


@pytest.mark.parametrize(("source", "arguments", "error", "message"), [
    ("rows", {"splits": "val"}, TypeError, r"\['splits'\] are those of datasets\.load_dataset.* a Dataset\. Leave"),
    ("dict", {"num_procs": 3}, TypeError, r"\['num_procs'\] are those of .* a DatasetDict\. Leave"),
    ("folder", {"revision": "x"}, TypeError, r"\['revision'\] are those of .* a folder of files\. Leave"),
    ("user/name", {"streaming": True}, ValueError, "has a length.*Leave out `streaming=True`"),
    ("stream", {}, TypeError, "got the type IterableDataset. Load a dataset without `streaming=True`"),
])  # fmt: skip
def test_arguments_without_effect_and_streams_are_refused(source, arguments, error, message, hub_like, folder):
    rows = hub_like["validation"]
    sources = {"rows": rows, "dict": hub_like, "stream": rows.to_iterable_dataset(), "folder": folder}
    layout = LAYOUT if source == "folder" else NAMES
    with pytest.raises(error, match=message):
        load_dense_dataset(sources.get(source, source), TWO, "val", layout=layout, **arguments)


def test_splits_are_a_list_of_names(folder):
    with pytest.raises(TypeError, match=r"`splits` must be a list of strings, got 'train'\. Write \['train'\]"):
        check_dataset(folder, TWO, "train", layout=LAYOUT)
    with pytest.raises(ValueError, match="`splits` must name at least one split"):
        check_dataset(folder, TWO, [], layout=LAYOUT)
    assert check_dataset(folder, TWO, [Split.TRAIN], layout=LAYOUT).counts == {"train": 4}


def test_a_named_split_of_datasets_is_a_split(folder, tmp_path):
    assert len(load_dense_dataset(folder, TWO, Split.TRAIN, layout=LAYOUT, cache_dir=str(tmp_path / "cache"))) == 4


def test_ids_that_rows_share_are_noted(hub_like):
    again = hub_like["validation"].add_column("image_id", ["a", "a"])
    data = DatasetDict(train=hub_like["validation"].add_column("image_id", ["a", "b"]), val=again)
    layout = {name: column for name, column in NAMES.items() if name != "val"}
    notes = check_dataset(data, TWO, layout=layout).notes
    assert "Ids of several rows of the split val: 1, such as a." in notes
    assert "Ids of rows in several of the splits train, val: 1, such as a." in notes
    numbered = DatasetDict(train=hub_like["validation"], val=hub_like["validation"])  # ids are row numbers
    assert not [note for note in check_dataset(numbered, TWO, layout=layout).notes if "splits" in note]


def test_a_dataset_is_checked_as_a_folder_is(hub_like):
    broken = hub_like["validation"].map(lambda row: {"mask": PILImage.new("RGB", (9, 9))} if row["n"] else {"n": 0})
    report = check_dataset(DatasetDict(validation=broken), TWO, ["val"], layout=NAMES)
    assert report.faults == [
        "lanes of 1 (val): found 9 x 9 pixels, its image has 40 x 33; labels must have the size of their image."
    ]
    assert check_dataset(hub_like, TWO, ["val"], layout=NAMES).faults == []


def with_orientation(value):
    exif = PILImage.Exif()
    exif[PILImage.ExifTags.Base.Orientation] = value
    return exif


@pytest.mark.parametrize("place", ["photos", "masks"])
def test_a_tiff_with_an_orientation_is_refused(folder, place):
    """Pillow turns it while it loads, and an image of another format is read as it is stored."""
    image = PILImage.open(folder / place / "0.png")
    (folder / place / "0.png").unlink()
    for value in (0, 1, 9):
        image.save(folder / place / "0.tif", exif=with_orientation(value))
        assert check_dataset(folder, TWO, ["train"], layout=LAYOUT).faults == []
    for value in (3, 6):
        image.save(folder / place / "0.tif", exif=with_orientation(value))
        [fault] = check_dataset(folder, TWO, ["train"], layout=LAYOUT).faults
        assert f"{place}/0.tif: found a TIFF with an orientation, by which some programs turn it" in fault


@pytest.mark.parametrize("has_bytes", [True, False])
def test_images_that_datasets_turns_are_noted(hub_like, tmp_path, has_bytes):
    """It decodes a JPEG or TIFF upright, and the label of it has no orientation."""
    photos = []
    for number, suffix in enumerate(("jpg", "tif")):
        file = tmp_path / f"{number}.{suffix}"
        PILImage.new("RGB", (WIDTH, HEIGHT)).save(file, exif=with_orientation(3))
        photos.append({"bytes": file.read_bytes(), "path": None} if has_bytes else {"bytes": None, "path": str(file)})
    rows = hub_like["validation"].remove_columns("photo").add_column("photo", photos).cast_column("photo", Image())
    note = "Images that an EXIF orientation turns, whose labels must fit the turned image: 2, such as 0, 1."
    report = check_dataset(rows, TWO, ["val"], layout=NAMES)
    assert report.faults == [] and note in report.notes
    assert not any("EXIF" in note for note in check_dataset(hub_like, TWO, ["val"], layout=NAMES).notes)


def test_swapped_sides_are_traced_to_an_orientation(hub_like, tmp_path):
    PILImage.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "0.jpg", exif=with_orientation(6))
    photos = [{"bytes": (tmp_path / "0.jpg").read_bytes(), "path": None}] * 2
    rows = hub_like["validation"].remove_columns("photo").add_column("photo", photos).cast_column("photo", Image())
    faults = check_dataset(rows, TWO, ["val"], layout=NAMES).faults
    assert len(faults) == 3 and faults[0] == (
        "lanes of 0 (val): found 40 x 33 pixels, its image has 33 x 40; labels must have the size of their image; an "
        "EXIF orientation of the image may have swapped its sides."
    )


def test_columns_that_are_not_decoded_are_named_by_their_type(hub_like):
    cast = r"the type dict.*[Cc]ast its column to datasets\.Image\(\)"
    for column, count in (("photo", 2), ("mask", 1)):  # of which one is missing
        rows = hub_like["validation"].cast_column(column, Image(decode=False))
        faults = check_dataset(rows, ["lanes"], ["val"], layout=NAMES).faults
        assert len(faults) == count and all(re.search(cast, fault) for fault in faults)
        with pytest.raises(ValueError, match=cast):
            load_dense_dataset(rows, ["lanes"], layout=NAMES).with_transform(JointTransform(8, train=False))[0]


def test_a_layout_of_other_names_than_a_copy_has_is_told(hub_like, tmp_path):
    layout = {name: column for name, column in NAMES.items() if name != "val"}
    copied = hub_like["validation"].rename_columns({"photo": "image", "mask": "lanes", "z": "depth"})
    with pytest.raises(ValueError, match="Take image, lanes, depth out of the layout: the dataset has columns of"):
        load_dense_dataset(copied, TWO, layout=layout)


def test_a_dataset_without_rows_is_refused(hub_like):
    with pytest.raises(ValueError, match="this Dataset: found no rows"):
        load_dense_dataset(hub_like["validation"].select([]), TWO, layout=NAMES)


def test_labels_without_a_valid_pixel_are_noted(folder):
    assert all("without a" not in note for note in check_dataset(folder, TWO, ["train"], layout=LAYOUT).notes)
    PILImage.new("L", (WIDTH, HEIGHT), 255).save(folder / "masks/0.png")
    np.save(folder / "depth/0.npy", np.full((HEIGHT, WIDTH), np.nan, np.float32))
    notes = check_dataset(folder, TWO, ["train"], layout=LAYOUT).notes
    assert "Labels of lanes without a labelled pixel: 1, such as 0." in notes
    assert "Labels of depth without a valid value: 1, such as 0." in notes


def test_an_id_without_an_image_is_one_fault_and_no_note(folder):
    (folder / "lists/all.txt").write_text("0\nghost\n")
    report = check_dataset(folder, TWO, ["train"], layout=LAYOUT)
    assert len(report.faults) == 1 and not any("ghost" in note for note in report.notes)


def test_unknown_columns_and_tasks_are_refused(dataset):
    del TASKS["depth"]
    with pytest.raises(ValueError, match=r"The columns \['depth'\] are no tasks; known are semseg, .*`register_task`"):
        dataset.with_transform(JointTransform(32, train=True))[0]
    with pytest.raises(ValueError, match=r"Unknown tasks \['depth'\]"):
        collate([{"image_id": "a", "pixel_values": torch.zeros(3, 4, 4), "depth": torch.zeros(1, 4, 4)}])


def test_samples_of_different_tasks_make_one_batch(dataset):
    joint = JointTransform(32, train=False)
    parts = [dataset.remove_columns(task).with_transform(joint)[0] for task in TWO]
    for samples in (parts, parts[::-1]):
        labels = collate(samples)["labels"]
        assert {task: tuple(label.shape) for task, label in labels.items()} == {
            "lanes": (2, 32, 32),
            "depth": (2, 1, 32, 32),
        }
    assert (labels["lanes"][1] == 255).all() and labels["depth"][0].isnan().all()
    assert list(collate(parts[:1], ["depth", "saliency"])["labels"]) == ["depth", "saliency"]


def test_missing_labels_give_no_loss_no_score_and_no_fault(dataset):
    model = make_dense(TWO)
    transformed = dataset.with_transform(JointTransform(32, train=False))
    whole, nothing = collate([transformed[0]]), collate([transformed[3]])
    output = model(**nothing)
    assert output.loss == 0
    output.loss.backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())
    losses = add_gradients(model, [whole, nothing], TWO, Accelerator(cpu=True))
    expected = model(**whole).losses
    torch.testing.assert_close(losses, torch.stack([expected[task] for task in TWO]).detach(), rtol=1e-4, atol=1e-5)
    scores = [evaluate_tasks(model, batches, TWO, Accelerator(cpu=True)) for batches in ([whole], [whole, nothing])]
    assert scores[0] == scores[1]
    unmeasured = evaluate_tasks(model, [nothing], TWO, Accelerator(cpu=True))
    assert all(math.isnan(score) for values in unmeasured.values() for score in values.values())


def test_labels_that_lack_classes_are_said_at_the_first_evaluation():
    """Five classes that are called semseg score a mean over 21."""
    labels = torch.arange(5).repeat_interleave(13).view(1, 5, 13)
    batch = {"pixel_values": torch.randn(1, 3, 32, 32), "labels": {"semseg": labels}}
    with pytest.warns(
        UserWarning, match=r"Labels of 'semseg' hold 5 of its 21 classes: background, .* `segmentation`"
    ):
        evaluate_tasks(make_dense(["semseg"]), [batch], ["semseg"], Accelerator(cpu=True))


CONFIGS = Path(__file__).parents[2] / "recipes/configs"


def load_as(config, folder, cache, split="train"):
    """The first sample of a folder that is read as a config of the recipe says, at its own size."""
    settings = yaml.safe_load((CONFIGS / config).read_text())
    names = declare_tasks(settings["tasks"])
    dataset = load_dense_dataset(folder, names, split, layout=settings["layout"], cache_dir=str(cache))
    return dataset.with_transform(JointTransform((HEIGHT, WIDTH), train=False))[0]


def test_the_archive_of_nyud_is_read_by_its_config(tmp_path):
    """NYUD_MT of the multi-task literature: pictures of classes with 0 for none, arrays for all else."""
    del TASKS["depth"]
    root, random = tmp_path / "NYUD_MT", np.random.default_rng(0)
    classes = random.integers(0, 41, (HEIGHT, WIDTH), np.uint8)
    depth = (9 * random.random((HEIGHT, WIDTH)) + 0.5).astype(np.float32)
    normals = random.normal(size=(HEIGHT, WIDTH, 3)).astype(np.float32)
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    normals[:3] = 0
    edges = random.integers(0, 2, (HEIGHT, WIDTH)).astype(np.float64)
    for name in ("images", "segmentation", "depth", "normals", "edge", "gt_sets"):
        (root / name).mkdir(parents=True)
    PILImage.new("RGB", (WIDTH, HEIGHT)).save(root / "images/0001.jpg")
    PILImage.fromarray(classes).save(root / "segmentation/0001.png")
    for name, values in (("depth", depth), ("normals", normals), ("edge", edges)):
        np.save(root / name / "0001.npy", values)
    (root / "gt_sets/train.txt").write_text("0001\n")
    sample = load_as("nyud_swin_tiny_polyhistor_lite.yaml", root, tmp_path / "cache")
    np.testing.assert_array_equal(sample["semseg40"], np.where(classes, classes.astype(int) - 1, 255))
    np.testing.assert_array_equal(sample["depth"][0], depth)
    np.testing.assert_array_equal(sample["edges"][0], edges)
    found = sample["normals_nyud"].movedim(0, -1).numpy()
    assert not found[:3].any()
    np.testing.assert_allclose(found[3:], normals[3:], atol=0.01)  # 8 bits
    assert TASKS["edges"].metric().tolerance == 0.011 and TASKS["semseg40"].class_names[39] == "other prop"


def test_cityscapes_is_read_by_its_config(tmp_path):
    """Folders of cities, no lists, and longer names of files than their ids."""
    for folder, end, mode, value in (
        ("leftImg8bit", "leftImg8bit", "RGB", 0),
        ("gtFine", "gtFine_labelIds", "L", 24),
        ("disparity", "disparity", "I;16", 2560),
    ):
        place = tmp_path / "C" / folder / "val/bonn"
        place.mkdir(parents=True)
        PILImage.new(mode, (WIDTH, HEIGHT), value).save(place / f"bonn_0_{end}.png")
        PILImage.new("L", (WIDTH, HEIGHT), 3).save(place / "bonn_0_other.png")
    sample = load_as("cityscapes_swin_tiny_polyhistor_lite.yaml", tmp_path / "C", tmp_path / "cache", "val")
    assert sample["image_id"] == "val/bonn/bonn_0"
    assert sample["semseg19"].unique().tolist() == [TASKS["semseg19"].class_names.index("person")]
    assert sample["disparity"].unique().tolist() == [10]


@pytest.mark.parametrize("kind", [FileNotFoundError, ConnectionError])
def test_a_folder_that_is_missing_is_named_before_the_hub(kind, tmp_path, monkeypatch):
    def load(*arguments, **options):
        raise kind("No such dataset.")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loading, "load_dataset", load)
    with pytest.raises(kind, match=r"some/data is no folder, so some/data was looked for on the Hub\. No such"):
        load_dense_dataset("some/data", ["semseg"], "train")


@pytest.mark.parametrize("source", ["./data", "~/data", "/some/data", "some/data/images"])
def test_what_can_be_no_id_of_the_hub_is_not_looked_for_there(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loading, "load_dataset", pytest.fail)
    with pytest.raises(
        FileNotFoundError, match=rf"There is no folder '{source}'\. Give a folder of images and labels"
    ):
        load_dense_dataset(source, ["semseg"], "train")


def test_tasks_may_share_a_column(hub_like):
    register_task(segmentation("lanes2", classes=["road", "lane", "curb"]))
    dataset = load_dense_dataset(hub_like, ["lanes", "lanes2"], "val", layout=NAMES | {"lanes2": "mask"})
    assert dataset.column_names == ["image_id", "image", "lanes", "lanes2"]
    sample = dataset.with_transform(JointTransform((HEIGHT, WIDTH), train=False))[0]
    for task in ("lanes", "lanes2"):
        np.testing.assert_array_equal(sample[task], make_label("lanes", 0))


@pytest.mark.parametrize("line", ["0.png", "photos/0.png", "photos/0.png masks/0.png"])
def test_an_id_that_is_the_name_of_a_file_is_told(folder, line):
    (folder / "lists" / "all.txt").write_text(line)
    faults = check_dataset(folder, ["lanes"], ["train"], layout=LAYOUT).faults
    assert any(fault.endswith("List an image without its suffix and the folder of the images: 0.") for fault in faults)


def test_a_task_without_a_single_label_in_a_split_is_named(folder, hub_like, tmp_path):
    layout = LAYOUT | {"lanes": "masks/*_mask.png"}
    lack = r"masks/0: no such file with an ending of _mask\.png, and no label of lanes for any other .* 'train'"
    [fault] = check_dataset(folder, TWO, ["train"], layout=layout).faults
    assert re.search(lack, fault)
    with pytest.warns(UserWarning, match=lack):
        load_dense_dataset(folder, TWO, layout=layout, cache_dir=str(tmp_path / "cache"))
    rows = DatasetDict(train=hub_like["validation"].select([1]), val=hub_like["validation"])
    [fault] = check_dataset(rows, TWO, layout={name: NAMES[name] for name in ("image", *TWO)}).faults
    assert fault.startswith("No image of the split 'train' has a label of lanes. Correct the layout")


@pytest.mark.parametrize("name", ["masks/m_*.png", "m*", "masks/*/*.png"])
def test_a_star_stands_for_the_id_alone(folder, name):
    for column in ("image", "lanes"):
        with pytest.raises(ValueError, match=f"The layout has {re.escape(repr(name))}, where file names must be one"):
            load_dense_dataset(folder, TWO, layout=LAYOUT | {column: name})


def test_arrays_of_a_wrong_shape_are_faults_among_others(folder):
    np.save(folder / "depth/0.npy", np.ones((HEIGHT, WIDTH, 3), np.float32))
    (folder / "masks/2.png").write_text("404")
    faults = check_dataset(folder, TWO, ["train"], layout=LAYOUT).faults
    assert [fault.split(": ")[0].split("/")[-1] for fault in faults] == ["0.npy", "2.png"]
    assert "0.npy: found an array of float32 with shape (33, 40, 3), allowed are" in faults[0]
    batch = {"image_id": ["a"], "image": [PILImage.new("RGB", (WIDTH, HEIGHT))], "depth": [np.ones((2, 3, 5))]}
    with pytest.raises(ValueError, match=r"depth of a: found an array of float64 with shape \(2, 3, 5\)"):
        JointTransform(8, train=False)(batch)


def test_images_of_16_bits_are_refused_before_they_are_clipped(folder, hub_like, tmp_path):
    deep = PILImage.fromarray(np.full((HEIGHT, WIDTH), 4000, np.uint16))
    deep.save(folder / "photos/0.png")
    message = "must be a PIL image of 8 bits per channel, e.g. mode RGB or L, got mode I;16. Convert it"
    [fault] = check_dataset(folder, ["lanes"], ["train"], layout=LAYOUT).faults
    assert f"photos/0.png: the image {message}" in fault
    with pytest.raises(ValueError, match=r"photos/0\.png: the image must be"):
        load_dense_dataset(folder, ["lanes"], layout=LAYOUT, cache_dir=str(tmp_path / "cache"))
    rows = hub_like["validation"].map(lambda row: {"photo": deep} if row["n"] else {"n": 0})
    [fault] = check_dataset(rows, ["lanes"], ["val"], layout=NAMES).faults
    assert fault.startswith(f"image of 1 (val): it {message}") and not fault.endswith("..")
    with pytest.raises(ValueError, match="The image of 1 must be a PIL image of 8 bits"):
        shrink(load_dense_dataset(rows, ["lanes"], "val", layout=NAMES), 20)
