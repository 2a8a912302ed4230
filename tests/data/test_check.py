# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
import pytest

from peft_polyhistor.data import find_faults
from peft_polyhistor.data.__main__ import main


def damage(archive):
    """Five faults, of which one picture has two."""
    (archive / "ImageSets/Context/val.txt").write_text("2008_000004\n2008_000004\n")
    (archive / "JPEGImages/2008_000001.jpg").write_text("404")
    (archive / "semseg/VOC12/2008_000001.png").unlink()
    (archive / "human_parts/2008_000003.mat").write_text("404")
    (archive / "sal_distill/2008_000004.png").unlink()


@pytest.mark.parametrize("workers", [1, 2])
def test_all_faults_are_found_in_one_go(workers, archive):
    assert find_faults(archive, workers=workers) == []
    damage(archive)
    faults = find_faults(archive, workers=workers)
    files = [fault.split(":")[0].removeprefix(f"{archive}/") for fault in faults]
    assert files == [
        "ImageSets/Context/val.txt",
        "JPEGImages/2008_000001.jpg",
        "semseg/pascal-context/2008_000001.png",
        "human_parts/2008_000003.mat",
        "sal_distill/2008_000004.png",
    ]
    assert len(find_faults(archive, ["semseg"], ["train"], workers=workers)) == 2


def test_command_sums_up_a_whole_archive(archive, capsys):
    assert main(["check", str(archive)]) == 0
    assert capsys.readouterr().out == (
        f"No faults in {archive}: pictures 3 train, 1 val; tasks semseg, human_parts, saliency, normals.\n"
    )


def test_command_lists_faults_and_fails(archive, capsys):
    damage(archive)
    assert main(["check", str(archive), "--tasks", "saliency", "--splits", "val"]) == 1
    output = capsys.readouterr()
    assert [line.split(": ")[1][:9] for line in output.out.splitlines()] == ["found ids", "no such f"]
    assert output.err.endswith(f"2 faults in {archive}.\n")


def test_command_names_a_wrong_folder(tmp_path, capsys):
    assert main(["check", str(tmp_path)]) == 1
    assert "no folder ImageSets/Context" in capsys.readouterr().out


def test_unknown_splits_are_refused(archive):
    with pytest.raises(ValueError, match=r"Unknown splits \['test'\]; PASCAL_MT has train, val"):
        find_faults(archive, splits=["train", "test"])
