# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Every command of the documents is understood: by the parser of its program, or by files and settings it names."""

import importlib
import importlib.util
import re
import sys
from unittest.mock import MagicMock

import pytest
import train_pascal
from accelerate.commands.launch import launch_command_parser
from documents import CONFIGS, DOCUMENTS, README, ROOT, blocks_of, commands_of, read, split_line

import peft_polyhistor.__main__
from peft_polyhistor.training import parse_settings


_, _, AFTER = read(ROOT / "pyproject.toml").partition("[project.optional-dependencies]")
EXTRAS = re.findall(r"^(\w+) = \[", AFTER.partition("\n[")[0], flags=re.MULTILINE)
MARKS = re.findall(r'^    "(\w+): ', AFTER, flags=re.MULTILINE)
PLAIN = [  # that have no parser of ours
    "python -m venv .venv",
    "source .venv/bin/activate",
    "hf auth login",
    "ruff check .",
    "ruff format --check .",
    "mypy",
]
COMMANDS = list(dict.fromkeys(command for file in (*DOCUMENTS, *CONFIGS) for command in commands_of(file)))


@pytest.fixture
def at_root(monkeypatch, tmp_path, registry):
    """The working directory of the commands. Files that the reader writes, or puts in place of a word, are made."""
    monkeypatch.chdir(ROOT)
    [yaml] = blocks_of(README, "yaml")
    (tmp_path / "lanes.yaml").write_text(yaml, encoding="utf-8")
    written = {"lanes.yaml": str(tmp_path / "lanes.yaml"), "CONFIG": str(train_pascal.DEFAULT_CONFIG)}
    return written | dict.fromkeys("ND", "100")


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_a_command_is_understood(command, at_root, monkeypatch):
    words = [at_root.get(word, word) for word in command.words]
    if " ".join(words) in PLAIN:
        return
    program, *arguments = words
    if program.startswith(".ci/"):
        text = read(ROOT / program)
        assert all(argument in text for argument in arguments)
    else:
        CHECKS[program](arguments, monkeypatch)


def check_pip(arguments, monkeypatch):
    install, *options, what = arguments
    assert install == "install" and options in ([], ["-e"])
    [extras] = re.fullmatch(r"\.(?:\[([\w,]+)\])?", what).groups(default="")
    assert set(filter(None, extras.split(","))) <= set(EXTRAS)


def check_pytest(arguments, monkeypatch):
    paths, values = [], {}
    rest = iter(arguments)
    for word in rest:
        if word in ("-m", "-k", "-n"):
            values[word] = next(rest)
        elif word not in ("-x", "-s"):
            paths.append(ROOT / word)
    assert all(path.exists() for path in paths)
    assert values.get("-m", "slow") in MARKS
    if "-k" in values:
        assert values["-k"] in "".join(f"{path} {read(path)}" for path in paths or ROOT.glob("tests/**/test_*.py"))


def check_accelerate(arguments, monkeypatch):
    launch, *options = arguments
    assert launch == "launch"
    parsed = launch_command_parser().parse_args(options)
    assert parsed.config_file is None or (ROOT / parsed.config_file).is_file()
    check_script([parsed.training_script, *parsed.training_script_args], monkeypatch)


def check_python(arguments, monkeypatch):
    if arguments[0] != "-m":
        return check_script(arguments, monkeypatch)
    assert arguments[1] == "peft_polyhistor"
    runs = {name: MagicMock(return_value=0) for name in ("run_predict", "run_check", "run_shrink", "run_report")}
    for name, run in runs.items():
        monkeypatch.setattr(peft_polyhistor.__main__, name, run)
    assert peft_polyhistor.__main__.main(arguments[2:]) == 0
    assert sum(run.call_count for run in runs.values()) == 1


def check_script(arguments, monkeypatch):
    name, *argv = arguments
    assert (ROOT / name).is_file()
    if name == "recipes/demo.py":
        check_demo(argv, monkeypatch)
    elif name in WITHOUT_ARGUMENTS:
        assert argv == []
    elif argv[-1:] == ["--help"]:
        with pytest.raises(SystemExit, match="0"):
            PARSERS[name](argv)
    else:
        PARSERS[name](argv)


def check_demo(argv, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", MagicMock())
    spec = importlib.util.spec_from_file_location("demo_without_gradio", ROOT / "recipes" / "demo.py")
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    demo.make_app = demo.MultiTaskPredictor = MagicMock()
    demo.main(argv)


def recipe(name):
    return importlib.import_module(name)


def parse_training(argv, *more):
    return parse_settings(argv, "", train_pascal.DEFAULT_CONFIG, train_pascal.Settings, *more)


WITHOUT_ARGUMENTS = ("recipes/paper/parameters.py", "tests/tools/recorded_cards.py")
PARSERS = {
    "recipes/train_pascal.py": parse_training,
    "recipes/compare_methods.py": lambda argv: parse_training(argv, recipe("compare_methods").Comparison),
    "recipes/compare_rates.py": lambda argv: parse_training(argv, recipe("compare_rates").RateGrid),
    "recipes/paper/ranks.py": lambda argv: recipe("paper.ranks").parse_arguments(argv),
    "recipes/publish.py": lambda argv: recipe("publish").parse_arguments(argv),
    "recipes/pretrain_encoder.py": lambda argv: recipe("pretrain_encoder").parse_arguments(argv),
    "recipes/benchmarks/training.py": lambda argv: recipe("common").parse_options("training", "", argv),
    "recipes/benchmarks/inference.py": lambda argv: recipe("common").parse_options("inference", "", argv),
    "recipes/benchmarks/encoder.py": lambda argv: recipe("benchmarks.encoder").parse_arguments(argv),
}
CHECKS = {"pip": check_pip, "pytest": check_pytest, "accelerate": check_accelerate, "python": check_python}


@pytest.mark.parametrize(
    "line",
    [
        "accelerate launch recipes/train_pascal.py --learning_rates 1e-4",
        "accelerate launch recipes/train_pascal.py recipes/configs/gone.yaml",
        "accelerate launch --config_file gone.yaml recipes/train_pascal.py",
        "python recipes/benchmarks/gone.py",
        "python -m peft_polyhistor predict best photo.jpg",
        'pip install -e ".[gone]"',
        "pytest tests/test_gone.py",
        "pytest -m gone",
    ],
)
def test_a_wrong_command_is_found(line, at_root, monkeypatch):
    [words] = split_line(line)
    with pytest.raises((AssertionError, SystemExit, FileNotFoundError)):
        CHECKS[words[0]](list(words[1:]), monkeypatch)
