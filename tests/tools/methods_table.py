# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The methods under test, one row each, and what tests ask of a model whatever its method."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
import torch
from tiny_models import make_dense, make_swin, set_seed
from transformers import SwinModel

from peft_polyhistor import (
    AdapterConfig,
    BitFitConfig,
    CompacterConfig,
    CompacterPlusPlusConfig,
    DecodersConfig,
    HyperformerConfig,
    LowRankAdapterConfig,
    MultiTaskDenseModel,
    MultiTaskLoraConfig,
    PhmConfig,
    PolyhistorConfig,
    PolyhistorLiteConfig,
    RelativeBiasConfig,
    SharedAdapterConfig,
    StageEncoder,
    VmtAdapterConfig,
    VmtAdapterLiteConfig,
    VptDeepConfig,
    VptShallowConfig,
    view_encoder,
)


@dataclass
class Row:
    """A method under test; `bases` are the classes it works on."""

    name: str
    config_class: type
    kwargs: dict = field(default_factory=dict)
    bases: tuple = (SwinModel, MultiTaskDenseModel)
    starts_frozen: bool = True
    tasks_agree: bool = False  # on the maps of the encoder
    merges: bool = False


BOTH = {"sublayers": ["attention", "feed_forward"], "reduction_factor": 2}
STAGES_NEEDED = (StageEncoder, MultiTaskDenseModel)
BASES = {SwinModel: make_swin, MultiTaskDenseModel: make_dense, StageEncoder: lambda: view_encoder(make_swin())}
METHODS_UNDER_TEST = [
    Row("polyhistor", PolyhistorConfig, {"reduction_factor": 2}, merges=True),
    Row("polyhistor_lite", PolyhistorLiteConfig, merges=True),
    Row("adapter", AdapterConfig, merges=True),
    Row("shared_adapter", SharedAdapterConfig, tasks_agree=True, merges=True),
    Row("low_rank_adapter", LowRankAdapterConfig, {"reduction_factor": 2}, merges=True),
    Row("phm", PhmConfig, {"reduction_factor": 2}, merges=True),
    Row("compacter++", CompacterPlusPlusConfig, merges=True),
    Row("compacter", CompacterConfig),
    Row("hyperformer", HyperformerConfig, BOTH),
    Row("bitfit", BitFitConfig, merges=True),
    Row("relative_bias", RelativeBiasConfig, merges=True),
    Row("vpt_shallow", VptShallowConfig, {"prompts": 5}, starts_frozen=False),
    Row("vpt_deep", VptDeepConfig, {"prompts": 5}, starts_frozen=False),
    Row("lora", MultiTaskLoraConfig),
    Row("vmt_adapter", VmtAdapterConfig, bases=STAGES_NEEDED),
    Row("vmt_adapter_lite", VmtAdapterLiteConfig, bases=STAGES_NEEDED),
    Row("decoders", DecodersConfig, bases=(MultiTaskDenseModel,), tasks_agree=True),
]
FEW = ("polyhistor_lite", "bitfit", "vpt_deep", "lora", "vmt_adapter", "decoders")  # one of each kind
TASKS = ["semseg", "human_parts", "normals"]  # an uneven number
BLOCKS = [f"encoder.layers.{stage}.blocks.{block}.mlp" for stage, block in ((0, 0), (1, 0), (2, 0), (2, 1), (3, 0))]
# Weights that are loaded without a copy lie where the file has them, at any address, and kernels may round by it:
# PyTorch's BatchNorm does on AVX2. Where layers enlarge that difference, the fixture `double` computes in float64.
PLACED_BY_FILE = {"rtol": 1e-5, "atol": 1e-6}
ROUNDING = {"rtol": 1e-6, "atol": 1e-6}  # computed in float64; logits at full resolution are float32


def rows(condition):
    """The test runs on the rows that fulfil the condition."""
    return pytest.mark.rows(condition)


every_method = pytest.mark.every_method  # in the default suite, where a test otherwise runs on few
for_two_methods = rows(lambda row: row.name in ("polyhistor", "polyhistor_lite"))


def predict(model, pixels, task):
    """The output for one task, with gradient."""
    if hasattr(model, "decoders"):
        return model(pixels, tasks=[task])
    return model(pixels, task=task)


@torch.no_grad()
def predict_frozen(model, pixels, task):
    """The output of a model that knows nothing of adapters."""
    return model(pixels, tasks=[task]) if isinstance(model, MultiTaskDenseModel) else model(pixels)


def tensors_of(output):
    """All tensors of an output, of whatever type, by their path in it."""
    if isinstance(output, torch.Tensor):
        return {"": output}
    items = output.items() if isinstance(output, Mapping) else enumerate(output)
    return {f".{key}{path}": tensor for key, item in items for path, tensor in tensors_of(item).items()}


def check_equal(actual, expected, **tolerance):
    """The same types and, unless a tolerance is given, the same bits."""
    assert type(actual) is type(expected)
    actual, expected = tensors_of(actual), tensors_of(expected)
    assert expected
    torch.testing.assert_close(actual, expected, **(tolerance or {"rtol": 0, "atol": 0}))


def differ(first, second):
    first, second = tensors_of(first), tensors_of(second)
    return first.keys() == second.keys() and not all(torch.equal(first[path], second[path]) for path in first)


def loss_of(output):
    """A scalar in which every number of an output weighs differently."""
    set_seed(3)
    return sum((tensor.float() * torch.randn(tensor.shape)).sum() for tensor in tensors_of(output).values())


def trainable(model):
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def gradients(model):
    return {name: parameter.grad for name, parameter in trainable(model).items()}


def without_gradient(model):
    return [name for name, gradient in gradients(model).items() if gradient is None or not gradient.any()]
