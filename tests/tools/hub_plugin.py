# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Starts the small Hub before anything of Hugging Face is imported, as its address is read then.

A plugin (`pytest -p hub_plugin`), which is loaded before any conftest.py.
"""

import os
import tempfile

import pytest
from hub_server import serve


serving = serve()
server = serving.__enter__()
home = tempfile.TemporaryDirectory()
os.environ.update(
    HF_ENDPOINT=server.url,
    HF_HOME=home.name,
    HF_HUB_DISABLE_XET="1",  # the Hub's own protocol for large files, which the small one does not speak
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    NO_PROXY="127.0.0.1",
)
for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "TRANSFORMERS_OFFLINE"):
    os.environ.pop(name, None)


def pytest_unconfigure():
    serving.__exit__(None, None, None)
    home.cleanup()


@pytest.fixture
def hub():
    """The running Hub, without what earlier tests left; its users are `ann` (token `hf_ann`) and `bob`."""
    server.reset()
    return server
