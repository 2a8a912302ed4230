# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The small Hub of a test process. Import this before anything of Hugging Face, which reads its address once.

So no test reaches another Hub, or the caches of a user.
"""

import atexit
import os
import tempfile

import pytest
from hub_server import serve


_server = serve()
_home = tempfile.TemporaryDirectory()
atexit.register(_home.cleanup)
os.environ.update(
    HF_ENDPOINT=_server.url,
    HF_HOME=_home.name,
    HF_HUB_DISABLE_XET="1",  # the Hub's own protocol for large files, which the small one does not speak
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    NO_PROXY="127.0.0.1",
)
for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "TRANSFORMERS_OFFLINE"):
    os.environ.pop(name, None)


@pytest.fixture
def hub():
    """The running Hub, without what earlier tests left; its users are `ann` (token `hf_ann`) and `bob`."""
    _server.reset()
    return _server
