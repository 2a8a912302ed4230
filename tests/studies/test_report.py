# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The page of finished runs, from results that no training made."""

import json
import re
import sys
from html.parser import HTMLParser

import pytest
from PIL import Image

from peft_polyhistor import studies
from peft_polyhistor.__main__ import main
from peft_polyhistor.studies.report import make_report


ODD = "<script>alert('x & \"y\"')</script>"  # a name of a picture or a folder may be any text
LOADING = ("src", "href", "srcset", "poster", "data", "action", "xlink:href")
VOID = ("meta", "img", "input")


class Page(HTMLParser):
    """A page whose elements must close in turn; what it names, shows and would load."""

    def __init__(self, html):
        super().__init__()
        self.html, self.open, self.ids, self.sources, self.tags, self.texts = html, [], set(), [], [], []
        self.feed(html)
        self.close()
        assert self.open == []
        self.text = re.sub(r"\s+", " ", " ".join(self.texts))

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        assert not any(name.startswith("on") for name in attributes)
        self.tags.append((tag, attributes))
        self.sources += [attributes[name] for name in LOADING if name in attributes]
        if "id" in attributes:
            assert attributes["id"] not in self.ids
            self.ids.add(attributes["id"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def run_of(method="decoders", seed=0, semseg=10.0, **more):
    scores = {"semseg": {"mIoU": semseg}, "normals": {"mErr": 20.0}}
    settings = {
        "data": "scenes", "encoder": "swin-mini", "seed": seed, "learning_rate": 2e-4, "image_size": 64,
        "batch_size": 2, "gradient_accumulation": 3, "methods": [method],
    }  # fmt: skip
    return {
        "method": method, "parameters": {"encoder": 0 if method == "decoders" else 1000, "all": 5000},
        "scores": scores, "settings": settings, **more,
    }  # fmt: skip


def details_of(name="picture_1"):
    picture = {"image_id": name, "index": 1, "score": 91.26}
    history = [{"step": step, "scores": {"semseg": {"mIoU": step}, "normals": {"mErr": 20.0}}} for step in (5, 10)]
    return {
        "history": history, "seconds": 60.0, "versions": {"torch": "2.15.0"},
        "losses": [{"step": step, "losses": {"semseg": 3 / step, "normals": float("nan")}} for step in (2, 4, 6)],
        "classes": {"semseg": {"background": 80.04, "aeroplane": None, "bus": 0.0}},
        "examples": {
            "semseg": {"best": [picture], "worst": [{**picture, "index": 2}]},
            "normals": {"best": [], "worst": []},
        },
    }  # fmt: skip


def write_run(folder, run):
    (folder / "gallery").mkdir(parents=True)
    Image.new("RGB", (9, 3)).save(folder / "gallery" / "semseg_1.webp")
    (folder / "results.json").write_text(json.dumps(run))


def make(folder, file=None):
    page = Page(make_report(folder, file).read_text(encoding="utf-8"))
    assert all(source.startswith(("data:image/webp;base64,", "#")) for source in page.sources)
    assert {source[1:] for source in page.sources if source.startswith("#")} <= page.ids
    assert "@import" not in page.html and "url(" not in page.html and page.all("script") == []
    return page


def test_shows_all_that_runs_recorded(tmp_path):
    write_run(tmp_path / "decoders", run_of(**details_of()))
    write_run(tmp_path / "polyhistor_lite", run_of("polyhistor_lite", semseg=11.0, **details_of()))
    page = make(tmp_path)
    told = ("embedded scenes", "64 px", "2.0 minutes for 2 runs", "torch 2.15.0", "+5.00", "background 80.0", "91.26")
    assert all(text in page.text for text in told)
    assert "images per step 6" in page.text and "optimiser steps 10" in page.text
    assert "The runs recorded" not in page.text and "No plot" not in page.text
    charts = [chart["aria-label"] for chart in page.all("svg") if "aria-label" in chart]
    assert [label.partition(" by ")[0] for label in charts] == [
        *["Change against decoders alone"] * 2, "semseg, loss", "semseg, mIoU in percent", "normals, mErr in degrees",
    ]  # fmt: skip
    images = page.all("img")
    assert len(images) == 2 and all("picture_1" in image["alt"] for image in images)
    assert page.text.count("Its file is missing") == 2  # the worst one of each
    assert [cell for cell in page.all("span") if "80.0%" in cell.get("style", "")]
    assert all("scope" in cell for cell in page.all("th")) and page.text.count("mErr in degrees") == 2
    assert "normals mErr in degrees, down" in page.text and "encoder parameters" in page.text


def test_says_what_runs_did_not_record(tmp_path):
    write_run(tmp_path / "runs" / "full", run_of("full"))
    page = make(tmp_path / "runs", tmp_path / "page.html")
    assert (tmp_path / "page.html").is_file() and not (tmp_path / "runs" / "report.html").exists()
    (tmp_path / "docs").mkdir()
    assert make_report(tmp_path / "runs", tmp_path / "docs") == tmp_path / "docs" / "report.html"
    assert page.text.count("fewer than two points") == 2
    assert "no figures of classes" in page.text and "The runs recorded none" in page.text
    assert "No plot. It needs two methods, one of them single_task or decoders" in page.text
    assert page.all("img") == [] and page.all("input") == []


def test_text_of_files_is_text(tmp_path):
    details = details_of(ODD) | {"versions": {ODD: ODD}}
    run = run_of(**details)
    run["settings"] |= {"encoder": ODD, "data": ODD, "tracker": ODD, "tasks": [ODD]}
    folder = tmp_path / "a <b>&amp;"
    write_run(folder / "<i>decoders", run)
    write_run(folder / "decoders", run)
    page = make(folder)
    assert page.text.count(ODD) >= 6 and "a <b>&amp;" in page.text and "<i>decoders" in page.text
    assert any(ODD in image["alt"] for image in page.all("img"))


def test_a_comparison_has_means_of_seeds_the_papers_rows_and_pictures_of_the_first_seed(tmp_path):
    paper = {
        "table": 1, "backbone": "Swin-T", "pretraining": "ImageNet-1k", "method": "Full", "setting": "", "change": "2",
        "parameters": {"encoder": "27.51", "all": "30.06"}, "scores": {"semseg": "68.71", "normals": "17.35"},
    }  # fmt: skip
    methods = {"single_task": ({}, None), "full": ({"0.0002": {}}, paper)}
    content = {
        method: {"grid": grid, "paper": row, "runs": [run_of(method, i, 10.0 + i, **details_of()) for i in (3, 4)]}
        for method, (grid, row) in methods.items()
    }
    write_run(tmp_path / "seed3" / "0.0002" / "full", {})
    write_run(tmp_path / "seed3" / "single_task" / "semseg", {})
    (tmp_path / "comparison.json").write_text(json.dumps({"reference": "single_task", "methods": content}))
    page = make(tmp_path)
    assert "13.50 (13.00 to 14.00)" in page.text and "the paper, Table 1" in page.text and "68.71" in page.text
    told = ("mean of 2 seeds", "seeds 3, 4", "single_task seed 3", "full seed 3")
    assert all(text in page.text for text in told)
    assert len(page.all("img")) == 2  # that of single_task lies with its task


def test_the_command_writes_the_page_or_says_why_not(tmp_path, capsys):
    write_run(tmp_path / "decoders", run_of())
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "page.html")]) == 0
    assert main(["report", str(tmp_path), "--out", f"{tmp_path / 'new/pages'}/"]) == 0
    assert (tmp_path / "new/pages/report.html").is_file()
    assert f"{tmp_path / 'page.html'}: 0.0 MB" in capsys.readouterr().out
    assert main(["report", str(tmp_path / "none")]) == 1
    assert "no comparison.json and no METHOD/results.json" in capsys.readouterr().err


def test_without_matplotlib_the_command_says_what_to_install(tmp_path, capsys, monkeypatch):
    for module in ("figures", "report"):
        monkeypatch.delitem(sys.modules, f"peft_polyhistor.studies.{module}", raising=False)
        monkeypatch.delattr(studies, module, raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["report", str(tmp_path)]) == 1
    assert "peft-polyhistor[train]" in capsys.readouterr().err


def test_a_folder_without_results(tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(
            FileNotFoundError, match=r"no comparison\.json and no METHOD/results\.json in .*--output_dir"
        ):
            make_report(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"results\.json is damaged"),
        ("[]", r"results\.json is damaged \(it holds \[\]\)"),
        (json.dumps(run_of() | {"scores": {}}), "has no scores"),
        (json.dumps(run_of() | {"scores": {"depth": {"rmse": 1.0}}}), "no scores of 'depth'; known tasks are semseg"),
        (json.dumps(run_of(history=[{"step": 1, "scores": {"semseg": {}}}])), "no scores of 'semseg'"),
    ],
)
def test_damaged_results(tmp_path, content, message):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "results.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        make_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "damaged.*'methods'"),
        ({"methods": {}}, "names no run"),
        ({"methods": {"full": {"runs": [run_of()], "grid": {}, "paper": {"table": 1}}}}, "damaged.*backbone"),
        ({"methods": {"full": {"runs": [{}], "grid": {}}}}, "has no method, parameters, scores, settings"),
    ],
)
def test_damaged_comparisons(tmp_path, content, message):
    (tmp_path / "comparison.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"comparison\.json.*{message}"):
        make_report(tmp_path)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"seed": 1}, "their seeds"),
        ({}, "their tasks"),
        ({}, "their data"),
        ({"inputs": {"the weights of the encoder": "b"}}, "the weights of the encoder"),
        (
            {"inputs": {"the weights of the encoder": "a", "the weights of the decoders": "c"}},
            "the weights of the decoders",
        ),
    ],
)
def test_runs_that_no_table_compares(tmp_path, changes, what):
    other = run_of("full", **changes)
    if what == "their tasks":
        del other["scores"]["normals"]
    elif what == "their data":
        other["settings"]["holdout"] = 0.5
    write_run(tmp_path / "decoders", run_of(inputs={"the weights of the encoder": "a"}))
    write_run(tmp_path / "full", other)
    with pytest.raises(ValueError, match=rf"differ in {what}, so.*Move them to different folders"):
        make_report(tmp_path)
