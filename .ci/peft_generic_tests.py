# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""PEFT's own tests, of its source distribution, on every method and on LoRA. Run by `peft_tests`."""

import inspect
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch
from peft_cases import CONTROL, MERGING, MODELS, NO_MERGING, SKIPS, Models, cases, name_of


torch.set_num_threads(1)  # for models this small, threads cost more than they give

# PEFT's tests ask whether a model is a pipeline of diffusers, of which there are none here.
diffusers = ModuleType("diffusers")
diffusers.__spec__ = ModuleSpec("diffusers", None)
diffusers.StableDiffusionPipeline = type("StableDiffusionPipeline", (), {})
sys.modules["diffusers"] = diffusers

pytest.register_assert_rewrite("tests.testing_common", "tests.test_custom_models")
from tests import test_custom_models as custom  # noqa: E402
from tests import testing_common as common  # noqa: E402


# The lists that PEFT's tests run over, with the methods here in them.
custom.TEST_CASES[:] = [pytest.param(*case, id=f"{case[1]}-{case[0]}") for case in cases()]
custom.ALL_PEFT_CONFIG_CLASSES[:] = [config_class for _, model, config_class, _ in cases() if model == "MLP"]
custom.MULTIPLE_ACTIVE_ADAPTERS_TEST_CASES[:] = [
    pytest.param(*case[:3], *[custom.set_init_weights_false(*case[2:])] * 2, id=f"{case[1]}-{case[0]}")
    for case in cases()
    if case[1] != "SwinDense"  # of the decoders that are saved with an adapter, one copy is active
]
LISTS = (custom.TEST_CASES, custom.ALL_PEFT_CONFIG_CLASSES, custom.MULTIPLE_ACTIVE_ADAPTERS_TEST_CASES)

# Tests that PEFT's tests of custom models leave out: the models on which LoRA can pass it, and further arguments.
FURTHER = {
    "add_adapter_no_autocast_adapter_dtype": (list(MODELS), {"dtype": torch.bfloat16}),
    "disable_adapter": (list(MODELS), {}),
    "merge_layers_multi": (list(MODELS), {}),
    "merge_layers_nan": (list(MODELS), {}),
    "save_pretrained_selected_adapters": (list(MODELS), {}),
    "training_gradient_checkpointing": (["Swin", "SwinStages"], {"use_reentrant": False}),
    "training_layer_indexing": (["Swin", "SwinStages"], {}),
    "unload_adapter": (list(MODELS), {}),
    "weighted_combination_of_adapters": (["MLP", "Swin", "SwinStages"], {}),
}
# They read tokens, embeddings, hidden states or generated text.
OF_LANGUAGE_MODELS = [
    "generate",
    "generate_half_prec",
    "generate_pos_args",
    "generate_with_mixed_adapter_batches_and_beam_search",
    "lora_conversion",
    "mixed_adapter_batches",
    "passing_input_embeds_works",
    "prepare_for_training",
    "training_prompt_learning_tasks",
    "weighted_combination_of_adapters_ia3",
    "weighted_combination_of_adapters_lora",
]


class OnEveryMethod:
    """Gives a class of PEFT's tests the models here, and skips what a method cannot have."""

    transformers_class = Models

    @pytest.fixture(autouse=True)
    def prepare(self, request, monkeypatch):
        params = request.node.callspec.params
        self.model = params.get("model_id", params.get("tuner_method"))
        test = params.get("generic", request.node.originalname.removeprefix("test_"))
        method = name_of(params["config_cls"])

        def skip_unless_it_merges(*case):
            if method != CONTROL and test not in MERGING.get(method, []):
                pytest.skip(NO_MERGING)

        for module in (custom, common):
            monkeypatch.setattr(module, "_skip_if_merging_not_supported", skip_unless_it_merges)
        for reason, (tests, methods) in SKIPS.items():
            if test in tests and method in methods:
                pytest.skip(reason)

    def prepare_inputs_for_testing(self):
        if self.model == "MLP":
            return {"x": torch.arange(90).view(9, 10) / 90}
        return {"x": torch.randn(9, 3, 64, 64, generator=torch.Generator().manual_seed(0))}

    def resolve_model_cls(self, tuner_method):
        return Models.from_pretrained(tuner_method)


class TestCustomModels(OnEveryMethod, custom.TestPeftCustomModel):
    @pytest.mark.parametrize(
        ("generic", "test_name", "model_id", "config_cls", "config_kwargs"),
        [
            pytest.param(generic, *case, id=f"{generic}-{case[1]}-{case[0]}")
            for generic, (models, _) in FURTHER.items()
            for case in cases()
            if case[1] in models
        ],
    )
    def test_further(self, generic, test_name, model_id, config_cls, config_kwargs):
        function = getattr(self, f"_test_{generic}")
        function(model_id, config_cls, custom.set_init_weights_false(config_cls, config_kwargs), **FURTHER[generic][1])


class TestMultipleActiveAdapters(OnEveryMethod, custom.TestMultipleActiveAdapters):
    pass


class TestRequiresGrad(OnEveryMethod, custom.TestRequiresGrad):
    pass


class TestFsdp(OnEveryMethod, custom.TestPeftFsdpStateDict):
    pass


def runs_over_methods(test):
    marks = [mark for mark in getattr(test, "pytestmark", []) if mark.name == "parametrize"]
    return any("generic" in mark.args[0] or any(mark.args[1] is cases for cases in LISTS) for mark in marks)


for tests in (TestCustomModels, TestMultipleActiveAdapters, TestRequiresGrad, TestFsdp):
    for name in dir(tests):
        if name.startswith("test_") and not runs_over_methods(getattr(tests, name)):
            setattr(tests, name, None)  # about methods of PEFT


def test_every_generic_function_is_run_or_named():
    source = inspect.getsource(custom.TestPeftCustomModel)
    names = [name.removeprefix("_test_") for name in vars(common.PeftCommonTester) if name.startswith("_test_")]
    missing = [name for name in names if f"self._test_{name}(" not in source]
    assert [name for name in missing if name not in [*FURTHER, *OF_LANGUAGE_MODELS]] == []
