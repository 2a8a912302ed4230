# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Tells apart the sources of data and encoders: repositories on the Hub, and folders, whose paths are private."""

import os
from pathlib import Path, PureWindowsPath

from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id


# huggingface_hub raises the errors of its HTTP library, httpx or httpx2, and derives its own from their base class.
TRANSPORT_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]


def is_hub_id(source: str) -> bool:
    """Tells whether a source is written as a Hub id and does not exist on this machine.

    Note: A relative path such as `data/photos` is written as a Hub id too, so a folder of another machine passes.
    """
    try:
        validate_repo_id(source)
    except HFValidationError:
        return False
    return not Path(os.path.expanduser(source)).exists()


def public_name(source: str) -> str:
    """Returns a Hub id as it is, and of a POSIX or Windows path only the last part."""
    return source if is_hub_id(source) else PureWindowsPath(source).name or source
