# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Starts the small Hub, and loads the fixtures where tests run: their imports take seconds."""

import os

from loopback_hub import hub  # noqa: F401, a fixture; no conftest.py may import anything of Hugging Face before


def pytest_configure(config):
    # PyTorch reads it as it is imported, for threads and processes that tests start. More cost small models time.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        config.pluginmanager.import_plugin("shared_fixtures")
