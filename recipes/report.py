# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Makes one page of finished runs: scores, change against parameters, curves, classes, best and worst pictures.

    python recipes/report.py runs/scenes            # the --output_dir of train_pascal.py, or of compare_methods.py
    python recipes/report.py runs/scenes --output page.html

The page is one HTML file without scripts that loads nothing, for screens of any width, light and dark. What the runs
did not record, it says so.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from charts import STYLE
from curves import style_of
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from sections import classes_of, curves_of, facts_of, galleries_of, plot_of, settings_of, table_of
from studies import Study, read_study


PAGE = STYLE.parent


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("results", type=Path, help="the output folder of train_pascal.py or compare_methods.py")
    parser.add_argument("--output", type=Path, help="the file to write; report.html in that folder by default")
    return parser.parse_args(argv)


def make_page(study: Study, title: str) -> str:
    """The page as HTML."""
    environment = Environment(
        loader=FileSystemLoader(PAGE), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    style = "".join(file.read_text(encoding="utf-8") for file in (STYLE, PAGE / "report.css"))
    return environment.get_template("report.html").render(
        title=title,
        style=Markup(style),
        style_of=style_of,
        methods=list(study.results),
        seeds=max(map(len, study.results.values())),
        facts=facts_of(study),
        table=table_of(study),
        plot=plot_of(study),
        curves=curves_of(study),
        classes=classes_of(study),
        galleries=list(galleries_of(study)),
        settings=settings_of(study),
    )


def main(argv: Sequence[str]) -> Path:
    arguments = parse_arguments(argv)
    folder = arguments.results.expanduser()
    file = (arguments.output or folder / "report.html").expanduser()
    page = make_page(read_study(folder), folder.resolve().name)
    file.write_text(page, encoding="utf-8")
    print(f"{file}: {file.stat().st_size / 1e6:.1f} MB.")
    return file


if __name__ == "__main__":
    main(sys.argv[1:])
