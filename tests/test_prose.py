# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Wording of docstrings and comments."""

import re
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
FOLDERS = ("peft_polyhistor", "recipes", "tests", ".ci")
FILES = [*sorted(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py")), ROOT / ".ci" / "versions"]


@pytest.mark.parametrize(
    ("pattern", "remedy"),
    [
        (r'("""|^\s*# )(What|Of|Those|Where)\b', "Open with a concrete subject or a verb"),
        (r"^\s+\w+: Of ", "Describe the argument by a noun"),
    ],
)
def test_docstrings_and_comments_open_with_a_subject(pattern, remedy):
    wrong = [
        f"{file.relative_to(ROOT)}:{number}"
        for file in FILES
        for number, line in enumerate(file.read_text("utf-8").splitlines(), 1)
        if re.search(pattern, line)
    ]
    assert not wrong, f"{remedy}: {', '.join(wrong)}"
