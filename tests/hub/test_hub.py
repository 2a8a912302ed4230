# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The round trip through a Hub: published, found, downloaded, loaded, and every way that it can fail."""

import subprocess
import sys
from pathlib import Path


def test_round_trip():
    files = ["hub_round_trip.py", "own_tasks_round_trip.py"]
    command = [sys.executable, "-m", "pytest", "-p", "hub_plugin", "-o", "addopts=", "-q", *files]
    tools = Path(__file__).parents[1] / "tools"
    done = subprocess.run(command, cwd=tools, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
