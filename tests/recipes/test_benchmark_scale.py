# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The benchmark of a data set of PASCAL-Context's size, its archive, and how it counts memory."""

import json
import subprocess
import sys

import pytest

from peft_polyhistor.data import find_faults


def test_prepares_and_iterates_and_leaves_figures_alone(load_recipe, tmp_path, capsys):
    recipe = load_recipe("benchmark_scale")
    archive = tmp_path / "PASCAL_MT"
    load_recipe("generated_archive").write_archive(archive, {"train": 3, "val": 2}, distinct=2)
    assert find_faults(archive) == []
    sizes = [file.stat().st_size for file in (archive / "JPEGImages").iterdir()]
    assert len(sizes) == 5 and min(sizes) > 70_000 and max(sizes) < 160_000
    assert len({file.stat().st_ino for file in (archive / "JPEGImages").iterdir()}) == 2

    options = recipe.Options(str(archive), image_size=32, batch_size=2, workers=[0], output_dir=str(tmp_path / "out"))
    results = recipe.main(options)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["results.json"]
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == results
    assert results["pictures"] == {"train": 3, "val": 2} and results["prepared_bytes"] > 5 * 70_000
    phases = ["prepare train", "prepare val", "iterate train, 0 workers", "iterate val, 0 workers"]
    assert list(results["phases"]) == phases
    assert all(figure > 50 for phase in results["phases"].values() for figure in phase["own_megabytes"])
    assert "iterate val, 0 workers" in capsys.readouterr().out


def test_memory_is_that_of_the_process_and_of_those_it_started(load_recipe):
    recipe = load_recipe("resident_memory")
    before = recipe.resident_memory()
    code = "held = bytes(range(256)) * 400_000; print(len(held), flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert int(process.stdout.readline()) == 102_400_000
        more = recipe.resident_memory().own - before.own
        assert 100e6 < recipe.resident_memory(process.pid).own < 150e6
        process.communicate(b"\n")
    assert 95e6 < more < 160e6
    assert recipe.growth([100] * 10 + [500] * 80 + [110] * 10) == pytest.approx(10)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train": 0}, "`train` must be at least 1, got 0"),
        ({"workers": []}, "`workers` must be at least one number"),
        ({"batch_size": 0}, "`batch_size` must be at least 1"),
    ],
)
def test_bad_options(load_recipe, values, message):
    with pytest.raises(ValueError, match=message):
        load_recipe("benchmark_scale").Options(**values)
