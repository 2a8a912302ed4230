# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The Python blocks of the README run, in order, in one namespace."""

import re
from pathlib import Path


README = Path(__file__).parent.parent / "README.md"


def test_python_blocks_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(), flags=re.DOTALL | re.MULTILINE)
    assert len(blocks) == 4
    namespace = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), namespace)


def test_ci_runs_the_test_command_of_the_readme():
    commands = re.findall(r"^pip install .*pytest.*$", README.read_text(), flags=re.MULTILINE)
    assert commands == ['pip install -e ".[test]" && pytest']
