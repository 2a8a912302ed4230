# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""How `mutate.py` runs tests: in forks of one process, and those first that are likely to see a mutant."""

import json
import os
import resource
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from itertools import accumulate
from pathlib import Path

import coverage
import pytest
from mutants import Mutant


OPTIONS = ["-p", "no:cacheprovider", "-p", "no:unraisableexception", "-o", "addopts="]
OPTIONS += ["-m", "not gpu and not slow and not hub"]
TIMEOUT = 60  # seconds beyond twice the time of the tests; a mutant that runs longer is dead
MEMORY = 32 * 2**30  # bytes of address space, for one that asks for more and more


def in_child(work: Callable[[], int], log: Path, timeout: float) -> int | None:
    """Exit status of `work` in a process of its own; `None` if it had to be ended."""
    child = os.fork()
    if child == 0:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        status = 3
        try:
            status = work()
        finally:  # whatever it raised, nothing of the parent's code may run here
            os._exit(status)
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def run_tests(copy: Path, arguments: Iterable[str], plugins: Iterable[object] = ()) -> int:
    """Runs tests of the copy in this process."""
    os.chdir(copy)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # to load them takes longer than most mutants live
    sys.path[:0] = [str(copy)]
    return int(pytest.main([*OPTIONS, "-x", "-q", "--tb=line", *arguments], plugins=list(plugins)))


class Tracer:
    """pytest plugin that notes the lines and the seconds of each test."""

    def __init__(self, package: Path):
        self.coverage = coverage.Coverage(data_file=None, config_file=False, include=[f"{package}/*"])
        self.seconds: dict[str, float] = defaultdict(float)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.coverage.switch_context(nodeid)

    def pytest_runtest_logfinish(self) -> None:
        self.coverage.switch_context("")

    def pytest_runtest_logreport(self, report) -> None:
        self.seconds[report.nodeid] += report.duration

    def trace(self, copy: Path, files: list[str], result: Path) -> int:
        self.coverage.start()
        status = run_tests(copy, files, [self])
        self.coverage.stop()
        data, lines = self.coverage.get_data(), defaultdict(lambda: defaultdict(list))
        for file in data.measured_files():
            for line, tests in data.contexts_by_lineno(file).items():
                for test in filter(None, tests):
                    lines[test][str(Path(file).relative_to(copy))].append(line)
        traced = {test: {"seconds": self.seconds[test], "lines": lines[test]} for test in self.seconds}
        known = json.loads(result.read_text()) if result.exists() else {}
        kept = {test: value for test, value in known.items() if test.partition("::")[0] not in files}
        result.write_text(json.dumps(kept | traced))
        return status


def tests_for(mutant: Mutant, traced: dict, limit: float) -> list[str]:
    """The tests that run the mutant's line, or else its function, the quickest first, for `limit` seconds.

    Of what runs at import those that run something of the module, and then any.
    """

    def that_run(place: range) -> list[str]:
        lines = {test: value["lines"].get(mutant.module, ()) for test, value in traced.items()}
        return [test for test in traced if any(line in place for line in lines[test])]

    def quickest(tests: Iterable[str]) -> list[str]:
        tests = sorted(tests, key=lambda test: traced[test]["seconds"])
        total = accumulate(traced[test]["seconds"] for test in tests)
        return [test for test, seconds in zip(tests, total, strict=True) if seconds <= limit]

    hit = that_run(mutant.statement) or that_run(mutant.function)
    groups = [hit] if hit else [that_run(range(10**6)), traced]
    return list(dict.fromkeys(test for group in groups for test in quickest(group)))
