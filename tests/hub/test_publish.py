# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Cards and records of a run for the Hub. The upload itself is in test_round_trip.py."""

import json
from pathlib import Path

import publish
import pytest
import recorded_cards

from peft_polyhistor.hub import run_record as records
from peft_polyhistor.hub.cards import find_base
from peft_polyhistor.training.settings import NEUTRAL, Settings


CARDS = Path(__file__).parents[2] / "hub_cards"


@pytest.fixture
def make_results(tmp_path):
    """`make_results(**settings)`: results of a run that was best in the middle."""

    def make(**changes):
        settings = vars(Settings(output_dir=str(tmp_path / "runs"), tasks=["semseg", "normals"], **changes))
        scores = [
            {"semseg": {"mIoU": value}, "normals": {"mErr": 30.0}} for value in (1.0, 3.0 + settings["seed"], 2.0)
        ]
        history = [{"step": 10 * (i + 1), "scores": entry} for i, entry in enumerate(scores)]
        return {"history": history, "settings": settings | {"processes": 1}, "versions": {"torch": "2.15.0"}}

    return make


def test_a_card_has_the_scores_of_its_checkpoint(make_results):
    best, last = (records.record_of(make_results(data="scenes"), name) for name in ("best", "last"))
    assert (best.steps, best.scores["semseg"]) == (20, {"mIoU": 3.0})
    assert (last.steps, last.scores["semseg"]) == (30, {"mIoU": 2.0})
    assert best.preview == last.preview and "predictions after 30 steps" in best.preview
    assert "best of 3 evaluations" in best.limits[-1] and last.limits == records.SCENES.limits
    assert best.versions == {"torch": "2.15.0"} and best.scores_by_seed == {}
    with pytest.raises(ValueError, match="leaves the checkpoints 'best' and 'last', got 'state'"):
        records.record_of(make_results(), "state")


def test_seeds_make_one_mean_where_nothing_else_differs(make_results):
    runs = [make_results(seed=seed) for seed in (2, 0)]
    record = records.record_of(runs[0], "best", runs[1:])
    assert record.seed == 2 and record.scores["semseg"] == {"mIoU": 5.0}
    assert {seed: scores["semseg"]["mIoU"] for seed, scores in record.scores_by_seed.items()} == {0: 3.0, 2: 5.0}
    with pytest.raises(ValueError, match=r"differ in their seed and in nothing else.*seeds 2 and 0 .*\['steps'\]"):
        records.record_of(runs[0], "best", [make_results(steps=5)], neutral=NEUTRAL)
    for others in ([make_results(seed=2)], [make_results(seed=2), runs[1]], [runs[1], make_results(seed=0)]):
        with pytest.raises(ValueError, match=r"must have different seeds, got \[2, .* Give one run of each seed"):
            records.record_of(runs[0], "best", others, neutral=NEUTRAL)
    first, second = (
        run | {"inputs": {"the weights of the encoder": key}} for run, key in zip(runs, "ab", strict=True)
    )
    with pytest.raises(ValueError, match=r"in nothing else.*\['the weights of the encoder'\]"):
        records.record_of(first, "best", [second], neutral=NEUTRAL)
    assert records.record_of(first, "best", runs[1:]).scores_by_seed == record.scores_by_seed  # not recorded
    assert (
        len(records.record_of(runs[0], "best", [make_results(seed=1, workers=0)], neutral=NEUTRAL).scores_by_seed) == 2
    )


def test_data_is_called_what_it_is_and_where_it_is_stays_here(make_results, tmp_path):
    assert records.source_of("scenes").type == "peft-polyhistor-scenes"
    assert records.source_of("/data/PASCAL_MT").type == "pascal-context"
    hub = records.source_of("ann/pictures")
    assert hub.is_on_hub and hub.type == "ann/pictures"
    folder = records.source_of(str(tmp_path))
    assert (folder.name, folder.is_on_hub) == (tmp_path.name, False) and "not recorded" in folder.license
    results = make_results(data=str(tmp_path), encoder=str(tmp_path))
    files = records.write_files(tmp_path / "run", results, tmp_path)
    assert files.keys() == {"results.json", "training.yaml"}
    assert not any(str(tmp_path) in file.read_text() for file in files.values())
    assert json.loads(files["results.json"].read_text())["history"] == results["history"]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/home/ann/photos", "photos"),
        ("/photos", "photos"),
        ("~/photos", "photos"),
        ("./photos", "photos"),
        ("../photos/", "photos"),
        ("data/photos/v2", "v2"),
        (r"C:\Users\ann\photos", "photos"),
        ("C:/photos", "photos"),
        (r"data\photos", "photos"),
        ("photos", "photos"),
    ],
)
def test_a_path_of_another_machine_is_neither_published_nor_taken_for_a_hub_id(make_results, tmp_path, path, name):
    results = make_results(data=path, encoder=path, decoders=path)
    shared = records.shared_settings(results["settings"])
    assert (shared["data"], shared["encoder"], shared["decoders"]) == (name, name, name)
    assert "Its decoders started from those of another run" in records.record_of(results, "last").limits[-1]
    for file in records.write_files(tmp_path / "run", results, tmp_path).values():
        assert path == name or path not in file.read_text().replace("\\\\", "\\")
    source = records.source_of(path)
    assert (source.name, source.is_on_hub) == (name, False)
    if path != name:
        with pytest.raises(ValueError, match=r"no Hub id\. Publish the encoder, .* Hub id, e\.g\. base_model="):
            find_base(path, None)


def test_the_command_repeats_the_run(make_results):
    settings = make_results(data="scenes", seed=3)["settings"]
    assert records.command_of(settings, None) == "accelerate launch recipes/train_pascal.py training.yaml"
    assert records.command_of(settings, Path("b.yaml")).endswith("train_pascal.py recipes/configs/b.yaml --seed 3")
    hub = records.command_of(settings | {"data": "ann/pictures", "seed": 0}, Path("a.yaml"))
    assert hub.endswith("recipes/configs/a.yaml --data ann/pictures")
    two = records.command_of(settings | {"processes": 2, "data": "/data/PASCAL_MT", "seed": 0}, Path("a.yaml"))
    assert two == (
        "accelerate launch --num_processes 2 recipes/train_pascal.py recipes/configs/a.yaml --data PASCAL_MT"
    )


def test_a_run_that_is_not_finished_is_not_published(tmp_path):
    (tmp_path / "best").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no .*results\.json\. Give the folder `best` or `last` of"):
        publish.main([str(tmp_path / "best"), "--repo", "ann/lite"])


def test_other_seeds_are_folders_of_runs(make_results, tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(make_results()))
    (tmp_path / "best").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no .*best.results\.json\. Give --other_seeds folders of runs"):
        publish.main([str(tmp_path / "best"), "--repo", "ann/lite", "--other_seeds", str(tmp_path / "best")])


@pytest.mark.parametrize("method", ["full", "peft_lora"])
def test_a_method_without_an_adapter_of_this_package_is_refused(make_results, tmp_path, method):
    (tmp_path / "results.json").write_text(json.dumps(make_results(methods=[method])))
    with pytest.raises(ValueError, match=rf"trained '{method}', and this recipe publishes the methods .*polyhistor"):
        publish.main([str(tmp_path / "best"), "--repo", "ann/lite"])


def test_damaged_results_are_named(tmp_path):
    (tmp_path / "best").mkdir()
    (tmp_path / "results.json").write_text('{"history": [')
    with pytest.raises(ValueError, match=r"results\.json is damaged \(.*Delete it and resume the run"):
        publish.main([str(tmp_path / "best"), "--repo", "ann/lite"])


@pytest.mark.parametrize("name", ["pascal_swin_tiny_polyhistor_lite", "scenes_swin_mini_polyhistor_lite"])
def test_cards_are_those_of_the_configs_and_the_recorded_runs(name):
    assert set(recorded_cards.ENCODERS) == {card.stem for card in CARDS.glob("*_*.md")}
    assert (CARDS / f"{name}.md").read_text(encoding="utf-8") == str(recorded_cards.fill(name))
