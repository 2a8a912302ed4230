# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Plugin of pytest: a method may fail or skip a test only where LoRA does, or skip it for a reason of `SKIPS`."""

from collections import Counter, defaultdict
from typing import NamedTuple

import pytest
from peft_cases import CONTROL, MODELS, SKIPS, name_of


class Result(NamedTuple):
    """The result of one test; `outcome` is `"passed"`, `"skipped"` or `"failed"`."""

    outcome: str
    reason: str = ""  # of a skip


PASSED = Result("passed")
results: dict[tuple[str, str], dict[str, Result]] = defaultdict(dict)  # by model and method, by test


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Notes the result of every test of a method."""
    report = yield
    if hasattr(item, "callspec") and (report.when == "call" or not report.passed):
        params = dict(item.callspec.params)
        method = name_of(params.pop("config_cls"))
        models = [params.pop(name) for name in ("model_id", "tuner_method") if name in params]
        variant = [
            str(value) for name, value in sorted(params.items()) if not name.startswith(("config", "test_name"))
        ]
        reason = report.longrepr[2].removeprefix("Skipped: ") if report.skipped else ""
        test = " ".join([item.originalname, *variant])
        results[models[0] if models else "MLP", method][test] = Result(report.outcome, reason)
    return report


def differences() -> list[str]:
    """Every test that LoRA passes and a method fails, or skips without a reason of `SKIPS`."""
    return [
        f"{result.outcome} where LoRA passes: {model}, {method}, {test} {result.reason}"
        for (model, method), tests in results.items()
        for test, result in tests.items()
        if result.outcome != "passed" and result.reason not in SKIPS
        if results.get((model, CONTROL), {}).get(test, PASSED).outcome == "passed"
    ]


def is_control_sound() -> bool:
    """Whether LoRA passes more tests than it fails; otherwise it excuses the methods for a fault of the set-up."""
    outcomes = Counter(
        r.outcome for (_, method), tests in results.items() if method == CONTROL for r in tests.values()
    )
    return not outcomes or outcomes["passed"] > outcomes["failed"]


def pytest_sessionfinish(session, exitstatus):
    failed = sum(result.outcome == "failed" for tests in results.values() for result in tests.values())
    if differences() or not is_control_sound():
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    elif exitstatus == pytest.ExitCode.TESTS_FAILED and failed == session.testsfailed:  # all of them with LoRA
        session.exitstatus = pytest.ExitCode.OK


def pytest_terminal_summary(terminalreporter):
    """Prints a row for every model and method, the reasons of skips, and what LoRA passes and a method does not."""
    write = terminalreporter.write_line
    terminalreporter.section("PEFT's tests")
    write(f"{'':12}{'':22}{'passed':>8}{'skipped':>9}{'failed':>8}")
    reasons = Counter()
    for (model, method), tests in sorted(results.items(), key=lambda item: list(MODELS).index(item[0][0])):
        count = Counter(result.outcome for result in tests.values())
        write(f"{model:12}{method:22}{count['passed']:8}{count['skipped']:9}{count['failed']:8}")
        reasons.update(result.reason for result in tests.values() if result.outcome == "skipped")
    for reason, number in reasons.most_common():
        write(f"{number} skipped{'' if reason in SKIPS else ' by PEFT, LoRA as well'}: {reason}")
    for difference in differences():
        write(difference)
