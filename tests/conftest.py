# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Tiny encoders and dense models, what tests do to them, and the methods under test."""

import pytest
import torch
from methods_table import METHODS_UNDER_TEST, TASKS
from peft import get_peft_model
from torch import nn
from torch.nn import functional as F
from transformers import SwinConfig, SwinModel

from peft_polyhistor import MultiTaskDenseModel, StageEncoder, view_encoder


torch.set_num_threads(1)  # for models this small, threads cost more than they give

STAGES = ["stage1", "stage2", "stage3", "stage4"]
DENSE_TASKS = ["semseg", "human_parts", "normals"]  # an uneven number


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def _make_swin(cls=SwinModel, **changes):
    sizes = {"embed_dim": 8, "depths": [2, 2, 2, 2], "num_heads": [1, 2, 2, 4], "window_size": 3, "image_size": 96}
    config = SwinConfig(**{**sizes, "drop_path_rate": 0.0, "out_features": STAGES[: len(sizes["depths"])], **changes})
    torch.manual_seed(1)
    return _perturb(cls(config)).eval()


@pytest.fixture
def make_swin():
    """`make_swin(cls, **changes)`: the same tiny Swin at every call, in any of its classes, ready to predict.

    Widths 8, 16, 32, 64 and a window of 3, which the coarsest map of a picture of 96 pixels just fills.
    """
    return _make_swin


@pytest.fixture
def make_dense():
    """`make_dense(tasks, encoder, **kwargs)`: the same dense model at every call, on the tiny Swin unless told."""

    def make(tasks=DENSE_TASKS, encoder=None, **kwargs):
        encoder = encoder or _make_swin()
        torch.manual_seed(2)
        model = MultiTaskDenseModel.from_encoder(encoder, tasks, **{"decoder_width": 12, **kwargs})
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):  # untrained statistics would hide a swapped buffer
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
        return model.eval()

    return make


def _perturb(model, std=0.05):
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=std)
    return model


@pytest.fixture
def perturb():
    """`perturb(model)` adds noise to what trains, and returns the model.

    Fresh adapters do nothing and fresh weights repeat with the seed, so a test of either proves nothing before this.
    """
    return _perturb


def _labels(tasks, batch, height, width):
    random = {
        "semseg": lambda: torch.randint(0, 21, (batch, height, width)),
        "human_parts": lambda: torch.randint(0, 7, (batch, height, width)),
        "saliency": lambda: torch.randint(0, 2, (batch, 1, height, width)).float(),
        "normals": lambda: F.normalize(torch.randn(batch, 3, height, width), dim=1),
    }
    return {task: random[task]() for task in tasks}


@pytest.fixture
def make_labels():
    """`make_labels(tasks, batch, height, width)`: random labels by task."""
    return _labels


def pytest_generate_tests(metafunc):
    """Runs a test on every row of the table that its marks and its base models allow."""
    if "row" not in metafunc.fixturenames:
        return
    conditions = [mark.args[0] for mark in metafunc.definition.iter_markers("rows")]
    chosen = [row for row in METHODS_UNDER_TEST if all(condition(row) for condition in conditions)]
    if "make_base" in metafunc.fixturenames:
        pairs = [(row, base) for row in chosen for base in row.bases]
        ids = [f"{row.name}-{base.__name__}" for row, base in pairs]
        metafunc.parametrize(("row", "make_base"), pairs, indirect=True, ids=ids)
        return
    names = metafunc.fixturenames
    needed = MultiTaskDenseModel if "make_dense" in names and "make_swin" not in names else SwinModel
    chosen = [row for row in chosen if needed in row.bases]
    metafunc.parametrize("row", chosen, indirect=True, ids=[row.name for row in chosen])


@pytest.fixture
def row(request):
    return request.param


@pytest.fixture
def make_config(row):
    """`make_config(**changes)`: settings of the method under test, for the tasks above."""
    return lambda **changes: row.config_class(**{"tasks": TASKS, **row.kwargs, **changes})


@pytest.fixture
def adapt(make_config):
    """`adapt(model, **changes)`: the model with the method under test, ready to predict."""
    return lambda model, **changes: get_peft_model(model, make_config(**changes)).eval()


@pytest.fixture
def make_base(request, make_swin, make_dense):
    """`make_base()`: the same frozen model at every call, for each class a method must work on."""
    make = {SwinModel: make_swin, MultiTaskDenseModel: make_dense, StageEncoder: lambda: view_encoder(make_swin())}
    return make[request.param]


@pytest.fixture
def pixels():
    return torch.randn(2, 3, 96, 128)
