# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Tasks and data of one's own, from a parquet folder to a published adapter."""

import numpy as np
import publish
import pytest
import train_pascal
import yaml
from datasets import Dataset
from huggingface_hub import ModelCard
from peft import get_peft_model
from PIL import Image
from transformers import Trainer, TrainingArguments

from peft_polyhistor import (
    TASKS,
    MultiTaskDenseModel,
    PolyhistorLiteConfig,
    declare_tasks,
    load_encoder,
)
from peft_polyhistor.__main__ import main
from peft_polyhistor.data import JointTransform, collate, load_dense_dataset
from peft_polyhistor.inference import MultiTaskPredictor
from peft_polyhistor.training import parse_settings


CLASSES = ["road", "lane", "curb", "car", "sky"]
ROWS = [
    {"lanes": {"kind": "segmentation", "classes": CLASSES}},
    {"depth": {"kind": "regression", "unit": "m", "scale": 0.001, "valid": [0.1, 80], "objective": "silog"}},
]
LAYOUT = {"image": "photo", "lanes": "mask"}
REPO = "ann/lanes"


def forget(before):
    """Leaves the table as a process finds it that never heard of the rows."""
    TASKS.clear()
    TASKS.update(before)


@pytest.fixture
def folder(tmp_path):
    """Eight images to train and three to score; every third has no depth."""
    random = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 3)):
        rows = [
            {
                "photo": Image.fromarray(random.integers(0, 256, (64, 96, 3), np.uint8)),
                "mask": Image.fromarray(random.integers(0, 5, (64, 96), np.uint8)),
                "depth": None if i % 3 == 2 else Image.fromarray(random.integers(0, 9000, (64, 96)).astype(np.uint16)),
            }
            for i in range(count)
        ]
        Dataset.from_list(rows).to_parquet(tmp_path / f"{split}.parquet")
    return tmp_path


@pytest.fixture
def config(folder):
    settings = {"data": str(folder), "layout": LAYOUT, "tasks": ROWS, "methods": ["polyhistor_lite"], "steps": 2}
    settings |= {
        "image_size": 64,
        "decoder_width": 8,
        "batch_size": 2,
        "workers": 0,
        "output_dir": str(folder / "runs"),
    }
    file = folder / "lanes.yaml"
    file.write_text(yaml.safe_dump(settings))
    return file


def test_the_recipe_trains_scores_and_publishes_and_others_load(
    hub, table_of_tasks, folder, config, monkeypatch, capsys
):
    monkeypatch.setenv("HF_TOKEN", "hf_ann")
    assert main(["data", "check", str(folder), "--config", str(config)]) == 0
    assert "Labels of depth that are missing: 3, such as 2, 5." in capsys.readouterr().out
    [results] = train_pascal.main(
        *parse_settings([str(config)], "", train_pascal.DEFAULT_CONFIG, train_pascal.Settings)
    )
    assert results["scores"]["lanes"].keys() == {"mIoU"} and results["scores"]["depth"]["RMSE"] > 0
    assert set(results["classes"]["lanes"]) == set(CLASSES)
    forget(table_of_tasks)
    checkpoint = folder / "runs/polyhistor_lite/best"
    assert main(["report", str(folder / "runs")]) == 0 and "RMSE in m" in (folder / "runs/report.html").read_text()
    forget(table_of_tasks)
    publish.main([str(checkpoint), "--repo", REPO])
    card = ModelCard.load(REPO)
    assert {"lanes", "depth"} <= set(card.data.tags) and "| depth | RMSE, m | down |" in card.text
    forget(table_of_tasks)
    prediction = MultiTaskPredictor.from_pretrained(REPO)(np.zeros((50, 70, 3), np.uint8))
    assert {task: values.shape for task, values in prediction.maps.items()} == {"lanes": (50, 70), "depth": (50, 70)}
    assert set(prediction.classes("lanes")) <= set(CLASSES) and (prediction.maps["depth"] > 0).all()
    assert prediction.overlay("depth").size == prediction.paint("lanes").size == (70, 50)
    picture = folder / "a.png"
    Image.new("RGB", (70, 50)).save(picture)
    forget(table_of_tasks)
    assert main(["predict", str(checkpoint), str(picture), "--out", str(folder / "out")]) == 0
    assert " m </li>" in (folder / "out/index.html").read_text()


def test_trainer_of_transformers_trains_them(folder, tmp_path):
    names = declare_tasks(ROWS)
    splits = [load_dense_dataset(folder, names, split, layout=LAYOUT) for split in ("train", "val")]
    train, val = (
        data.with_transform(JointTransform(64, train=is_train))
        for data, is_train in zip(splits, (True, False), strict=True)
    )
    dense = MultiTaskDenseModel.from_encoder(load_encoder("swin-mini"), names, decoder_width=8, image_size=64)
    model = get_peft_model(dense, PolyhistorLiteConfig(tasks=names))
    options = {"max_steps": 2, "remove_unused_columns": False, "report_to": "none", "label_names": ["labels"]}
    arguments = TrainingArguments(str(tmp_path / "run"), use_cpu=True, **options)
    trainer = Trainer(model, arguments, train_dataset=train, eval_dataset=val, data_collator=collate)
    assert np.isfinite(trainer.train().training_loss)
    assert np.isfinite(trainer.evaluate()["eval_loss"])
