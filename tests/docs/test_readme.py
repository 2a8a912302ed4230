# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The README: its blocks run, and its figures and versions are those that are recorded elsewhere."""

import json
import re
from statistics import mean

import numpy as np
import paper.parameters
import pytest
import yaml
from documents import README, RECIPES, ROOT, blocks_of, read, tables_of
from methods_table import BASES, METHODS_UNDER_TEST
from peft import get_peft_model
from PIL import Image
from tiny_models import make_swin

import peft_polyhistor
from peft_polyhistor import (
    PASCAL_TASKS,
    TASKS,
    MultiTaskDenseModel,
    PolyhistorLiteConfig,
    declare_tasks,
    load,
    load_encoder,
)
from peft_polyhistor.studies.paper import read_rows
from peft_polyhistor.training.settings import Settings


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A working directory where the ids of the README are folders of small models."""
    monkeypatch.chdir(tmp_path)
    swin = make_swin(embed_dim=16)
    swin.save_pretrained("microsoft/swin-tiny-patch4-window7-224")
    adapted = get_peft_model(swin, PolyhistorLiteConfig(tasks=["semseg", "normals"]))
    adapted.save_pretrained("someone/polyhistor-lite-swin-tiny-pascal")
    dense = MultiTaskDenseModel.from_encoder(load_encoder("swin-mini"), PASCAL_TASKS, decoder_width=8, image_size=64)
    get_peft_model(dense, PolyhistorLiteConfig()).save_pretrained("runs/scenes/polyhistor_lite/best")
    Image.new("RGB", (80, 60)).save("photo.jpg")
    return tmp_path


def run(text, file, namespace):
    exec(compile(text, str(file), "exec"), namespace)


USE, PREDICT, OWN_TASK, PUBLISHED = blocks_of(README, "python")


@pytest.mark.parametrize("block", [USE, PREDICT], ids=["use", "predict"])
def test_a_python_block_runs_by_itself(block, published):
    run(block, README, {})


def test_there_are_no_python_blocks_that_do_not_run():
    assert "```py\n" not in read(README)


def test_the_model_of_an_own_task_loads_without_other_code(published):
    before = dict(TASKS)
    run(OWN_TASK, README, {})
    for name in set(TASKS) - set(before):
        del TASKS[name]
    loaded = load("my-lanes")
    assert TASKS["lanes"].class_names[3] == "car" and loaded.config.tasks == ["lanes", "depth"]


def test_the_published_adapter_is_merged_into_a_plain_model(published):
    namespace = {}
    run(PUBLISHED, README, namespace)
    assert type(namespace["plain"]).__name__ == "SwinModel" and (published / "swin-semseg/model.safetensors").is_file()


def test_the_python_blocks_of_the_recipes_run_in_order(published):
    namespace = {}
    for block in blocks_of(RECIPES, "python"):
        run(block, RECIPES, namespace)
    assert set(namespace["baked"].peft_config["default"].tasks) == {"depth"}


@pytest.mark.slow
def test_a_baked_model_is_exported_as_the_recipes_say(published):
    pytest.importorskip("onnxscript", reason="the extra 'slow' installs onnxscript")
    namespace = {}
    for block in blocks_of(RECIPES, "python"):
        run(block, RECIPES, namespace)
    [block] = blocks_of(RECIPES, "py")
    namespace["baked"].eval()
    run(block, RECIPES, namespace | {"pixels": namespace["torch"].randn(2, 3, 224, 224)})
    assert (published / "model.onnx").is_file()


def test_the_settings_of_the_readme_are_those_of_the_recipe():
    [block] = blocks_of(README, "yaml")
    lanes, depth = Settings(**yaml.safe_load(block)).tasks
    assert list(lanes) == ["lanes"] and TASKS["lanes"].class_names[1] == "lane"
    assert depth == {
        "depth": {"kind": "regression", "unit": "m", "scale": 0.001, "valid": [0.1, 80], "objective": "silog"}
    }


def test_the_tasks_of_all_kinds_read_the_labels_that_the_guide_describes():
    [block] = blocks_of(RECIPES, "yaml")
    lanes, depth, edges, surface = declare_tasks(yaml.safe_load(block)["tasks"])

    def read_label(task, values, dtype=np.uint8):
        return TASKS[task].read(Image.fromarray(np.array(values, dtype)))

    assert read_label(lanes, [[0, 1, 3]]).tolist() == [[255, 0, 2]]
    assert np.array_equal(read_label(depth, [[50, 7500]], np.uint16), [[np.nan, 7.5]], equal_nan=True)
    assert read_label(edges, [[0, 128, 255]]).tolist() == [[0, 255, 1]]
    vector, valid = read_label(surface, [[[255, 127, 127], [0, 0, 0]]])
    assert valid.tolist() == [[True, False]] and vector[:, 0, 0].round().tolist() == [1, 0, 0]


def test_the_two_commands_stand_as_they_are_run():
    commands = "\n".join(blocks_of(README, "bash")).splitlines()
    assert 'pip install -e ".[train]" && accelerate launch recipes/train_pascal.py' in commands
    assert re.findall(r"^pip install .*pytest.*$", read(README), flags=re.MULTILINE) == [
        'pip install -e ".[test]" && pytest'
    ]


def test_the_readme_is_short():
    assert len(read(README).splitlines()) <= 180


METHODS_TABLE = next(table for table in tables_of(README) if table[0][0] == "config")
METHODS_ROWS = [
    (name, passes, merges, parameters)
    for names, _, passes, merges, sizes in METHODS_TABLE[1:]
    for name, parameters in zip(re.findall(r"\w+Config", names), sizes.split("; "), strict=True)
]


def test_the_table_of_methods_is_complete():
    named = [name for name, *_ in METHODS_ROWS]
    assert sorted([*named, "DecodersConfig"]) == sorted(row.config_class.__name__ for row in METHODS_UNDER_TEST)


@pytest.mark.parametrize(("name", "passes", "merges", "parameters"), METHODS_ROWS)
def test_the_table_of_methods_is_right(name, passes, merges, parameters):
    config_class = getattr(peft_polyhistor, name)
    method = next(key for key, value in peft_polyhistor.METHODS.items() if value is config_class)
    assert f"{paper.parameters._count('Swin-T', method, '{}')['encoder']:,}" == parameters
    assert passes == ("one" if config_class.shares_pass else "one per task")
    [row] = [row for row in METHODS_UNDER_TEST if row.config_class is config_class]
    settings = {key: value for key, value in row.kwargs.items() if key != "sublayers"}
    model = get_peft_model(BASES[row.bases[0]](), config_class(tasks=["semseg", "normals"], **settings))
    assert merges == ("yes" if can_merge(model) else "no")


def can_merge(model):
    try:
        model.merge_and_unload(task="semseg")
    except ValueError:
        return False
    return True


def test_the_parameters_of_the_readme_are_those_of_the_paper():
    [titles, cells] = next(table for table in tables_of(README) if "Polyhistor-Lite" in table[0])
    names = {"Bitfit": "BitFit"}
    rows = {names.get(row.method, row.method): row for row in read_rows(paper.parameters.TABLES) if row.table == 1}
    for title, cell in zip(titles[1:], cells[1:], strict=True):
        ours = paper.parameters.to_millions(paper.parameters.count(rows[title])["encoder"])
        assert cell == f"{ours} / {rows[title].parameters['encoder']}"


def test_the_scores_of_the_main_job_are_recorded():
    pattern = r"the main job scores (.*) with decoders alone, and (.*) with Polyhistor-Lite: (\S+) %"
    decoders, lite, change = re.search(pattern, read(README)).groups()
    decoders, lite = (re.findall(r"\d+\.\d+", scores) for scores in (decoders, lite))
    recorded = json.loads(read(ROOT / "recipes/results/scenes_swin_mini_polyhistor_lite.json"))[0]["scores"]
    assert lite == [f"{next(iter(scores.values())):.2f}" for scores in recorded.values()]
    header = read(ROOT / "recipes/configs/scenes_swin_mini_polyhistor_lite.yaml")
    assert ", ".join(decoders) in header and f"change {change} %" in header


def test_the_changes_of_methods_are_recorded():
    table = next(table for table in tables_of(README) if table[0][-1] == "photographs, best rate")
    scenes, photographs = (
        json.loads(read(ROOT / f"recipes/results/rates_{data}.json")) for data in ("scenes", "photographs")
    )
    labels = ["single_task", "full", "adapter", "shared_adapter", "lora", "peft_lora", "polyhistor", "polyhistor_lite"]

    def best_of(changes):
        means = {rate: mean(values) for rate, values in changes.items()}
        best = max(means, key=lambda rate: means[rate])
        return f"{means[best]:+.2f} at {float(best):.0e}".replace("e-0", "e-")

    for label, row in zip(labels, table[1:], strict=True):
        in_paper = scenes.get(f"{label}_paper", scenes[label])
        assert row[1] == f"{scenes[label]['parameters']:,}" == f"{photographs[label]['parameters']:,}"
        assert row[3] == f"{mean(in_paper['changes']['0.0001']):+.2f}"
        assert row[4] == best_of(scenes[label]["changes"])
        assert row[5] == best_of(photographs[label]["changes"])


def test_the_speeds_are_recorded():
    table = next(table for table in tables_of(README) if table[0][1] == "224 px, seconds")
    at_224, at_512 = (found for found in tables_of(ROOT / "recipes/results/speed.md")[:2])
    names = ("frozen encoder, a pass per task", "polyhistor_lite", "PEFT LoRA", "full fine-tuning")
    for name, row in zip(names, table[1:], strict=True):
        [small], [large] = ([cells for cells in found if cells[0] == name] for found in (at_224, at_512))
        assert row[1:] == [small[1].split()[0], large[1].split()[0], large[2], large[-1]]


def test_the_versions_are_those_that_are_installed_and_run():
    project, middle = read(ROOT / "pyproject.toml"), read(ROOT / ".ci" / "versions_middle.txt")
    pattern = r"from Python (\S+), torch (\S+), transformers (\S+) and PEFT (\S+) to Python"
    python, *oldest = re.search(pattern, read(README)).groups()
    assert f'requires-python = ">={python}"' in project
    rows = {row[0]: row[1:] for row in tables_of(ROOT / "recipes/results/versions.md")[0]}
    for name, version in zip(("torch", "transformers", "peft"), oldest, strict=True):
        assert f'"{name}>={version}' in project and rows[name][0] == version
        assert f"{name}=={rows[name][1]}\n" in middle
