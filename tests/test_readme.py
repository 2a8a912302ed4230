# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The Python blocks of the README run, in order, in one namespace."""

import re
from pathlib import Path

import yaml
from train_pascal import Settings

from peft_polyhistor import TASKS, load
from peft_polyhistor.inference import MultiTaskPredictor


README = Path(__file__).parent.parent / "README.md"


def test_python_blocks_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(), flags=re.DOTALL | re.MULTILINE)
    assert len(blocks) == 5
    namespace, before = {}, dict(TASKS)
    for block in blocks:
        exec(compile(block, str(README), "exec"), namespace)
    assert set(TASKS) - set(before) == {"lanes", "depth"}
    for name in set(TASKS) - set(before):
        del TASKS[name]
    loaded = load("my-lanes")  # which brings its rows
    assert TASKS["lanes"].class_names[3] == "car" and loaded.config.tasks == ["lanes", "depth"]
    assert MultiTaskPredictor.from_pretrained("my-lanes").image_size == (64, 64)


def test_the_settings_of_the_readme_are_those_of_the_recipe():
    [block] = re.findall(r"^```yaml\n(.*?)^```", README.read_text(), flags=re.DOTALL | re.MULTILINE)
    settings = yaml.safe_load(block)
    lanes, depth = Settings(**settings | {"layout": [settings["layout"]]}).tasks
    assert list(lanes) == ["lanes"] and TASKS["lanes"].palette[1] == (255, 255, 0)
    assert depth == {"depth": {"kind": "regression", "unit": "m", "scale": 0.001, "valid": [0.1, 80]}}


def test_ci_runs_the_test_command_of_the_readme():
    commands = re.findall(r"^pip install .*pytest.*$", README.read_text(), flags=re.MULTILINE)
    assert commands == ['pip install -e ".[test]" && pytest']
