# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Augmentation that is new in every epoch, whoever runs the loop, and the same again from the same seed."""

from itertools import chain

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from peft_polyhistor.data import JointTransform, collate


IMAGES, EPOCHS = 3, 3
WORKERS = [
    pytest.param({}, id="none"),
    pytest.param({"num_workers": 2}, id="two"),
    pytest.param({"num_workers": 2, "persistent_workers": True}, id="persistent", marks=pytest.mark.slow),
    pytest.param(
        {"num_workers": 2, "persistent_workers": True, "multiprocessing_context": "spawn"},
        id="spawn",
        marks=pytest.mark.slow,
    ),
]


def make_dataset(seed=0, ids=range(IMAGES)):
    random = np.random.default_rng(0)
    rows = [{"image_id": i, "image": Image.fromarray(random.integers(0, 256, (30, 40, 3), np.uint8))} for i in ids]
    return Dataset.from_list(rows).with_transform(JointTransform(16, train=True, seed=seed))


def versions(dataset, **options):
    """The version of each image that every epoch of a plain loop sees, as one number."""
    loader = DataLoader(dataset, batch_size=1, collate_fn=collate, **options)
    return [[float(batch["pixel_values"].sum()) for batch in loader] for _ in range(EPOCHS)]


@pytest.mark.parametrize("options", WORKERS)
def test_every_epoch_of_a_plain_loop_sees_new_versions(options):
    dataset = make_dataset()
    torch.manual_seed(7)
    seen = versions(dataset, **options)
    assert all(len(set(image)) == EPOCHS for image in zip(*seen, strict=True))
    torch.manual_seed(7)
    assert versions(dataset, **options) == seen
    torch.manual_seed(8)
    assert not {*chain(*seen)} & {*chain(*versions(dataset, **options))}


def test_the_seed_of_the_transform_changes_the_versions_too():
    torch.manual_seed(7)
    first = versions(make_dataset(seed=0))
    torch.manual_seed(7)
    assert not {*chain(*first)} & {*chain(*versions(make_dataset(seed=1)))}


@pytest.mark.parametrize("options", WORKERS)
def test_a_named_epoch_says_all_that_is_drawn(options):
    dataset = make_dataset()
    joint = dataset.format["format_kwargs"]["transform"]
    joint.set_epoch(2)
    expected = [float(dataset[i]["pixel_values"].sum()) for i in range(IMAGES)]
    joint.set_epoch(0)
    assert versions(dataset, **options)[0] != expected
    joint.set_epoch(2)
    assert versions(dataset, **options) == [expected] * EPOCHS


def test_drawing_for_a_named_epoch_leaves_the_random_numbers_alone():
    dataset = make_dataset()
    dataset.format["format_kwargs"]["transform"].set_epoch(1)
    state = torch.get_rng_state()
    dataset[0]
    assert torch.equal(torch.get_rng_state(), state)


class Recorder(nn.Module):
    """Trains one number, and keeps the sum of each batch it is given."""

    def __init__(self):
        super().__init__()
        self.weight, self.seen = nn.Parameter(torch.zeros(())), []

    def forward(self, pixel_values, labels=None):
        self.seen.append(float(pixel_values.sum()))
        return {"loss": self.weight**2}


def train(dataset, folder, resume=None, **options):
    """The sums of the batches, one image each, in a run of Trainer."""
    model = Recorder()
    arguments = TrainingArguments(
        str(folder), num_train_epochs=EPOCHS, per_device_train_batch_size=1, remove_unused_columns=False,
        report_to="none", save_strategy="epoch", use_cpu=True, seed=3, disable_tqdm=True, **options,
    )  # fmt: skip
    Trainer(model, arguments, train_dataset=dataset, data_collator=collate).train(resume_from_checkpoint=resume)
    return model.seen


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_every_epoch_of_trainer_sees_new_versions_also_after_a_resume(workers, tmp_path):
    dataset = make_dataset()
    options = {"dataloader_num_workers": workers}
    seen = train(dataset, tmp_path / "a", **options)
    assert len(set(seen)) == len(seen) == IMAGES * EPOCHS
    assert train(dataset, tmp_path / "b", **options) == seen
    resumed = train(dataset, tmp_path / "a", str(tmp_path / "a" / f"checkpoint-{2 * IMAGES}"), **options)
    assert resumed == seen[2 * IMAGES :]


@pytest.mark.parametrize("kind", [int, np.int64, np.uint8, str, torch.tensor])
def test_ids_of_any_type_draw_alike(kind):
    def draw(image_id):
        joint = JointTransform(8, train=True)
        joint.set_epoch(0)
        return joint._draw(image_id)

    if kind is not torch.tensor:
        assert draw(kind(7)) == draw("7") != draw(kind(8))
    image = Image.new("RGB", (9, 8))
    batch = {"image_id": [kind(7)], "image": [image], "semseg": [Image.new("L", (9, 8), 21)]}
    with pytest.raises(ValueError, match=r"semseg of .*7.* found the values 21"):
        JointTransform(8, train=True)(batch)
