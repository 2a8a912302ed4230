# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Packages that only a part of this one needs, and that are installed with one of its extras."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Around the imports of packages that come with an extra: names the extra where one is not installed.

    Args:
        extra: Its name in pyproject.toml.

    Raises:
        ModuleNotFoundError: A package is not installed; the message says how to install it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"The package '{error.name}' is not installed, and this part of peft-polyhistor needs it. Install it with "
            f'`pip install "peft-polyhistor[{extra}]"`, or in a clone `pip install -e ".[{extra}]"`.',
            name=error.name,
        ) from error
