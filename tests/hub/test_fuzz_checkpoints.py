# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: damaged files, missing, surplus and misshapen tensors, settings of any type, names that are paths."""

import json
import re
import shutil
from io import BytesIO
from zipfile import ZipFile

import pytest
import torch
from fuzzing import VALUES, damaged, fuzz, outcome
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_models import make_dense, make_swin

from peft_polyhistor import MultiTaskDenseModel, PolyhistorLiteConfig, load, load_original_swin, view_encoder
from peft_polyhistor.methods.per_task import DECODERS, adapt_per_task, load_per_task, save_per_task
from peft_polyhistor.models.original_swin import ORIGINAL_NAMES


pytestmark = pytest.mark.slow

TASKS = ["semseg", "normals"]
PIXELS = torch.zeros(1, 3, 96, 96)
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A whole checkpoint of each kind."""
    root = tmp_path_factory.mktemp("checkpoints")
    config = PolyhistorLiteConfig(tasks=TASKS, reduction_factor=4, embedding_dim=4)
    get_peft_model(make_dense(TASKS), config).save_pretrained(root / "adapter")
    save_per_task(adapt_per_task(make_dense(TASKS), LoraConfig(r=2)), root / "per_task")
    make_dense(TASKS).save_pretrained(root / "dense")
    return root


@pytest.fixture(scope="module")
def swin():
    return make_swin()


@st.composite
def other_tensors(draw, tensors):
    """The tensors with one to three missing, added, misshapen or of another type; whether a model can take them."""
    tensors, fits = dict(tensors), True
    for _ in range(draw(st.integers(1, 3))):
        key = draw(st.sampled_from(sorted(tensors)))
        match draw(st.sampled_from(["missing", "surplus", "shape", "scalar", "half", "values"])):
            case "missing":
                del tensors[key]
                fits = False
            case "surplus":
                tensors[f"{key}.more"] = torch.zeros(draw(st.integers(0, 3)))
                fits = False
            case "shape":
                tensors[key] = torch.zeros(*tensors[key].shape, 2)
                fits = False
            case "scalar":
                fits = fits and tensors[key].ndim == 0
                tensors[key] = torch.tensor(1)
            case "half":
                tensors[key] = tensors[key].bfloat16()
            case "values":
                tensors[key] = torch.full_like(tensors[key], 3)
    return tensors, fits


def copy_of(folder, tmp_path_factory):
    return shutil.copytree(folder, tmp_path_factory.mktemp("copy") / "checkpoint")


# Fields of a dense model's config; transformers checks the others.
FIELDS = ["tasks", "decoder_width", "decoder_dropout", "shared_norms", "loss_weights", "encoder", "dtype"]


def spoil(data, file):
    """Damages a JSON or safetensors file; whether it may still be read."""
    if file.suffix == ".json" and data.draw(st.booleans()):
        content = json.loads(file.read_text())
        keys = data.draw(
            st.lists(
                st.sampled_from(FIELDS if file.name == "config.json" else sorted(content)),
                min_size=1,
                max_size=2,
                unique=True,
            )
        )
        file.write_text(json.dumps(content | {key: data.draw(VALUES) for key in keys}))
    elif file.suffix == ".safetensors" and data.draw(st.booleans()):
        tensors, fits = data.draw(other_tensors(load_file(file)))
        save_file(tensors, file, metadata={"format": "pt"})
        return fits
    else:
        file.write_bytes(data.draw(damaged(file.read_bytes()[:4000])) + file.read_bytes()[4000:])
    return True


@fuzz(part=0.5)
@given(data=st.data())
def test_adapters(folders, swin, tmp_path_factory, data):
    folder = copy_of(folders / "adapter", tmp_path_factory)
    fits = spoil(data, folder / data.draw(st.sampled_from([CONFIG, WEIGHTS])))
    model = outcome(lambda: load(folder, encoder=make_swin()), str(folder), CONFIG, WEIGHTS)
    assert fits or model is None
    if model is not None:
        with torch.no_grad():
            logits = model(PIXELS).logits
        assert all(tensor.shape[-2:] == (96, 96) for tensor in logits.values())


@fuzz(part=0.3)
@given(data=st.data())
def test_adapters_per_task(folders, tmp_path_factory, data):
    folder = copy_of(folders / "per_task", tmp_path_factory)
    place = data.draw(st.sampled_from([DECODERS, *(f"{task}/{name}" for task in TASKS for name in (CONFIG, WEIGHTS))]))
    fits = spoil(data, folder / place)
    model = make_dense(TASKS)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    loaded = outcome(lambda: load_per_task(model, folder), str(folder))
    assert fits or loaded is None
    if loaded is None:  # the model is as it was
        after = model.state_dict()
        assert list(after) == list(before) and all(torch.equal(after[key], before[key]) for key in before)


@fuzz(part=0.3)
@given(data=st.data())
def test_dense_models(folders, tmp_path_factory, data):
    folder = copy_of(folders / "dense", tmp_path_factory)
    fits = spoil(data, folder / data.draw(st.sampled_from(["config.json", "model.safetensors"])))
    model = outcome(
        lambda: MultiTaskDenseModel.from_pretrained(folder),
        *(str(folder), "`", "asks", "encoder"),
        errors=(ValueError, TypeError, OSError, RuntimeError),
    )
    assert fits or model is None


def authors_checkpoint():
    """Weights of the tiny Swin under the keys of its authors."""
    state, parts = {}, {}
    for key, tensor in view_encoder(make_swin()).state_dict().items():
        part = re.search(r"\.([qkv])_proj\.", key)
        for pattern, name in ORIGINAL_NAMES.items():
            key = re.sub(pattern, name, key)
        if part:
            parts.setdefault(key, {})[part[1]] = tensor
        else:
            state[key] = tensor.contiguous()
    return state | {key: torch.cat([thirds[name] for name in "qkv"]) for key, thirds in parts.items()}


def saved(content):
    buffer = BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@st.composite
def damaged_pickle(draw, content):
    """An archive of `torch.save`, whole but for its pickle, which is damaged."""
    whole, fresh = ZipFile(BytesIO(content)), BytesIO()
    with ZipFile(fresh, "w") as archive:
        for name in whole.namelist():
            data = whole.read(name)
            archive.writestr(name, draw(damaged(data)) if name.endswith("data.pkl") else data)
    return fresh.getvalue()


@fuzz()
@given(data=st.data())
def test_checkpoints_of_swins_authors(tmp_path_factory, data):
    tensors = authors_checkpoint()
    path = tmp_path_factory.mktemp("swin") / f"swin{data.draw(st.sampled_from(['.pth', '.safetensors']))}"
    fits = True
    if data.draw(st.booleans()):
        tensors, fits = data.draw(other_tensors(tensors))
    if path.suffix == ".safetensors":
        save_file(tensors, path)
        content = path.read_bytes()
        content = data.draw(st.just(content) | damaged(content[:4000]).map(lambda start: start + content[4000:]))
    else:
        content = saved(tensors)
        others = st.sampled_from([{"model": {1: torch.zeros(2)}}, [torch.zeros(2)], {"model": None}, {}, "text"])
        content = data.draw(
            st.just(content)
            | damaged(content[:4000])
            | damaged_pickle(content)
            | others.map(saved)
            | st.binary(max_size=99)
        )
    path.write_bytes(content)
    encoder = outcome(lambda: load_original_swin(path), str(path))
    assert fits or encoder is None or content != saved(tensors)


names = st.one_of(
    st.sampled_from(
        ["../../etc", "a/b/../../c", "a/..", "../a", "a//b", "/etc", "~root", "a/b\x00", "a/b?c=d", "C:\\a", ""]
    ),
    st.text(max_size=12),
    st.text("abc./\\-_", max_size=12),
)


@fuzz(part=2)
@given(name=names, revision=st.none() | names)
def test_names_that_are_no_repository(folders, tmp_path_factory, name, revision):
    cache = tmp_path_factory.getbasetemp() / "names" / "cache"
    result = outcome(
        lambda: load(name, revision=revision, cache_dir=str(cache), local_files_only=True),
        repr(name)[1:-1],
        name,
        "`revision`",
    )
    assert result is None
    assert not [path for path in cache.parent.parent.glob("names/*") if path != cache]
