# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Optional dependencies, which the extras of pyproject.toml install."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Names the extra in the error when an import inside the `with` block fails.

    Args:
        extra: Name of the extra in pyproject.toml.

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
