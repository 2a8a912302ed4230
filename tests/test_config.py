# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Settings: the paper's defaults, exact JSON, and errors that say what is allowed."""

import json
import math

import pytest
from peft import PeftConfig, PeftType

from peft_polyhistor import AdapterConfig, PolyhistorConfig, PolyhistorLiteConfig


CONFIGS = [PolyhistorConfig, PolyhistorLiteConfig]
# Polyhistor, arXiv:2210.03265, Sec. 5.1
SHARED_DEFAULTS = {
    "tasks": ["semseg", "human_parts", "saliency", "normals"],
    "placement": "parallel",
    "dropout": 0.0,
    "embedding_dim": 64,
    "rank": None,
    "rank_divisor": 4,
    "target_modules": None,
    "exclude_modules": None,
    "layers_to_transform": None,
    "modules_to_save": None,
    "init_weights": True,
    "task_type": None,
}


@pytest.mark.parametrize(("config_class", "peft_type", "reduction_factor"), [
    (PolyhistorConfig, "POLYHISTOR", 16),
    (PolyhistorLiteConfig, "POLYHISTOR_LITE", 2),
])  # fmt: skip
def test_defaults_are_those_of_the_paper(config_class, peft_type, reduction_factor):
    config = config_class()
    assert {name: getattr(config, name) for name in SHARED_DEFAULTS} == SHARED_DEFAULTS
    assert config.reduction_factor == reduction_factor
    assert config.peft_type is PeftType[peft_type]


@pytest.mark.parametrize("config_class", CONFIGS)
@pytest.mark.parametrize("changes", [
    {},
    {
        "tasks": ("b", "a"), "reduction_factor": 3, "placement": "serial", "dropout": 0.1, "embedding_dim": 5,
        "rank": 2, "rank_divisor": 7, "layers_to_transform": (3, 1), "exclude_modules": {"y", "x", "z"},
        "modules_to_save": ("head",), "init_weights": False,
    },
    {"target_modules": {"c", "b", "a"}},
    {"target_modules": r".*\.mlp"},
])  # fmt: skip
def test_json_round_trip_is_exact(config_class, changes, tmp_path):
    config = config_class(**changes)
    config.save_pretrained(tmp_path)
    for loader in (config_class, PeftConfig):
        loaded = loader.from_pretrained(tmp_path)
        assert type(loaded) is config_class
        assert loaded == config
        assert loaded.to_dict() == config.to_dict()
        assert loaded.peft_type is config.peft_type
    loaded.save_pretrained(tmp_path / "again")
    name = "adapter_config.json"
    assert (tmp_path / "again" / name).read_bytes() == (tmp_path / name).read_bytes()
    assert set(changes) <= set(json.loads((tmp_path / name).read_text()))


def test_collections_become_lists_of_one_order():
    config = PolyhistorConfig(tasks=("b", "a"), target_modules={"mlp", "fc"}, exclude_modules=("z", "y"))
    assert config.tasks == ["b", "a"]
    assert config.target_modules == ["fc", "mlp"]  # a set has no order of its own
    assert config.exclude_modules == ["z", "y"]
    config = PolyhistorConfig(layers_to_transform=range(2), modules_to_save={"b", "a"})
    assert config.layers_to_transform == [0, 1]
    assert config.modules_to_save == ["a", "b"]
    assert PolyhistorConfig(layers_to_transform=3).layers_to_transform == [3]
    assert PolyhistorConfig(target_modules="mlp").target_modules == "mlp"


NO_POSITIVE_INTEGER = [0, -1, 1.5, "2", True]
RECORD = {"encoder": None, "model_type": "swin", "blocks": 1, "widths": [8], "decoders": None}
INCOMPLETE = RECORD | {"decoders": {"decoder_width": 8}}
BAD_FIELDS = [
    *(("reduction_factor", v, ValueError, "an integer of at least 1, got") for v in [*NO_POSITIVE_INTEGER, None]),
    *(("embedding_dim", v, ValueError, "an integer of at least 1, got") for v in [*NO_POSITIVE_INTEGER, None]),
    *(("rank_divisor", v, ValueError, "an integer of at least 1, got") for v in [*NO_POSITIVE_INTEGER, None]),
    *(("rank", v, ValueError, "an integer of at least 1, got") for v in NO_POSITIVE_INTEGER),
    *(("dropout", v, ValueError, r"a probability in \[0, 1\), got") for v in [-0.1, 1, math.nan, "0.1", None]),
    *(("placement", v, ValueError, r"one of \['parallel', 'serial'\], got") for v in ["paralel", None]),
    *(("tasks", v, TypeError, "a list of names, got") for v in ["semseg", None, 3, {"a", "b"}]),
    *(
        ("tasks", v, ValueError, "letters, digits and underscores, each given once, got")
        for v in [[], ["a", "a"], ["a.b"], ["a b"], [""], [1]]
    ),
    *(
        ("layers_to_transform", v, ValueError, "block indices from 0, got")
        for v in [[], [-1], -1, ["0"], "0", 1.5, [True]]
    ),
    *((name, v, TypeError, "True or False, got") for name in ["init_weights", "inference_mode"] for v in ["no", 1]),
    *(("sublayers", v, ValueError, "a list of one or both") for v in [3, [["attention"]], None]),
    *((name, 2**31, ValueError, "at most 65536") for name in ["rank", "embedding_dim", "reduction_factor"]),
    *(("made_for", v, ValueError, "the record that an adapter saved") for v in [[], {}, "x", {"decoders": 3}]),
    ("made_for", INCOMPLETE, ValueError, r"at least .*'shared_norms'\] in `decoders`, .*; got .*'decoder_width': 8"),
    *(("made_for", RECORD | {"block_sizes": v}, ValueError, "a number for each block") for v in ["x", [], ["x"]]),
    ("target_modules", "(", ValueError, "unterminated subpattern"),
    ("base_model_name_or_path", 3, TypeError, "a string or None, got 3"),
    ("modules_to_save", "head", TypeError, "a list of names, got 'head'"),
    ("target_modules", 3, TypeError, "a list of names or a regular expression, got 3"),
    ("target_modules", [3], TypeError, r"a list of names or a regular expression, got \[3\]"),
    ("target_modules", "all-linear", ValueError, "name modules, got 'all-linear'. None takes all blocks"),
    ("exclude_modules", 3, TypeError, "a list of names or a regular expression, got 3"),
]


@pytest.mark.parametrize("config_class", CONFIGS)
@pytest.mark.parametrize(("field", "value", "error", "message"), BAD_FIELDS)
def test_a_bad_field_is_an_error_that_says_what_is_allowed(config_class, field, value, error, message):
    with pytest.raises(error, match=f"`{field}` must .*{message}"):
        config_class(**{field: value})


def test_bottlenecks_of_adapters_are_a_list():
    for value in (True, 3, "48"):
        with pytest.raises(ValueError, match=f"`bottlenecks` must be a list of integers, or None, got {value!r}"):
            AdapterConfig(bottlenecks=value)


def test_a_bad_field_in_a_saved_config_is_an_error(tmp_path):
    PolyhistorConfig().save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "rank": 0}))
    with pytest.raises(ValueError, match="`rank` must be an integer of at least 1, got 0"):
        PeftConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize("config_class", CONFIGS)
def test_blocks_are_chosen_by_index_or_by_name(config_class):
    with pytest.raises(ValueError, match="`target_modules` names modules: give one of them, not both"):
        config_class(target_modules=["mlp"], layers_to_transform=[0])


@pytest.mark.parametrize("task_type", ["FEATURE_EXTRACTION", "SEQ_CLS"])
def test_task_types_of_text_models_are_refused(task_type):
    with pytest.raises(ValueError, match="`task_type` must be None"):
        PolyhistorLiteConfig(task_type=task_type)
