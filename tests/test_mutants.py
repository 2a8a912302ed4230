# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""What mutation testing changes and what it leaves alone."""

import ast

import pytest


pytest.importorskip("mutmut")
from mutants import mutants_of


SOURCE = '''"""A text of 1."""

LIMIT: int = 3
register("name")


@cached(4)
def clip(x: Annotated[int, 5], low: int = 0) -> int:
    """Another text."""
    if x > LIMIT:
        raise ValueError(f"at most {6}, got {x}")
    log(x)
    return max(x, low) + field(metadata={"help": "7"})
'''


def test_mutants_are_whole_modules_with_one_place_changed(tmp_path):
    path = tmp_path / "clip.py"
    path.write_text(SOURCE)
    mutants = mutants_of(path, tmp_path)
    changes = {mutant.change for mutant in mutants.values()}
    assert {"3 => 4", "0 => 1", "> LIMIT => >= LIMIT", "log(x) => pass", "max(x, low) => max(None, low)"} <= changes
    assert any("if not (x > LIMIT)" in change for change in changes)
    left_alone = ["A text of 1.", 'register("name")', "@cached(4)", "Annotated[int, 5]", "Another text.", "{6}", '"7"']
    for mutant in mutants.values():
        assert mutant.module == "clip.py" and mutant.line in mutant.statement
        assert ast.dump(ast.parse(mutant.source())) != ast.dump(ast.parse(SOURCE))
        assert all(text in mutant.source() for text in left_alone)
