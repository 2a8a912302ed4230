# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Evaluation and parameter counts of a dense model."""

import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from peft import get_peft_model
from torch.utils.data import DataLoader

from peft_polyhistor import TASKS, MultiTaskDenseModel, PolyhistorLiteConfig, load_encoder
from peft_polyhistor.data import JointTransform, collate
from peft_polyhistor.data.synthetic import synthetic_scenes
from peft_polyhistor.evaluation import (
    collect_statistics,
    count_trainable,
    evaluate_tasks,
    format_score,
    format_scores,
    headline,
    score_classes,
    score_images,
    score_tasks,
)
from peft_polyhistor.inference.paint import paint_label, paint_prediction


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    cache = str(tmp_path_factory.mktemp("cache"))
    data = synthetic_scenes(split="val", count=5, image_size=64, cache_dir=cache)
    return data.with_transform(JointTransform(64, train=False))


@pytest.fixture
def model():
    return MultiTaskDenseModel.from_encoder(load_encoder("swin-mini"), list(TASKS), decoder_width=8)


def test_scores_do_not_depend_on_the_batch_size(scenes, model):
    accelerator, tasks = Accelerator(cpu=True), list(TASKS)
    scores, pictures = [], []
    for batch_size in (1, 2, 5):
        loader = accelerator.prepare(DataLoader(scenes, batch_size=batch_size, collate_fn=collate))
        statistics = collect_statistics(model, loader, tasks, accelerator)
        scores.append(score_tasks(statistics))
        pictures.append(score_images(statistics))
    for i in (1, 2):  # argmax at ties of logits rounded per batch
        for task in tasks:
            assert scores[i][task] == pytest.approx(scores[0][task], abs=0.05)
            assert pictures[i][task] == pytest.approx(pictures[0][task], abs=0.5, nan_ok=True)
    assert evaluate_tasks(model, loader, tasks, accelerator) == scores[2]
    assert model.training
    assert set(headline(scores[0])) == set(TASKS)
    with pytest.raises(ValueError, match="no image to score"):
        evaluate_tasks(model, [], tasks, accelerator)


def test_images_of_a_sampler_and_beside_another_loader_are_all_scored(scenes, model):
    accelerator = Accelerator(cpu=True)

    def count(loader, accelerator=accelerator):
        return len(collect_statistics(model, loader, ["normals"], accelerator)["normals"])

    part = partial(DataLoader, scenes, 2, sampler=[4, 0, 1, 2], collate_fn=collate)  # 4 of 5 images
    assert count(part()) == count(accelerator.prepare(part())) == 4
    whole = partial(DataLoader, scenes, 4, collate_fn=collate)
    for _ in accelerator.prepare(DataLoader(range(9), 4)):  # the last batch has one item
        assert count(part()) == 4 and count(whole()) == count(accelerator.prepare(whole())) == 5
    two = SimpleNamespace(num_processes=2, is_main_process=True, gather_for_metrics=accelerator.gather_for_metrics)
    assert count(accelerator.prepare(whole()), two) == 5
    with pytest.raises(ValueError, match=r"2 processes share the images, and the DataLoader would give all"):
        count(whole(), two)
    with pytest.raises(
        ValueError, match=r"dataset of 5 images, and the processes scored 3 of them\. Give one without"
    ):
        count(accelerator.prepare(part()), two)


def test_each_module_returns_to_its_mode_also_after_an_error(scenes, model):
    model.train()
    model.encoder.eval()
    modes = [module.training for module in model.modules()]
    assert set(modes) == {True, False}
    evaluate_tasks(model, [collate([scenes[0]])], list(TASKS), Accelerator(cpu=True))
    assert [module.training for module in model.modules()] == modes
    with pytest.raises(KeyError):
        evaluate_tasks(model, [{}], list(TASKS), Accelerator(cpu=True))
    assert [module.training for module in model.modules()] == modes


def test_rows_stand_in_the_order_of_the_data_and_say_more_than_the_scores(scenes, model):
    accelerator = Accelerator(cpu=True)
    loader = accelerator.prepare(DataLoader(scenes, batch_size=2, collate_fn=collate))
    statistics = collect_statistics(model, loader, ["semseg", "human_parts"], accelerator)
    one = collect_statistics(model, [collate([scenes[3]])], ["semseg"], accelerator)
    assert (statistics["semseg"][3] - one["semseg"][0]).abs().max() <= 5  # pixels, as above
    classes = score_classes(statistics)
    for task, scores in score_tasks(statistics).items():
        assert list(classes[task]) == list(TASKS[task].class_names)
        present = [value for value in classes[task].values() if not math.isnan(value)]
        assert scores["mIoU"] == pytest.approx(sum(present) / len(TASKS[task].class_names))
    without = [i for i in range(len(scenes)) if bool((scenes[i]["human_parts"] == 255).all())]
    assert [i for i, value in enumerate(score_images(statistics)["human_parts"]) if math.isnan(value)] == without


def test_a_task_without_one_labeled_pixel_is_not_measured(scenes, model):
    batch = collate([scenes[0], scenes[1]])
    batch["labels"]["semseg"].fill_(255)
    batch["labels"]["normals"].zero_()
    scores = evaluate_tasks(model, [batch], list(TASKS), Accelerator(cpu=True))
    measured = {task: format_score(score) != "not measured" for task, score in headline(scores).items()}
    assert measured == {"semseg": False, "human_parts": True, "saliency": True, "normals": False}


def test_scores_are_written_with_their_range_or_in_words():
    assert format_score(12.345) == "12.35" and format_score(3.0, "+") == "+3.00"
    assert format_scores([1.0]) == "1.00" and format_scores([1.0, 2.0], "+") == "+1.50 (+1.00 to +2.00)"
    assert format_score(0.00112345, unit="1/m") == "0.001123" and format_score(7.5, unit="m") == "7.5"
    assert format_score(12.345, unit="degrees") == "12.35" and format_score(12345.6, unit="mm") == "12346"
    assert format_scores([0.001, 0.0012], unit="1/m") == "0.0011 (0.001 to 0.0012)"
    assert format_scores([math.nan]) == format_scores([math.nan, math.nan]) == "not measured"
    assert format_scores([1.0, math.nan, 2.0]) == "not measured in 1 of 3 runs"


def test_parameters_are_counted_as_the_paper_does(model):
    model.encoder.requires_grad_(False)
    decoders = sum(p.numel() for p in model.decoders.parameters())
    assert count_trainable(model) == {"encoder": 0, "all": decoders}
    adapted = get_peft_model(model, PolyhistorLiteConfig())
    adapters = sum(p.numel() for name, p in adapted.named_parameters() if "task_adapters" in name)
    assert count_trainable(adapted) == {"encoder": adapters, "all": adapters + decoders}


def test_pictures_show_what_they_are_given(scenes):
    semseg = torch.tensor([[0, 15], [255, 1]])
    assert paint_label("semseg", semseg).tolist() == [[[0, 0, 0], [192, 128, 128]], [[224, 224, 192], [128, 0, 0]]]
    one_hot = torch.nn.functional.one_hot(torch.tensor([[0, 15]]), 21).permute(2, 0, 1)
    assert paint_prediction("semseg", one_hot).tolist() == [[[0, 0, 0], [192, 128, 128]]]
    towards_camera = torch.tensor([0.0, 0.0, 5.0]).view(3, 1, 1)
    assert paint_prediction("normals", towards_camera).tolist() == [[[128, 128, 255]]]
    assert paint_label("normals", torch.zeros(3, 1, 1)).tolist() == [[[224, 224, 192]]]
    assert paint_prediction("saliency", torch.zeros(1, 1, 1)).tolist() == [[[128, 128, 128]]]
