# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Encoders of the real Hub load whole: `pytest -m hub`, which needs the network and downloads 300 MB."""

import json
import os
import subprocess
import sys

import pytest


OF_THE_SMALL_HUB = ("HF_ENDPOINT", "HF_HOME", "HF_HUB_DISABLE_XET", "NO_PROXY")
SCRIPT = """
import json, sys, torch
from peft_polyhistor import load_encoder

with torch.no_grad():
    maps = load_encoder(sys.argv[1]).eval()(torch.randn(1, 3, 256, 256))
assert all(stage_map.isfinite().all() for stage_map in maps)
print(json.dumps([stage_map.shape[1:] for stage_map in maps]))
"""
ENCODERS = {
    "microsoft/swin-tiny-patch4-window7-224": [96, 192, 384, 768],
    "microsoft/swinv2-tiny-patch4-window8-256": [96, 192, 384, 768],
    "Zetatech/pvt-tiny-224": [64, 128, 320, 512],
    "OpenGVLab/pvt_v2_b0": [32, 64, 160, 256],
    "timm/pvt_v2_b0.in1k": [32, 64, 160, 256],
}


@pytest.mark.hub
@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_of_the_hub_loads_whole(name):
    """In a process of its own, as this one knows the small Hub alone; `load_encoder` refuses missing weights."""
    environment = {key: value for key, value in os.environ.items() if key not in OF_THE_SMALL_HUB}
    command = [sys.executable, "-c", SCRIPT, name]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[width, 64 >> stage, 64 >> stage] for stage, width in enumerate(ENCODERS[name])]
