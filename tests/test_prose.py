# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Wording of docstrings, in the package and the recipes."""

import re
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
FILES = sorted(file for folder in ("peft_polyhistor", "recipes") for file in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize(
    ("pattern", "remedy"),
    [
        (r'"""(What|Of|Those)\b', "Open with a concrete subject or a verb"),
        (r"^\s+\w+: Of ", "Describe the argument by a noun"),
    ],
)
def test_docstrings_open_with_a_subject(pattern, remedy):
    wrong = [
        f"{file.relative_to(ROOT)}:{number}"
        for file in FILES
        for number, line in enumerate(file.read_text("utf-8").splitlines(), 1)
        if re.search(pattern, line)
    ]
    assert not wrong, f"{remedy}: {', '.join(wrong)}"
