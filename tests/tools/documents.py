# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The documents of the repository: their blocks, tables, links, and commands."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple


ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
RECIPES = ROOT / "recipes" / "README.md"
CONTRIBUTING = ROOT / ".github" / "CONTRIBUTING.md"
INDEX = ROOT / "recipes" / "results" / "README.md"
# Not the cards of models, which link to files on the Hub and record commands of past releases.
DOCUMENTS = sorted(file for pattern in ("*.md", ".github/**/*.md", "recipes/**/*.md") for file in ROOT.glob(pattern))
CONFIGS = sorted((ROOT / "recipes" / "configs").rglob("*.yaml"))

FENCED = re.compile(r"^```([\w-]*)\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)
SHELLS = ("", "bash")  # languages of blocks that hold commands
PROGRAMS = ("accelerate", "python", "pip", "pytest", "ruff", "mypy")  # that commands in a sentence begin with


class Command(NamedTuple):
    """A command of a document, in words."""

    file: Path
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT).as_posix()}: {' '.join(self.words)}"


def read(file: Path) -> str:
    return file.read_text(encoding="utf-8")


def blocks_of(file: Path, *languages: str) -> list[str]:
    """Texts of the fenced blocks of a document in these languages, in order."""
    return [text for language, text in FENCED.findall(read(file)) if language in languages]


def prose_of(file: Path) -> str:
    """A document without its fenced blocks."""
    return FENCED.sub("", read(file))


def tables_of(file: Path) -> list[list[list[str]]]:
    """The tables of a document: rows of cells, the row of titles first."""
    tables = []
    for text in re.findall(r"(?:^\|.*\|\n)+", prose_of(file), flags=re.MULTILINE):
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
        tables.append([rows[0], *rows[2:]])
    return tables


def commands_of(file: Path) -> list[Command]:
    """The commands of a document, in its blocks and in its sentences, or of the comment that a config begins with."""
    if file.suffix == ".yaml":
        comment = "\n".join(re.findall(r"^#   (.*)$", read(file), flags=re.MULTILINE)).replace("\\\n", " ")
        texts = [line for line in comment.splitlines() if any(f"{program} " in line for program in PROGRAMS)]
    else:
        spans = re.findall(r"`([^`]+)`", prose_of(file))
        texts = blocks_of(file, *SHELLS) + [span for span in spans if span.split()[0] in PROGRAMS and " " in span]
    lines = [line for text in texts for line in text.replace("\\\n", " ").splitlines()]
    return [Command(file, words) for line in lines for words in split_line(line)]


def split_line(line: str) -> list[tuple[str, ...]]:
    """The commands of a line of a shell, in words, without the variables that are set in front of them."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="&")
    lexer.whitespace_split = True
    commands: list[list[str]] = [[]]
    for word in lexer:
        if word == "&&":
            commands.append([])
        elif commands[-1] or not re.match(r"[A-Z_]+=", word):
            commands[-1].append(word)
    return [tuple(words) for words in commands if words]


def links_of(file: Path) -> list[str]:
    """Targets of the links and images of a document, but for those on other sites."""
    text = prose_of(file)
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def anchors_of(file: Path) -> list[str]:
    """Anchors that GitHub gives the headings of a document."""
    headings = re.findall(r"^#+ (.+)$", prose_of(file), flags=re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
