# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The changes of `mutate.py`: those of mutmut, negated conditions, and calls left out.

Nothing is changed that holds no behaviour: annotations, decorators, docstrings, `raise`, warnings, help texts and the
`strict` of `zip`, which asserts what is so. Nor are calls at the top of a module, without which it does not import.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import libcst as cst
from libcst.metadata import MetadataWrapper, PositionProvider
from mutmut.mutation.mutators import mutation_operators


@dataclass
class Mutant:
    """A change of one place.

    Args:
        module: Path of the file in the repository.
        line: Where the place begins.
        kind: Of change.
        statement, function: The lines of what the place is in.
        change: What becomes of it.
        source: Makes the text of the whole file.
    """

    module: str
    line: int
    kind: str
    statement: range
    function: range
    change: str
    source: Callable[[], str]


def mutants_of(path: Path, root: Path) -> dict[str, Mutant]:
    """The mutants of a module, by keys that outlast changes elsewhere in it."""
    wrapper = MetadataWrapper(cst.parse_module(path.read_text()))
    visitor = _Visitor(wrapper.module)
    wrapper.visit(visitor)
    name, seen, mutants = str(path.relative_to(root)), Counter(), {}
    for kind, node, changed, place, statement, function in visitor.found:
        change = " => ".join(wrapper.module.code_for_node(each).strip() for each in (node, changed))
        seen[change] += 1

        def source(node: cst.CSTNode = node, changed: cst.CSTNode = changed) -> str:
            return wrapper.module.deep_replace(node, changed).code

        key = f"{name} | {change} | {seen[change]}"
        mutants[key] = Mutant(name, place[0], kind, statement, function, change, source)
    return mutants


def negate(node: cst.If) -> Iterator[cst.If]:
    """`if a` to `if not (a)`."""
    test = node.test.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])
    yield node.with_changes(test=cst.UnaryOperation(cst.Not(), test))


def leave_out(node: cst.Expr) -> Iterator[cst.Pass]:
    """`call()` to `pass`."""
    if isinstance(node.value, cst.Call):
        yield cst.Pass()


OPERATORS = (*mutation_operators, (cst.If, negate), (cst.Expr, leave_out))


class _Visitor(cst.CSTVisitor):
    METADATA_DEPENDENCIES = (PositionProvider,)

    def __init__(self, module: cst.Module):
        self.module = module
        self.found: list[tuple[str, cst.CSTNode, cst.CSTNode, range, range, range]] = []
        self.nodes: list[cst.CSTNode] = []  # from the module to the node that is visited

    def on_visit(self, node: cst.CSTNode) -> bool:
        self.nodes.append(node)
        if self._is_left_alone(node):
            return False
        for kind, operator in OPERATORS:
            for changed in operator(node) if isinstance(node, kind) else ():
                if not self._drops_what_is_left_alone(node, changed):
                    self.found.append((operator.__name__, node, changed, *self._places_of(node)))
        return True

    def on_leave(self, node: cst.CSTNode) -> None:
        self.nodes.pop()

    def _places_of(self, node: cst.CSTNode) -> list[range]:
        node = node.test if isinstance(node, cst.If) else node
        statement, function = (
            next((outer for outer in self.nodes if isinstance(outer, kind)), node)
            for kind in (cst.SimpleStatementLine, cst.FunctionDef)
        )
        spans = [self.get_metadata(PositionProvider, each) for each in (node, statement, function)]
        return [range(span.start.line, span.end.line + 1) for span in spans]

    def _drops_what_is_left_alone(self, node: cst.CSTNode, changed: cst.CSTNode) -> bool:
        alone = [each for each in getattr(node, "args", ()) if self._is_left_alone(each)]
        return any(all(each is not kept for kept in changed.args) for each in alone)

    def _is_left_alone(self, node: cst.CSTNode) -> bool:
        if isinstance(node, cst.Call):
            return self.module.code_for_node(node.func) in ("len", "isinstance", "warnings.warn")
        if isinstance(node, cst.Arg):
            return node.keyword is not None and node.keyword.value in ("metadata", "strict")
        if isinstance(node, cst.Expr):
            in_function = any(isinstance(outer, cst.FunctionDef) for outer in self.nodes)
            return not in_function or isinstance(node.value, cst.SimpleString)
        return isinstance(node, cst.Annotation | cst.Decorator | cst.Raise | cst.Import | cst.ImportFrom)
