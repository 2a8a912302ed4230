# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
import multiprocessing
import os
import sys

import numpy as np
import pytest
from PIL import Image

from peft_polyhistor import TASKS, binary, register_task, regression, segmentation, vectors
from peft_polyhistor.__main__ import main
from peft_polyhistor.data import check_dataset, decode, load_dense_dataset


def damage(archive):
    """Five faults, of which one picture has two."""
    (archive / "ImageSets/Context/val.txt").write_text("2008_000004\n2008_000004\n")
    (archive / "JPEGImages/2008_000001.jpg").write_text("404")
    (archive / "semseg/VOC12/2008_000001.png").unlink()
    (archive / "human_parts/2008_000003.mat").write_text("404")
    (archive / "sal_distill/2008_000004.png").unlink()


@pytest.mark.parametrize("workers", [1, 2])
def test_all_faults_are_found_in_one_go(workers, archive):
    assert check_dataset(archive, workers=workers).faults == []
    damage(archive)
    faults = check_dataset(archive, workers=workers).faults
    files = [fault.split(":")[0].removeprefix(f"{archive}/") for fault in faults]
    assert files == [
        "ImageSets/Context/val.txt",
        "JPEGImages/2008_000001.jpg",
        "semseg/pascal-context/2008_000001.png",
        "human_parts/2008_000003.mat",
        "sal_distill/2008_000004.png",
    ]
    assert len(check_dataset(archive, ["semseg"], ["train"], workers=workers).faults) == 2


def test_command_sums_up_a_whole_archive(archive, capsys):
    assert main(["data", "check", str(archive)]) == 0
    assert capsys.readouterr().out.endswith(
        f"No faults in {archive}: images 3 train, 1 val; tasks semseg, human_parts, saliency, normals.\n"
    )


def test_labels_that_are_read_in_a_way_of_their_own_are_noted(archive, capsys):
    for image_id in ("2008_000001", "2008_000002"):
        path = archive / f"sal_distill/{image_id}.png"
        Image.fromarray(np.asarray(Image.open(path)) // 128).save(path)
    path = archive / "normals_distill/2008_000004.png"
    colors = np.array(Image.open(path))
    colors[3:5, 1] = 128
    Image.fromarray(colors).save(path)
    report = check_dataset(archive)
    assert report.faults == []
    two = "2008_000001, 2008_000002"
    assert report.notes[:3] == [
        f"Images below 32 pixels, the coarsest stride of the encoders: 4, such as {two}, 2008_000003.",
        "Labels of normals with colours far from a unit vector, which are ignored: 1, such as 2008_000004.",
        f"Labels of saliency with the values 0 and 1 only, which are read as masks: 2, such as {two}.",
    ]
    semseg, parts = report.notes[3:]
    assert semseg.startswith("No label of semseg holds 17 of its classes: bicycle, bird,")
    assert parts == "No label of human_parts holds 3 of its classes: upper arm, upper leg, lower leg."
    assert main(["data", "check", str(archive), "--tasks", "saliency"]) == 0
    assert "\nNote: Labels of saliency with the values 0 and 1 only" in capsys.readouterr().out


@pytest.mark.skipif(multiprocessing.get_start_method() != "fork", reason="a worker must inherit what is patched")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_file_that_ends_its_process_is_a_fault_among_others(workers, archive, monkeypatch):
    damage(archive)
    expected = check_dataset(archive).faults
    read = decode.READERS["normals"]

    def die(path, *arguments):
        return os._exit(1) if "000002" in path.name else read(path, *arguments)

    monkeypatch.setitem(decode.READERS, "normals", die)
    faults = check_dataset(archive, workers=workers).faults
    [crash] = [fault for fault in faults if fault not in expected]
    assert [fault for fault in faults if fault != crash] == expected
    assert "normals_distill/2008_000002.png or " in crash and crash.endswith(
        "crashes the process which reads it. Restore it."
    )


def test_archives_say_what_to_install_where_scipy_is_missing(archive, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "scipy", None)
    for tasks in (["human_parts"], ["semseg", "normals"]):
        with pytest.raises(ImportError, match=r"'scipy' is not installed, .*peft-polyhistor\[train\]"):
            load_dense_dataset(archive, tasks)
    assert main(["data", "check", str(archive)]) == 1
    assert "'scipy' is not installed" in capsys.readouterr().err
    assert check_dataset(archive, ["semseg", "saliency"]).faults == []


def test_command_lists_faults_and_fails(archive, capsys):
    damage(archive)
    assert main(["data", "check", str(archive), "--tasks", "saliency", "--splits", "val"]) == 1
    output = capsys.readouterr()
    faults = [line for line in output.out.splitlines() if not line.startswith("Note: ")]
    assert [line.split(": ")[1][:9] for line in faults] == ["found ids", "no such f"]
    assert output.err.endswith(f"2 faults in {archive}.\n")


def test_command_names_a_wrong_folder_and_a_missing_config(tmp_path, capsys):
    assert main(["data", "check", str(tmp_path)]) == 1
    assert "found neither ImageSets/Context" in capsys.readouterr().out
    assert main(["data", "check", str(tmp_path), "--config", str(tmp_path / "own.yaml")]) == 1
    assert f"There is no file '{tmp_path / 'own.yaml'}'. Give a YAML file" in capsys.readouterr().err


def test_unknown_splits_are_refused(archive):
    with pytest.raises(ValueError, match=r"Unknown splits \['test'\]; PASCAL_MT has train, val"):
        check_dataset(archive, splits=["train", "test"])


def test_numbers_without_a_valid_value_are_a_fault(tmp_path, capsys):
    for folder, mode in (("images", "RGB"), ("depth", "I;16")):
        (tmp_path / folder).mkdir()
        for name in ("one", "two"):
            Image.new(mode, (40, 40), 1500 if folder == "depth" else None).save(tmp_path / folder / f"{name}.png")
    for split in ("train", "val"):
        (tmp_path / f"{split}.txt").write_text("one\ntwo\n")
    config = tmp_path / "own.yaml"
    row = "tasks: [depth: {kind: regression, unit: m, valid: [0.1, 80]"
    config.write_text(f"{row}}}]")
    assert main(["data", "check", str(tmp_path), "--config", str(config)]) == 1
    fault = "None of the 2 labels of depth has a value in valid=(0.1, 80) after scale=1.0. Give the `scale`"
    assert fault in capsys.readouterr().out
    TASKS.pop("depth")
    config.write_text(f"{row}, scale: 0.001}}]")
    assert main(["data", "check", str(tmp_path), "--config", str(config)]) == 0


@pytest.mark.parametrize(("task", "label", "fault"), [
    (segmentation("own", classes=["road", "lane"]), Image.new("L", (40, 40), 255), "holds one of its classes"),
    (binary("own", ignore=7), Image.new("L", (40, 40), 7), "has a pixel other than ignore=7"),
    (binary("own"), Image.new("L", (40, 40), 2), "has foreground. In masks of 0 and 1 the foreground is 1"),
    (binary("own"), Image.new("L", (40, 40), 255), "has background."),
    (vectors("own"), Image.new("RGB", (40, 40)), "holds a unit vector"),
])  # fmt: skip
def test_labels_that_teach_nothing_together_are_a_fault(task, label, fault, tmp_path):
    register_task(task)
    for folder, image in (("images", Image.new("RGB", (40, 40))), ("own", label)):
        (tmp_path / folder).mkdir()
        image.save(tmp_path / folder / "one.png")
    (tmp_path / "train.txt").write_text("one\n")
    [found] = check_dataset(tmp_path, ["own"], splits=["train"]).faults
    assert found.startswith(f"None of the 1 labels of own {fault}")


def test_images_of_two_splits_and_labels_of_fewer_bits_are_noted(tmp_path):
    names = ["one", "two", "three"]
    for folder, modes in (("images", ["RGB"] * 3), ("depth", ["I;16", "L", "I;16"])):
        (tmp_path / folder).mkdir()
        for name, mode in zip(names, modes, strict=True):
            Image.new(mode, (40, 40), 200 if folder == "depth" else None).save(tmp_path / folder / f"{name}.png")
    (tmp_path / "train.txt").write_text("one\ntwo\n")
    (tmp_path / "val.txt").write_text("two\nthree\n")
    register_task(regression("depth", unit="m", scale=0.001))
    report = check_dataset(tmp_path, ["depth"])
    assert report.faults == []
    assert report.notes == [
        "Images in several of the splits train, val: 1, such as two.",
        "Labels of depth with 8 bits a pixel, beside labels with more: 1, such as two.",
    ]
    assert check_dataset(tmp_path, ["depth"], ["train"]).notes == report.notes[1:]
    Image.new("I;16", (40, 40), 200).save(tmp_path / "depth" / "two.png")
    assert check_dataset(tmp_path, ["depth"], ["train"]).notes == []


def test_an_archive_with_a_layout_is_told_from_a_folder_without_images(archive):
    with pytest.raises(ValueError, match=r"found a PASCAL_MT archive, which takes no layout, got .*'lanes'"):
        check_dataset(archive, layout={"train": "lanes"})


@pytest.mark.parametrize(("text", "message"), [
    ("", "must hold one `name: value` a line, got None"),
    ("- semseg", "must hold one `name: value` a line, got ['semseg']"),
    ("tasks: 5", "Unknown tasks [5]"),
    ("tasks: saliency", None),
    ("tasks: ['edges: {kind: binary}', saliency]\nlayout: {image: JPEGImages}", "edges: no such folder"),
])  # fmt: skip
def test_the_command_reads_a_config_as_training_does(archive, tmp_path, capsys, text, message):
    config = tmp_path / "run.yaml"
    config.write_text(text)
    assert main(["data", "check", str(archive), "--config", str(config)]) == (message is not None)
    assert (message or "") in capsys.readouterr().err
