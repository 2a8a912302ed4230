# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Mutation testing of the core: one place of the code is changed at a time, and a test should fail.

    python tests/mutate.py trace [FILE ...]          finds out which lines each test runs
    python tests/mutate.py run                       tests a mutant of each line of a sample
    python tests/mutate.py run --again [WORD ...]    tests survivors again, by tests whose name has one of these
    python tests/mutate.py control                   runs each test that failed by itself, on the code as it is
    python tests/mutate.py report                    counts the mutants by module, and shows those that survived

`mutants.py` says what is changed, `forked_tests.py` which tests a mutant meets. Results lie in `--folder`, and a run
goes on from them.
"""

import argparse
import compileall
import importlib
import json
import random
import re
import shutil
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from py_compile import PycInvalidationMode

from forked_tests import TIMEOUT, Tracer, in_child, run_tests, tests_for
from mutants import Mutant, mutants_of


ROOT = Path(__file__).resolve().parents[1]
CORE = ("adapter/*.py", "methods/*.py", "losses.py", "metrics.py", "running_metric.py")
TESTS = "losses metrics polyhistor learned_weights degenerate_batches config registry encoder_methods per_task"
TESTS += " passes methods injection peft_verbs training loading algebra_properties metric_properties"
FILES = [f"tests/test_{name}.py" for name in TESTS.split()]
LIBRARIES = "torch transformers.models.swin.modeling_swin transformers.trainer peft accelerate datasets evaluate timm"
LIBRARIES += " torchvision scipy.io PIL.Image pytest"
GONE = "its code is gone"  # taken out since
OUTCOMES = {0: "survived", 1: "a test failed", 2: "an import failed", 4: "an import failed", None: "no end"}


def sample(places: int, seed: int) -> list[str]:
    """Keys of one mutant of each of some lines of the core, every kind of change of a line being as likely."""
    by_line = defaultdict(lambda: defaultdict(list))
    for path in core():
        for key, mutant in mutants_of(path, ROOT).items():
            by_line[mutant.module, mutant.line][mutant.kind].append(key)
    generator = random.Random(seed)
    lines = generator.sample(sorted(by_line), min(places, len(by_line)))
    count = sum(len(keys) for kinds in by_line.values() for keys in kinds.values())
    print(f"{count} mutants of {len(by_line)} lines; {len(lines)} lines are drawn")
    return [generator.choice(generator.choice(sorted(by_line[line].values()))) for line in lines]


def core() -> list[Path]:
    return sorted(path for pattern in CORE for path in (ROOT / "peft_polyhistor").glob(pattern))


def kill(keys: list[str], copy: Path, traced: dict, limit: float, results: Path) -> None:
    """Tests mutants one after the other, each on an otherwise unchanged copy."""
    mutants = {key: mutant for path in core() for key, mutant in mutants_of(path, ROOT).items()}
    for index, key in enumerate(keys):
        entry = {"key": key, "line": 0, "outcome": GONE}
        if key in mutants:
            tests, start = tests_for(mutants[key], traced, limit), time.monotonic()
            seconds = sum(traced[test]["seconds"] for test in tests)
            outcome, failed = meet(mutants[key], tests, copy, TIMEOUT + 2 * seconds)
            entry |= {"line": mutants[key].line, "outcome": outcome, "tests": len(tests), "failed": failed}
            entry["seconds"] = round(time.monotonic() - start, 1)
        with results.open("a") as lines:
            print(json.dumps(entry), file=lines)
        print(f"{index + 1}/{len(keys)}  {entry['outcome']}  {key[:150]!r}")


def meet(mutant: Mutant, tests: list[str], copy: Path, timeout: float) -> tuple[str, list[str]]:
    """What becomes of a mutant that meets these tests, and which of them fail."""
    if not tests:
        return OUTCOMES[0], []
    file, log = copy / mutant.module, copy / "log.txt"
    original = file.read_text()
    file.write_text(mutant.source())
    status = in_child(lambda: run_tests(copy, tests), log, timeout)
    file.write_text(original)
    failed = re.findall(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", log.read_text(), re.MULTILINE)
    return OUTCOMES.get(status, "the process ended"), failed


def control(tests: list[str], copy: Path) -> None:
    """Runs every test that a mutant failed by itself where nothing is changed: it must pass."""
    for test in tests:
        status = in_child(lambda test=test: run_tests(copy, [test]), copy / "log.txt", TIMEOUT)
        if status != 0:
            print(f"{test} does not pass by itself: {status}")
    print(f"{len(tests)} tests were run by themselves")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("verb", choices=["trace", "run", "control", "report"])
    parser.add_argument("names", nargs="*", help="files to trace, whose trace is added; words in the names of tests")
    parser.add_argument("--folder", type=Path, default=Path("runs/mutants"))
    parser.add_argument("--places", type=int, default=400, help="lines of the sample")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--limit", type=float, default=20.0, help="seconds of tests per mutant, the quickest first")
    parser.add_argument("--again", action="store_true", help="test the survivors once more")
    settings = parser.parse_intermixed_args()
    folder = settings.folder.resolve()
    copy, trace, results = folder / "copy", folder / "trace.json", folder / "results.jsonl"
    if settings.verb == "report":
        report(last_results(results))
        return
    make_copy(copy)
    for library in LIBRARIES.split():
        importlib.import_module(library)
    sys.modules["torch"].set_num_threads(1)  # threads do not outlive a fork
    if settings.verb == "trace":
        files = settings.names or FILES
        package = copy / "peft_polyhistor"
        status = in_child(lambda: Tracer(package).trace(copy, files, trace), copy / "log.txt", timeout=3600)
        sys.exit(f"pytest ended with {status}, see {copy / 'log.txt'}" if status else None)
    known, traced = last_results(results), json.loads(trace.read_text())
    if settings.verb == "control":
        control(sorted({test for entry in known.values() for test in entry.get("failed", ())}), copy)
        return
    if settings.names:
        traced = {test: value for test, value in traced.items() if any(word in test for word in settings.names)}
    if settings.again:
        keys = [key for key, entry in known.items() if entry["outcome"] == "survived"]
    else:
        keys = [key for key in sample(settings.places, settings.seed) if key not in known]
    kill(keys, copy, traced, settings.limit, results)


def make_copy(copy: Path) -> None:
    """The package and its tests; byte code is checked by content, as mutants follow one another within a second."""
    shutil.rmtree(copy, ignore_errors=True)
    for name in ("peft_polyhistor", "tests", "recipes"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    compileall.compile_dir(copy / "peft_polyhistor", quiet=1, invalidation_mode=PycInvalidationMode.CHECKED_HASH)


def last_results(results: Path) -> dict[str, dict]:
    """The last result of every mutant."""
    entries = map(json.loads, results.read_text().splitlines()) if results.exists() else ()
    return {entry["key"]: entry for entry in entries}


def report(results: dict[str, dict]) -> None:
    by_module = defaultdict(Counter)
    for key, entry in results.items():
        by_module[key.partition(" | ")[0]][entry["outcome"]] += 1
    for module, counts in [*sorted(by_module.items()), ("all", sum(by_module.values(), Counter()))]:
        tested = counts.total() - counts[GONE]
        died = tested - counts["survived"]
        print(f"{module:45} {died:4} of {tested:4} died, {died / max(tested, 1):.1%}  {dict(counts)}")
    for key, entry in sorted(results.items(), key=lambda item: (item[0].partition(" | ")[0], item[1]["line"])):
        if entry["outcome"] == "survived":
            module, change = key.split(" | ", 1)
            print(f"\n{module}:{entry['line']}, {entry['tests']} tests\n    {change}")


if __name__ == "__main__":
    main()
