# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Methods by name: the list of a study, and the models they make."""

import pytest
from peft import PeftModel
from torch import nn

from peft_polyhistor import METHODS
from peft_polyhistor.evaluation import count_trainable
from peft_polyhistor.training import MethodChoice, adapt, parse_methods
from peft_polyhistor.training.methods import PEFT_METHODS, make_config, parameter_groups


def test_a_method_is_a_name_or_a_mapping_of_a_name_to_fields():
    entries = ["decoders", {"phm": {"reduction_factor": 12}}, "polyhistor: {rank: 4, label: polyhistor_4}"]
    assert parse_methods(entries) == [
        MethodChoice("decoders", "decoders", {}),
        MethodChoice("phm", "phm", {"reduction_factor": 12}),
        MethodChoice("polyhistor", "polyhistor_4", {"rank": 4}),
    ]


def test_a_label_tells_settings_of_one_method_apart():
    with pytest.raises(ValueError, match=r"each once, got \['phm', 'phm'\].*give each a label"):
        parse_methods(["phm", {"phm": {"order": 1}}])
    first, second = parse_methods(["phm", {"phm": {"order": 1, "label": "phm_1"}}])
    assert (first.label, second.label) == ("phm", "phm_1")
    with pytest.raises(ValueError, match=r"`label` of method 'phm' must be a name for a folder, got '\.\./x'"):
        parse_methods([{"phm": {"label": "../x"}}])


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("lora2", r"`methods` must be among \['full', .*got 'lora2'"),
        (3, "got 3"),
        ({"phm": 3}, r"got \{'phm': 3\}"),
        ({"phm": {}, "lora": {}}, "got "),
        (["phm"], "got "),
        ({"full": {"rank": 3}}, r"'full' trains all weights and has no settings, got \{'rank': 3\}"),
        ({"polyhistor": {"ranks": 4}}, r"'polyhistor' has no fields \['ranks'\]; it has \[.*'rank'"),
        ({"peft_lora": {"ranks": 4}}, r"'peft_lora' has no fields \['ranks'\]; it has \[.*'r'"),
        ({"polyhistor": {"tasks": ["semseg"]}}, r"has no fields \['tasks'\]"),
        ({"polyhistor": {"rank": 0}}, "'polyhistor' with .*`rank` must be an integer of at least 1"),
        ("phm: [", r"`methods`: 'phm: \[' is not valid YAML"),
    ],
)
def test_bad_methods_say_what_is_allowed(entry, message):
    with pytest.raises(ValueError, match=message):
        parse_methods([entry])
    with pytest.raises(ValueError, match="`methods` must be among"):
        parse_methods([])


@pytest.mark.parametrize("name", [*METHODS, *PEFT_METHODS])
def test_every_method_makes_its_own_weights_trainable(make_dense, name):
    is_bottleneck = hasattr((METHODS | PEFT_METHODS)[name], "reduction_factor")
    [choice] = parse_methods(
        [{name: {"reduction_factor": 4}} if is_bottleneck else name]
    )  # the test's layers are thin
    model = adapt(make_dense(["normals"]), choice, ["normals"])
    assert (count_trainable(model)["encoder"] > 0) == (name != "decoders")
    assert isinstance(model, PeftModel) == (name in METHODS)


def test_fine_tuning_trains_the_model_as_it_is(make_dense):
    model = make_dense(["normals"])
    assert adapt(model, *parse_methods(["full"]), ["normals"]) is model


def test_configs_have_the_tasks_of_the_run():
    assert make_config(*parse_methods(["polyhistor"]), ["normals"]).tasks == ["normals"]


def test_decoders_have_their_own_learning_rate():
    model = nn.ModuleDict({"encoder": nn.Linear(2, 2), "decoders": nn.Linear(3, 1)})
    model["encoder"].bias.requires_grad_(False)
    encoder, decoders = parameter_groups(model, 0.1, 0.2)
    assert encoder == {"params": [model["encoder"].weight], "lr": 0.1} and decoders["lr"] == 0.2
    assert [group["lr"] for group in parameter_groups(model, 0.1, 0)] == [0.1, 0.1]
    assert len(parameter_groups(model.requires_grad_(False), 0.1, 0.2)) == 0
