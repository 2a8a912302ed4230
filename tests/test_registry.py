# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Our methods in PEFT's tables."""

import copy
import importlib.util
import json
import pickle

import pytest
from peft import LoraConfig, PeftType
from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)

from peft_polyhistor.methods.polyhistor import (
    PolyhistorConfig,
    PolyhistorLiteConfig,
    PolyhistorLiteModel,
    PolyhistorModel,
)
from peft_polyhistor.registry import METHODS, register


REGISTERED = [
    ("POLYHISTOR", PolyhistorConfig, PolyhistorModel),
    ("POLYHISTOR_LITE", PolyhistorLiteConfig, PolyhistorLiteModel),
]


@pytest.mark.parametrize(("name", "config_class", "tuner_class"), REGISTERED)
def test_the_type_is_a_true_member_of_the_enum(name, config_class, tuner_class):
    member = PeftType[name]
    assert PeftType(name) is member is getattr(PeftType, name)
    assert member in list(PeftType)
    assert list(PeftType).count(member) == 1
    assert (member.name, member.value, str.__str__(member), hash(member)) == (name, name, name, hash(name))
    assert pickle.loads(pickle.dumps(member)) is member
    assert copy.deepcopy(member) is member
    assert PeftType(json.loads(json.dumps(member))) is member


@pytest.mark.parametrize(("name", "config_class", "tuner_class"), REGISTERED)
def test_peft_finds_the_method_by_member_and_by_name(name, config_class, tuner_class):
    for key in (PeftType[name], name):
        assert PEFT_TYPE_TO_CONFIG_MAPPING[key] is config_class
        assert PEFT_TYPE_TO_TUNER_MAPPING[key] is tuner_class
        assert PEFT_TYPE_TO_PREFIX_MAPPING[key] == tuner_class.prefix
    assert METHODS[name.lower()] is config_class


@pytest.mark.parametrize("name", METHODS)
def test_saved_keys_name_the_method(name):
    """They are read again for years, and so is the type in the config."""
    assert PEFT_TYPE_TO_PREFIX_MAPPING[METHODS[name].method] == f"{METHODS[name].method.lower()}_"


def _tables():
    return [list(PeftType), dict(METHODS), dict(PEFT_TYPE_TO_CONFIG_MAPPING), dict(PEFT_TYPE_TO_TUNER_MAPPING)]


@pytest.mark.parametrize("arguments", REGISTERED)
def test_registering_again_changes_nothing(arguments):
    before = _tables()
    assert register(*arguments) is PeftType[arguments[0]]
    assert _tables() == before


def test_importing_again_changes_nothing():
    before = _tables()
    spec = importlib.util.find_spec("peft_polyhistor.methods.polyhistor")
    spec.loader.exec_module(importlib.util.module_from_spec(spec))  # the whole module, as new classes
    assert _tables() == before


def test_a_name_that_peft_takes_later_is_refused(monkeypatch):
    monkeypatch.setitem(PEFT_TYPE_TO_CONFIG_MAPPING, PeftType.POLYHISTOR, LoraConfig)
    before = _tables()
    with pytest.raises(RuntimeError, match=r"already has a method 'POLYHISTOR' \(.*LoraConfig\).*Install"):
        register(*REGISTERED[0])
    assert _tables() == before


def test_a_name_that_peft_reserves_without_a_method_is_refused(monkeypatch):
    monkeypatch.delitem(PEFT_TYPE_TO_CONFIG_MAPPING, PeftType.POLYHISTOR)
    with pytest.raises(RuntimeError, match="already has a method 'POLYHISTOR'"):
        register(*REGISTERED[0])


def test_a_name_of_peft_is_refused():
    with pytest.raises(RuntimeError, match="already has a method 'LORA'"):
        register("LORA", PolyhistorConfig, PolyhistorModel)
    assert PEFT_TYPE_TO_CONFIG_MAPPING["LORA"] is LoraConfig


@pytest.mark.parametrize(("prefix", "owner"), [("lora_", "LORA"), ("polyhistor_", "POLYHISTOR")])
def test_a_prefix_in_use_is_refused(prefix, owner):
    tuner_class = type("OtherModel", (PolyhistorModel,), {"prefix": prefix})
    before = _tables()
    with pytest.raises(RuntimeError, match=f"'{prefix}' of 'OTHER' is already used by PEFT's '{owner}'.*another"):
        register("OTHER", PolyhistorConfig, tuner_class)
    assert _tables() == before
    assert "OTHER" not in PeftType.__members__
