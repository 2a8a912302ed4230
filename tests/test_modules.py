# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The modules of the package."""

import importlib
import pkgutil

import peft_polyhistor


def test_no_name_of_a_package_hides_a_module():
    """dill looks for a class in its module; it pickles a class that it does not find there as a second class."""
    hidden = []
    for info in pkgutil.walk_packages(peft_polyhistor.__path__, "peft_polyhistor."):
        module, (package, _, name) = importlib.import_module(info.name), info.name.rpartition(".")
        if getattr(importlib.import_module(package), name) is not module:
            hidden.append(info.name)
    assert not hidden
