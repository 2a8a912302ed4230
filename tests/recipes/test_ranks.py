# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The order of methods in a study beside that of the paper's Table 1."""

import json
import math

import pytest


TASKS = {"semseg": "mIoU", "human_parts": "mIoU", "saliency": "mIoU", "normals": "mErr"}
MEANS = {"decoders": 5, "adapter": 6, "thin": 7, "full": 9, "peft_lora": 8}


def write(folder, means=MEANS, tasks=TASKS):
    fields = {"thin": {"polyhistor_lite": {"rank": 2, "label": "thin"}}}
    methods = {
        label: {
            "changes": [mean - 1, mean + 1],
            "runs": [
                {
                    "settings": {"methods": [fields.get(label, label), "bitfit"]},
                    "scores": {
                        task: {score: 100 - mean if score == "mErr" else mean + spread, "other": 50}
                        for task, score in tasks.items()
                    },
                }
                for spread in (-0.5, 0.5)
            ],
        }
        for label, mean in means.items()
    }
    file = folder / "comparison.json"
    file.write_text(json.dumps({"reference": "decoders", "methods": methods}))
    return file


@pytest.fixture
def recipe(load_recipe):
    return load_recipe("paper.ranks")


def test_correlations_of_ranks_with_the_paper(recipe, tmp_path, capsys):
    correlations = recipe.main(write(tmp_path))
    # Table 1, semseg: 63.14, 69.21, 70.24, 68.71; saliency: 58.39, 61.28, 64.75, 64.18. Ours rise in this order.
    assert correlations == pytest.approx(
        {"semseg": 0.4, "human_parts": 1, "saliency": 0.8, "normals": 1, "change": 1}, abs=1e-12
    )
    printed = capsys.readouterr().out
    assert " ".join(printed.splitlines()[1].split()) == "full 9.00 68.71 9.00 62.13 9.00 64.18 91.00 17.35 9.00 2.23"
    assert "thin" in printed and "peft_lora" not in printed
    last = [" ".join(line.split()) for line in printed.splitlines()[-2:]]
    assert last == [
        "rank correlation without hypernetworks 0.50 of 3 1.00 of 3 1.00 of 3 1.00 of 3 1.00 of 3",
        "rank correlation 0.40 of 4 1.00 of 4 0.80 of 4 1.00 of 4 1.00 of 4",
    ]


def test_a_method_without_a_score_does_not_count(recipe, tmp_path, capsys):
    file = write(tmp_path)
    content = json.loads(file.read_text())
    content["methods"]["full"]["runs"][0]["scores"]["saliency"]["mIoU"] = math.nan
    content["methods"]["adapter"]["runs"][1]["scores"]["semseg"]["mIoU"] = math.nan
    content["methods"]["thin"]["runs"][1]["scores"]["semseg"]["mIoU"] = math.nan
    file.write_text(json.dumps(content))
    correlations = recipe.main(file)
    assert math.isnan(correlations.pop("semseg"))  # of two methods, which are no order
    assert correlations == pytest.approx({"human_parts": 1, "saliency": 1, "normals": 1, "change": 1}, abs=1e-12)
    printed = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert printed[1] == "full 9.00 68.71 9.00 62.13 - 64.18 91.00 17.35 9.00 2.23"
    assert printed[-1] == "rank correlation - of 2 1.00 of 4 1.00 of 3 1.00 of 4 1.00 of 4"


def test_a_study_without_a_reference_is_refused(recipe, tmp_path):
    file = write(tmp_path)
    content = json.loads(file.read_text())
    for method in content["methods"].values():
        method["changes"] = None
    file.write_text(json.dumps(content))
    with pytest.raises(
        ValueError, match=r"comparison\.json has no changes, as it lacks a reference .* Train `single_task`"
    ):
        recipe.main(file)


def test_files_without_an_order_are_refused(recipe, tmp_path):
    with pytest.raises(ValueError, match=r"has 2 methods of Table 1\. An order needs at least 3"):
        recipe.main(write(tmp_path, {"decoders": 1, "adapter": 2, "peft_lora": 3}))
    with pytest.raises(ValueError, match=r"lacks \['normals'\]"):
        recipe.main(write(tmp_path, tasks={task: score for task, score in TASKS.items() if task != "normals"}))
    for content in ("", "[]", "{}"):
        (tmp_path / "other.json").write_text(content)
        with pytest.raises(ValueError, match=r"other.json is no comparison.json of compare_methods.py"):
            recipe.main(tmp_path / "other.json")
