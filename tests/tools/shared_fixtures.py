# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The tiny models, the methods under test and data for a few steps of training, as fixtures."""

import gc
import os

import pytest
import tiny_models
import torch
from methods_table import BASES, FEW, METHODS_UNDER_TEST, TASKS
from peft import PeftType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from transformers import SwinModel

from peft_polyhistor import METHODS, MultiTaskDenseModel
from peft_polyhistor import TASKS as DENSE_ROWS
from peft_polyhistor.data.synthetic import synthetic_scenes


THREADS = int(os.environ["OMP_NUM_THREADS"])  # from conftest.py


@pytest.fixture(autouse=True)
def seed():
    tiny_models.set_seed(0)
    torch.set_num_threads(THREADS)  # recipes set a number of their own


@pytest.fixture(autouse=True)
def table_of_tasks():
    """The rows of `TASKS`, which are after a test what they were before it."""
    before = dict(DENSE_ROWS)
    yield before
    DENSE_ROWS.clear()
    DENSE_ROWS.update(before)


@pytest.fixture
def registry():
    """The registered methods, which are after a test what they were before it."""
    tables = [METHODS, PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING]
    tables += [PeftType._member_map_, PeftType._value2member_map_]
    before, names = [dict(table) for table in tables], list(PeftType._member_names_)
    yield METHODS
    for table, rows in zip(tables, before, strict=True):
        table.clear()
        table.update(rows)
    for name in PeftType._member_names_[len(names) :]:
        type.__delattr__(PeftType, name)
    PeftType._member_names_[:] = names


@pytest.fixture
def double():
    """Computes in float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def make_swin():
    return tiny_models.make_swin


@pytest.fixture
def make_dense():
    return tiny_models.make_dense


@pytest.fixture
def perturb():
    return tiny_models.perturb


@pytest.fixture
def make_labels():
    return tiny_models.make_labels


def pytest_collection_finish():
    gc.freeze()  # collections, which accelerate asks for after training, need not look at all that is imported


def pytest_unconfigure():
    gc.unfreeze()  # else modules in C++ report what they call leaks


def pytest_generate_tests(metafunc):
    """Runs a test on every row of the table that its marks and its base models allow.

    The default suite has few methods, one of each kind, on their first base, and the first of them on every base. A
    test marked `every_method` has all of them there, on their first base. The other turns are slow.
    """
    names, definition = metafunc.fixturenames, metafunc.definition
    if "row" not in names:
        return
    conditions = [mark.args[0] for mark in definition.iter_markers("rows")]
    chosen = [row for row in METHODS_UNDER_TEST if all(condition(row) for condition in conditions)]
    quick = [row.name for row in chosen if row.name in FEW] or [row.name for row in chosen[:1]]
    has_every = definition.get_closest_marker("every_method") is not None

    def param(row, *base):
        is_first = not base or base[0] is row.bases[0]
        is_quick = row.name == quick[0] or (is_first and (row.name in quick or has_every))
        name = "-".join([row.name, *(cls.__name__ for cls in base)])
        return pytest.param(row, *base, marks=() if is_quick else pytest.mark.slow, id=name)

    if "make_base" in names:
        pairs = [param(row, base) for row in chosen for base in row.bases]
        metafunc.parametrize(("row", "make_base"), pairs, indirect=True)
        return
    needed = MultiTaskDenseModel if "make_dense" in names and "make_swin" not in names else SwinModel
    metafunc.parametrize("row", [param(row) for row in chosen if needed in row.bases], indirect=True)


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
def make_base(request):
    """`make_base()`: the same frozen model at every call, for each class a method must work on."""
    return BASES[request.param]


@pytest.fixture
def pixels():
    return torch.randn(2, 3, 96, 128)


@pytest.fixture(scope="session")
def write_scenes(tmp_path_factory):
    """`write_scenes(train, val)`: a folder of parquet files with so many scenes."""

    def write(**counts):
        folder = tmp_path_factory.mktemp("scenes")
        for split, count in counts.items():
            data = synthetic_scenes(split=split, count=count, image_size=64, cache_dir=str(folder / "cache"))
            data.to_parquet(folder / f"{split}.parquet")
        return folder

    return write


@pytest.fixture(scope="session")
def parquet_scenes(write_scenes):
    """A folder of parquet files: 10 scenes to train on, 3 to validate."""
    return write_scenes(train=10, val=3)


@pytest.fixture(scope="session")
def small_encoder(tmp_path_factory):
    """A folder with a tiny Swin of random weights."""
    folder = tmp_path_factory.mktemp("encoder")
    tiny_models.make_swin().save_pretrained(folder)
    return folder


@pytest.fixture
def small_run(parquet_scenes, small_encoder):
    """`small_run(output_dir, *more)`: arguments of six steps on the small scenes, scored after the third and sixth."""

    def arguments(output_dir, *more):
        text = f"--data {parquet_scenes} --encoder {small_encoder} --image_size 64 --decoder_width 8 --batch_size 2"
        text += f" --workers 0 --threads 1 --steps 6 --eval_every 3 --output_dir {output_dir}"
        return [*text.split(), *more]

    return arguments
