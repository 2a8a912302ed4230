# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Cards say what was recorded and nothing else, and their metadata is what the Hub takes."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
from hub_metadata import check_metadata, read_metadata
from huggingface_hub import ModelCard
from methods_table import TASKS as NAMES
from peft import LoraConfig, get_peft_model
from tiny_models import make_dense, make_swin

from peft_polyhistor import (
    TASKS,
    DecodersConfig,
    PolyhistorConfig,
    TrainingRecord,
    binary,
    publish,
    register_task,
    regression,
    vectors,
)
from peft_polyhistor.evaluation import count_trainable
from peft_polyhistor.hub.cards import TEMPLATE, Base, count_saved, make_card, score_rows
from peft_polyhistor.hub.merged_cards import Origin, make_merged_card
from peft_polyhistor.hub.record import PREVIEW


CARDS = Path(__file__).parents[2] / "hub_cards"
ORIGIN = Origin("POLYHISTOR", None, Base("ann/tiny-swin", is_embedded=False), None)
RECORD = TrainingRecord(
    dataset_name="Small pictures",
    dataset_type="ann/pictures",
    dataset_is_on_hub=True,
    dataset_license="CC0",
    split="val",
    image_size=96,
    command="python train.py",
    seed=3,
    steps=40,
    versions={"torch": "2.15.0", "peft": "0.21.2"},
    scores={"semseg": {"mIoU": 31.4159}, "normals": {"mErr": math.nan}},
)


def make_model(base, **kwargs):
    base.config.name_or_path = base.name_or_path = "ann/tiny-swin"
    return get_peft_model(base, PolyhistorConfig(tasks=NAMES, reduction_factor=2), **kwargs)


def card_of(model, **kwargs):
    card = make_card(model, "default", "ann/lite", 12_345, **kwargs)
    assert check_metadata(str(card)) == []
    assert str(ModelCard(str(card))) == str(card)
    return card


def test_metadata_makes_it_findable():
    data = card_of(make_model(make_dense()), training=RECORD, license="mit", tags=["swin"]).data
    assert (data.library_name, data.pipeline_tag, data.license) == ("peft", "image-segmentation", "mit")
    assert (data.base_model, data.base_model_relation) == ("ann/tiny-swin", "adapter")
    assert data.datasets == ["ann/pictures"]
    assert {"POLYHISTOR", "semseg", "semantic-segmentation", "surface-normal-estimation", "swin"} <= set(data.tags)
    [result] = data.eval_results
    assert (result.dataset_type, result.dataset_split, result.metric_value) == ("ann/pictures", "val", 31.42)
    assert (result.task_type, result.task_name) == ("semantic-segmentation", "semseg")


def test_the_pipeline_is_that_of_the_tasks(table_of_tasks):
    assert card_of(make_model(make_swin())).data.pipeline_tag == "image-feature-extraction"
    register_task(regression("disparity", tag="depth-estimation"))
    register_task(binary("lanes"))
    pipelines = {
        ("normals",): None,
        ("normals", "disparity"): "depth-estimation",
        ("disparity", "semseg"): "image-segmentation",
        ("lanes",): "image-segmentation",
    }
    for tasks, pipeline in pipelines.items():
        adapted = get_peft_model(make_dense(list(tasks)), PolyhistorConfig(tasks=list(tasks), reduction_factor=2))
        adapted.peft_config["default"].base_model_name_or_path = "ann/tiny-swin"
        assert card_of(adapted).data.pipeline_tag == pipeline
        assert make_merged_card(make_dense(list(tasks)), ORIGIN, "mit", [], "ann/m").data.pipeline_tag == pipeline


def test_without_a_record_no_number_is_shown():
    card = card_of(make_model(make_dense()))
    assert "Not measured." in card.text and "Not recorded." in card.text
    assert card.data.eval_results is None and card.data.datasets is None


def test_shows_what_was_recorded():
    text = card_of(make_model(make_dense()), training=RECORD).text
    told = ("`python train.py`", "Seed: 3", "steps: 40", "torch 2.15.0, peft 0.21.2", "12,345 bytes", "The data: CC0")
    assert all(part in text for part in told)
    assert (
        "| semseg | mIoU, percent | up | 31.42 |" in text
        and "| normals | mErr, degrees | down | not measured |" in text
    )
    assert "range" not in text and PREVIEW not in text
    assert "Versions: not recorded" in card_of(make_model(make_dense()), training=replace(RECORD, versions={})).text
    with_picture = replace(RECORD, files={PREVIEW: Path(PREVIEW)}, preview="Six pictures.")
    assert f"![Six pictures.]({PREVIEW})" in card_of(make_model(make_dense()), training=with_picture).text


def test_a_string_is_no_list_of_strings():
    with pytest.raises(TypeError, match=r"`tags` must be a list of strings, got 'lanes'\. Write \['lanes'\]\."):
        publish(make_model(make_dense()), "ann/lite", tags="lanes")
    with pytest.raises(TypeError, match=r"`limits` must be a list of strings, got 'Few images\.'"):
        replace(RECORD, limits="Few images.")


def test_several_seeds_have_a_mean_and_a_range():
    runs = {seed: {"semseg": {"mIoU": value}} for seed, value in ((0, 30.0), (3, 31.4159), (7, 35.0))}
    record = replace(RECORD, scores=runs[3], scores_by_seed=runs)
    assert score_rows(record) == [["semseg", "mIoU, percent", "up", "31.42", "32.14 (30.00 to 35.00)"]]


def test_scores_in_small_units_keep_their_digits():
    register_task(regression("inverse", unit="1/m", valid=(0.001, 0.1)))
    record = replace(RECORD, scores={"inverse": {"RMSE": 0.00112345, "AbsRel": 10.4567}})
    assert [row[-1] for row in score_rows(record)] == ["0.001123", "10.46"]
    results = card_of(make_model(make_dense()), training=record).data.eval_results
    assert [result.metric_value for result in results] == [0.001123, 10.46]


def test_scores_beside_the_headline_have_their_unit_and_better_direction():
    register_task(regression("depth", unit="m", valid=(0.1, 80)))
    register_task(vectors("surface"))
    expected = [
        ["depth", "RMSE, m", "down"],
        ["depth", "AbsRel, percent", "down"],
        ["depth", "delta_1.25, percent", "up"],
        ["surface", "mErr, degrees", "down"],
        ["surface", "median, degrees", "down"],
        ["surface", "within_11.25, percent", "up"],
        ["saliency", "mIoU, percent", "up"],
        ["saliency", "maxF, percent", "up"],
        ["saliency", "of_another_kind", "-"],
    ]
    scores: dict = {}
    for task, score, _ in expected:
        scores.setdefault(task, {})[score.partition(",")[0]] = 1.0
    assert [row[:3] for row in score_rows(replace(RECORD, scores=scores))] == expected


def test_data_that_is_not_on_the_hub_is_no_dataset_of_it():
    record = replace(RECORD, dataset_type="scenes", dataset_is_on_hub=False)
    assert card_of(make_model(make_dense()), training=record).data.datasets is None


def test_weighs_what_trains_and_is_saved():
    model = make_model(make_dense())
    sizes = count_trainable(model)
    assert count_saved(model, "default") == {"adapters": sizes["encoder"], "decoders": sizes["all"] - sizes["encoder"]}
    assert f"| decoders | {sizes['all'] - sizes['encoder']:,} parameters |" in card_of(model).text


def test_a_bare_encoder_has_no_decoders():
    text = card_of(make_model(make_swin())).text
    assert "peft_polyhistor.load(" not in text and "| decoders |" not in text
    assert 'peft_polyhistor.load_encoder("ann/tiny-swin")' in text


def test_the_code_loads_the_revision_of_the_encoder():
    text = card_of(make_model(make_swin(), revision="v2")).text
    assert 'peft_polyhistor.load_encoder("ann/tiny-swin", revision="v2")' in text
    assert 'PeftModel.from_pretrained(encoder, "ann/lite")' in text, "which is the revision of the encoder alone"


def test_an_image_size_that_was_not_recorded_is_called_an_example():
    note = "# The image size of the training is not recorded; 224 is an example.\npredictor ="
    unknown, given = (card_of(make_model(make_dense()), training=record).text for record in (None, RECORD))
    assert note in unknown and 'from_pretrained("ann/lite", image_size=224)' in unknown
    assert "not recorded; 224" not in given and 'from_pretrained("ann/lite", image_size=96)' in given
    saved = card_of(make_model(make_dense(image_size=[64, 96]))).text
    assert "not recorded; 224" not in saved and 'from_pretrained("ann/lite")' in saved
    assert "torch.randn(1, 3, 64, 96)" in saved and "torch.randn(1, 3, 96, 96)" in given


@pytest.mark.parametrize("decoders", [True, False])
def test_code_of_the_card_is_python(decoders):
    text = card_of(make_model(make_dense() if decoders else make_swin())).text
    blocks = [block.partition("\n```")[0] for block in text.split("```python\n")[1:]]
    assert len(blocks) == 1 + decoders
    for block in blocks:
        compile(block, "card", "exec")


def test_decoders_without_adapters_have_no_code_for_a_bare_encoder():
    base = make_dense()
    base.config.name_or_path = base.name_or_path = "ann/tiny-swin"
    text = card_of(get_peft_model(base, DecodersConfig(tasks=NAMES))).text
    assert "Decoders for the dense tasks" in text and "without adapters" in text
    assert "PeftModel.from_pretrained" not in text and text.count("```python") == 1 and "| adapters |" not in text


def test_a_card_shows_the_tasks_that_have_decoders():
    card = card_of(make_model(make_dense(["normals"])))
    assert "with decoders for normals." in card.text and 'overlay("normals")' in card.text
    assert card.data.pipeline_tag is None and "semseg" not in card.data.tags
    assert f"It has the tasks {', '.join(NAMES)}." in card.text


def test_a_unit_of_any_text_stays_in_its_cell():
    register_task(regression("flux", unit="W|m\n2"))
    [row, *_] = score_rows(replace(RECORD, scores={"flux": {"RMSE": 1.0}}))
    assert row[1] == r"RMSE, W\|m 2"


def test_an_adapter_of_peft_is_not_published_as_one_of_this_package():
    base = make_swin()
    base.config.name_or_path = base.name_or_path = "ann/tiny-swin"
    model = get_peft_model(base, LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(TypeError, match=r"'default' has a LoraConfig.*Publish it with `push_to_hub`"):
        publish(model, "ann/lora")  # before anything is changed on the Hub, which cannot be reached here


def test_there_is_one_template():
    assert (CARDS / "template.md").resolve() == TEMPLATE.resolve()


@pytest.mark.parametrize("card", sorted(CARDS.glob("*_*.md")), ids=lambda card: card.stem)
def test_cards_of_the_recipes_are_what_the_hub_takes(card):
    text = card.read_text(encoding="utf-8")
    assert check_metadata(text) == []
    metadata = read_metadata(text)
    assert metadata["library_name"] == "peft" and set(TASKS) <= set(metadata["tags"])
    assert ("model-index" in metadata) != ("Not measured." in text)


def test_bad_metadata_is_told():
    assert check_metadata("---\nlicense: [\n---\n") != []
    bad = "license: 3\ntags: semseg\nbase_model: /a/folder\nbase_model_relation: child\nmodel-index:\n- name: x\n"
    assert len(check_metadata(f"---\n{bad}---\n")) == 5
