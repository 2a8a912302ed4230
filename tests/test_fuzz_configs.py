# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Settings of every method, of dense models and of tasks, with values of any type."""

import json
import math
from dataclasses import fields

import pytest
import torch
from fuzzing import VALUES, fuzz, outcome
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftConfig, get_peft_model
from tiny_models import make_swin

from peft_polyhistor import METHODS, TASKS, MultiTaskDenseModel, view_encoder
from peft_polyhistor.data import JointTransform, synthetic_scenes
from peft_polyhistor.models.multitask_config import IMAGES, MultiTaskDenseConfig
from peft_polyhistor.tasks.kinds.segmentation import Segmentation
from peft_polyhistor.tasks.table import get_tasks


pytestmark = pytest.mark.slow

REFUSALS = (ValueError, TypeError)


@st.composite
def settings_of(draw, names, most=3):
    """A value of any type for some of the names."""
    chosen = draw(st.lists(st.sampled_from(sorted(names)), min_size=1, max_size=most, unique=True))
    return {name: draw(VALUES) for name in chosen}


def named(values):
    """Texts of which an error holds one: names of fields, and PEFT's words for a field that it checks."""
    return [f"`{name}`" for name in values] + ["Invalid task type"]


def is_finite(values):
    return all(not isinstance(value, float) or math.isfinite(value) for value in values.values())


@fuzz(part=4)
@given(st.data())
def test_method_configs(tmp_path_factory, data):
    method = data.draw(st.sampled_from(sorted(METHODS)))
    names = {field.name for field in fields(METHODS[method]) if field.init} - {"peft_version", "auto_mapping"}
    values = data.draw(settings_of(names))
    config = outcome(lambda: METHODS[method](**values), *named(values), errors=REFUSALS)
    if config is None or not is_finite(values):
        return
    folder = tmp_path_factory.mktemp("config")
    config.save_pretrained(folder)
    assert PeftConfig.from_pretrained(folder).to_dict() == config.to_dict()
    with torch.device("meta"):
        swin = make_swin()
        before = list(swin.state_dict())
        # An injection that is refused says which setting, module or encoder does not fit.
        model = outcome(lambda: get_peft_model(swin, config), "`", "module", "encoder", "adapter", errors=REFUSALS)
    assert model is not None or list(swin.state_dict()) == before


@fuzz(part=2)
@given(st.data())
def test_saved_method_configs(tmp_path_factory, data):
    method = data.draw(st.sampled_from(sorted(METHODS)))
    folder = tmp_path_factory.mktemp("config")
    METHODS[method]().save_pretrained(folder)
    file = folder / "adapter_config.json"
    content = json.loads(file.read_text())
    values = data.draw(settings_of({*content, "unknown"} - {"peft_type"}))
    file.write_text(json.dumps(content | values))
    config = outcome(lambda: PeftConfig.from_pretrained(folder), *named(values), errors=REFUSALS)
    assert config is None or type(config) is METHODS[method]


@fuzz(part=2)
@given(st.data())
def test_configs_of_dense_models(data):
    names = {"encoder", "tasks", "decoder_width", "decoder_dropout", "shared_norms", "loss_weights", *IMAGES}
    values = data.draw(settings_of(names))
    config = outcome(lambda: MultiTaskDenseConfig(**values), "Task '", *named(values), errors=REFUSALS)
    if config is None:
        return
    with torch.device("meta"):
        model = outcome(
            lambda: MultiTaskDenseModel(config, view_encoder(make_swin())), "tasks", *named(values), errors=REFUSALS
        )
    assert model is None or set(model.decoders.heads) == set(config.tasks)


@fuzz()
@given(st.data())
def test_names_and_rows_of_tasks(data):
    names = data.draw(VALUES)
    tasks = outcome(lambda: get_tasks(names), "ask")
    assert tasks is None or [task.name for task in tasks] == list(names)
    row = {field.name: getattr(TASKS["semseg"], field.name) for field in fields(Segmentation)}
    values = data.draw(settings_of(set(row)))
    outcome(lambda: Segmentation(**row | values), "name", "`", "class", "colour", errors=REFUSALS)


@fuzz()
@given(st.data())
def test_settings_of_data(data):
    values = data.draw(settings_of({"image_size", "train", "seed"}))
    outcome(lambda: JointTransform(**{"image_size": 32, "train": True} | values), "`", errors=REFUSALS)
    refused = data.draw(settings_of({"tasks", "split", "count", "image_size", "seed", "num_proc"}))
    refused["count"] = 0  # so that nothing is rendered
    outcome(lambda: synthetic_scenes(**refused), "ask", "`", errors=REFUSALS)
