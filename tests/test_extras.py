# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The parts that work without the extras of pyproject.toml, and the errors of the others."""

import subprocess
import sys

import pytest

from peft_polyhistor.extras import needs_extra


WITHOUT_EXTRAS = """
import sys
for name in ("datasets", "evaluate", "matplotlib", "pyarrow", "scipy", "tensorboard", "timm"):
    sys.modules[name] = None  # as if it were not installed

import torch
from peft import PeftModel, get_peft_model
from transformers import SwinConfig, SwinModel

import peft_polyhistor

folder = sys.argv[1]
dense = peft_polyhistor.MultiTaskDenseModel.from_encoder(
    peft_polyhistor.load_encoder("swin-mini"), ["semseg"], decoder_width=8
)
model = get_peft_model(dense, peft_polyhistor.PolyhistorLiteConfig(tasks=["semseg"]))
model(torch.randn(1, 3, 64, 64), {"semseg": torch.zeros(1, 64, 64, dtype=torch.long)}).loss.backward()
model.save_pretrained(folder)
peft_polyhistor.load(folder)

from PIL import Image
from peft_polyhistor.__main__ import main

Image.new("RGB", (64, 48)).save(f"{folder}/picture.png")
assert main(["predict", folder, f"{folder}/picture.png", "--out", f"{folder}/out", "--image_size", "64"]) == 0

PARTS = {"data": "train", "tasks.evaluate_metric": "train", "models.timm_stages": "timm"}
for module, extra in PARTS.items():
    try:
        __import__(f"peft_polyhistor.{module}")
    except ModuleNotFoundError as error:
        assert f"peft-polyhistor[{extra}]" in str(error), error
    else:
        raise AssertionError(f"peft_polyhistor.{module} was imported without '{extra}'")
"""


@pytest.mark.slow  # the start of a process; `.ci/package` runs it in an environment that has no extras
def test_models_are_adapted_loaded_and_predict_without_extras_and_the_rest_names_its_extra(tmp_path):
    command = [sys.executable, "-c", WITHOUT_EXTRAS, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_a_missing_package_names_the_extra_it_comes_with(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    expected = r"'scipy' is not installed.*pip install \"peft-polyhistor\[train\]\""
    with pytest.raises(ModuleNotFoundError, match=expected), needs_extra("train"):
        import scipy  # noqa: F401
