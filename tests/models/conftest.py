# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""A tiny model of every encoder family."""

import pytest
import torch
from transformers import (
    PvtConfig,
    PvtForImageClassification,
    PvtModel,
    PvtV2Backbone,
    PvtV2Config,
    PvtV2ForImageClassification,
    PvtV2Model,
    SwinConfig,
    SwinModel,
    Swinv2Backbone,
    Swinv2Config,
    Swinv2ForImageClassification,
    Swinv2Model,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    TimmWrapperModel,
)


STAGES = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
SWIN = {"embed_dim": 8, "depths": [2, 2, 2, 2], "num_heads": [1, 2, 2, 4], "window_size": 3, "drop_path_rate": 0.0}
PVT = {"hidden_sizes": [8, 16, 24, 40], "depths": [1, 2, 1, 1], "num_attention_heads": [1, 2, 2, 4]}
TIMM_PVT = {"embed_dims": [8, 16, 24, 40], "depths": [1, 2, 1, 1], "num_heads": [1, 2, 2, 4]}
FEATURES = {"features_only": True, "out_indices": [0, 1, 2, 3]}


def _timm(cls, architecture, args):
    return cls(TimmWrapperConfig(architecture=architecture, model_args=args))


def _timm_swin(size, cls=TimmWrapperModel, **args):
    return _timm(cls, "swin_tiny_patch4_window7_224", {**SWIN, "img_size": size, **args})


def _timm_swinv2(size, **args):
    return _timm(TimmWrapperModel, "swinv2_tiny_window8_256", {**SWIN, "img_size": size, **args})


def _timm_pvt(size, **args):
    return _timm(TimmWrapperModel, "pvt_v2_b0", {**TIMM_PVT, **args})


# Each makes a model for pictures of one size; some families take others too.
MODELS = {
    "swin": lambda size: SwinModel(SwinConfig(**SWIN, image_size=size)),
    "swinv2": lambda size: Swinv2Model(Swinv2Config(**SWIN, image_size=size)),
    "swinv2_backbone": lambda size: Swinv2Backbone(Swinv2Config(**SWIN, image_size=size, **STAGES)),
    "swinv2_classifier": lambda size: Swinv2ForImageClassification(Swinv2Config(**SWIN, image_size=size)),
    "pvt": lambda size: PvtModel(PvtConfig(**PVT, image_size=size[0])),
    "pvt_classifier": lambda size: PvtForImageClassification(PvtConfig(**PVT, image_size=size[0])),
    "pvt_v2": lambda size: PvtV2Model(PvtV2Config(**PVT)),
    "pvt_v2_backbone": lambda size: PvtV2Backbone(PvtV2Config(**PVT, **STAGES)),
    "pvt_v2_classifier": lambda size: PvtV2ForImageClassification(PvtV2Config(**PVT)),
    "timm_swin": _timm_swin,
    "timm_swin_classifier": lambda size: _timm_swin(size, TimmWrapperForImageClassification),
    "timm_swin_features": lambda size: _timm_swin(size, **FEATURES),
    "timm_swinv2": _timm_swinv2,
    "timm_swinv2_features": lambda size: _timm_swinv2(size, **FEATURES),
    "timm_pvt_v2": _timm_pvt,
    "timm_pvt_v2_features": lambda size: _timm_pvt(size, **FEATURES),
}


# One class of each family, and one of timm's whose maps have their channels last.
FAMILIES = ["swin", "swinv2", "pvt", "pvt_v2", "timm_swin", "timm_swinv2", "timm_pvt_v2", "timm_swin_features"]


def _maker(name, perturb):
    def make(size=(96, 96)):
        torch.manual_seed(1)
        return perturb(MODELS[name](list(size))).eval()

    return make


SECOND = {"swinv2", "timm_swinv2", "timm_swin_features"}  # much like others: their maps alone are in the default suite


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.slow if name in SECOND else ()) for name in FAMILIES])
def family(request):
    """Name of an encoder family."""
    return request.param


@pytest.fixture(params=[pytest.param(name, marks=() if name in FAMILIES else pytest.mark.slow) for name in MODELS])
def variant(request):
    """Name of a class of a family, which starts with that of the family. The default suite has one for each family."""
    return request.param


@pytest.fixture
def make_model(family, perturb):
    """`make_model(size)`: the same tiny model of `family` at every call, ready to predict, for pictures of `size`."""
    return _maker(family, perturb)


@pytest.fixture
def make_variant(variant, perturb):
    """`make_model` for `variant`."""
    return _maker(variant, perturb)
