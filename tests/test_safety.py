# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""No file is run: what the code never uses, and folders made to be run by whoever loads them."""

import ast
import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from methods_table import check_equal
from peft import get_peft_model

from peft_polyhistor import MultiTaskDenseModel, PolyhistorLiteConfig, load, load_encoder, load_original_swin
from peft_polyhistor.methods.per_task import load_per_task


ROOT = Path(__file__).parents[1]
SOURCES = sorted([*(ROOT / "peft_polyhistor").rglob("*.py"), *(ROOT / "recipes").glob("*.py")])

# Functions that run what they read, or another program; and modules of them.
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load"}
FORBIDDEN_CALLS |= {"yaml.full_load", "np.load", "pickle.load", "pickle.loads", "torch.hub.load"}
FORBIDDEN_MODULES = {"pickle", "dill", "joblib", "marshal", "shelve", "cloudpickle"}
# The class of an error.
FILES_OF_DAMAGE = ("models/original_swin.py",)
ALLOWED_IMPORTS = {(file, "pickle.UnpicklingError") for file in FILES_OF_DAMAGE}


def name_of(node):
    """`a.b.c` of a call's function; an empty text for others."""
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def violations(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            name, options = name_of(node.func), {keyword.arg: keyword.value for keyword in node.keywords}
            is_true = {key: isinstance(value, ast.Constant) and value.value is True for key, value in options.items()}
            if name in FORBIDDEN_CALLS or (name == "torch.load" and not is_true.get("weights_only")):
                yield f"{path}:{node.lineno} calls {name}"
            trusts = options.get("trust_remote_code")
            if trusts is not None and not (isinstance(trusts, ast.Constant) and trusts.value is False):
                yield f"{path}:{node.lineno} trusts remote code"
            if is_true.get("shell"):
                yield f"{path}:{node.lineno} runs a shell"
        imported = []
        if isinstance(node, ast.Import):
            imported = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            imported = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in imported:
            allowed = any(str(path).endswith(file) and name == known for file, known in ALLOWED_IMPORTS)
            if name.split(".")[0] in FORBIDDEN_MODULES and not allowed:
                yield f"{path}:{node.lineno} imports {name}"


def test_nothing_that_runs_what_it_reads_is_used():
    assert [line for path in SOURCES for line in violations(path)] == []


def test_the_check_above_finds_what_it_is_for(tmp_path):
    lines = ["eval('1')", "import pickle", "from pickle import loads", "yaml.load(x)", "torch.load(x)"]
    lines += ["torch.load(x, weights_only=False)", "f(trust_remote_code=True)", "f(trust_remote_code=y)"]
    lines += ["run(x, shell=True)", "os.system(x)"]
    file = tmp_path / "code.py"
    for line in lines:
        file.write_text(line)
        assert list(violations(file)), line


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def mark(tmp_path):
    """A folder that a trap makes, and that must not be there in the end."""
    path = tmp_path / "was_run"
    yield path
    assert not path.exists()


def test_the_trap_works(tmp_path):
    pickle.loads(pickle.dumps(Trap(tmp_path / "made")))
    assert (tmp_path / "made").is_dir()


def write_traps(folder, mark, *names):
    for name in names:
        (folder / name).unlink(missing_ok=True)
        torch.save({"weight": Trap(mark)}, folder / name)


@pytest.fixture
def adapter(make_dense, tmp_path):
    folder = tmp_path / "adapter"
    get_peft_model(make_dense(), PolyhistorLiteConfig(tasks=make_dense().config.tasks)).save_pretrained(folder)
    return folder


def test_an_adapter_of_a_pickle_is_refused(adapter, make_swin, mark):
    write_traps(adapter, mark, "adapter_model.bin")
    load(adapter, encoder=make_swin())  # beside safetensors it is not looked at
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no adapter_model\.safetensors.*any other format are not read"):
        load(adapter, encoder=make_swin())
    write_traps(adapter, mark, "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors of .* is damaged"):
        load(adapter, encoder=make_swin())


def test_an_adapter_per_task_of_a_pickle_is_refused(adapter, make_dense, mark, tmp_path):
    dense = make_dense()
    for task in dense.config.tasks:
        (tmp_path / "tasks" / task).mkdir(parents=True)
        (tmp_path / "tasks" / task / "adapter_config.json").write_text((adapter / "adapter_config.json").read_text())
        write_traps(tmp_path / "tasks" / task, mark, "adapter_model.bin")
    with pytest.raises(FileNotFoundError, match=r"adapter_model\.safetensors.*decoders\.safetensors"):
        load_per_task(dense, tmp_path / "tasks")


def test_a_model_of_a_pickle_is_refused(make_dense, make_swin, mark, tmp_path):
    for model, loader in ((make_dense(), MultiTaskDenseModel.from_pretrained), (make_swin(), load_encoder)):
        folder = tmp_path / type(model).__name__
        model.save_pretrained(folder)
        (folder / "model.safetensors").unlink()
        write_traps(folder, mark, "pytorch_model.bin")
        with pytest.raises((OSError, ValueError, pickle.UnpicklingError)):
            loader(folder)


def test_a_checkpoint_with_objects_is_refused(mark, tmp_path):
    write_traps(tmp_path, mark, "swin.pth")
    with pytest.raises(ValueError, match=r"swin\.pth' is damaged, or holds more than tensors and settings"):
        load_original_swin(tmp_path / "swin.pth")


def test_code_in_the_folder_of_an_encoder_is_not_run(mark, tmp_path):
    (tmp_path / "code.py").write_text(f"import os\nos.mkdir({str(mark)!r})\n")
    config = {"model_type": "theirs", "auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="trust_remote_code"):
        load_encoder(tmp_path)
    with pytest.raises(ValueError, match="runs no code of a repository"):
        load_encoder(tmp_path, trust_remote_code=True)


PATHS = ["../../etc", "a/b/../../c", "a/..", "../a", "/etc/passwd", "a//b", ".", "a/b\x00"]


@pytest.mark.parametrize("name", PATHS)
def test_names_of_repositories_are_no_paths(name, tmp_path):
    with pytest.raises((FileNotFoundError, ValueError)):
        load(name, cache_dir=str(tmp_path / "cache"), local_files_only=True)
    assert list(tmp_path.iterdir()) in ([], [tmp_path / "cache"])


@pytest.mark.parametrize("revision", ["../../x", "/etc", ".", "", "a\x00", "a/../b"])
def test_revisions_are_no_paths(revision, tmp_path):
    with pytest.raises(ValueError, match="`revision` must be a branch, tag or commit"):
        load("user/name", revision=revision, cache_dir=str(tmp_path), local_files_only=True)


def test_options_that_are_none_of_a_download_are_refused(adapter):
    for options in ({"subfolder": "../other"}, {"trust_remote_code": True}, {"use_safetensors": False}):
        with pytest.raises(TypeError, match=f"no options {list(options)}".replace("[", r"\[").replace("]", r"\]")):
            load(adapter, **options)


def test_a_config_that_asks_for_more_than_the_file_has_takes_no_memory(adapter, make_swin, pixels):
    file = adapter / "adapter_config.json"
    settings = json.loads(file.read_text())
    check_equal(*(load(adapter, encoder=make_swin())(pixels) for _ in range(2)))
    decoders = settings["made_for"] | {"decoders": settings["made_for"]["decoders"] | {"decoder_width": 60_000}}
    for change in ({"embedding_dim": 60_000, "rank": 60_000}, {"made_for": decoders}):  # terabytes
        file.write_text(json.dumps(settings | change))
        with pytest.raises(ValueError, match="does not fit a model"):
            load(adapter, encoder=make_swin())
