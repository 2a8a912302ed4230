# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Models of timm: bare, in the wrapper of transformers' backbones, from a folder, and errors."""

import json

import pytest
import timm
import torch
from safetensors.torch import save_file
from stage_maps import check_maps
from transformers import TimmBackbone, TimmBackboneConfig, TimmWrapperConfig, TimmWrapperModel

from peft_polyhistor.models.encoder import build_encoder, load_encoder, view_encoder
from peft_polyhistor.models.timm_stages import TimmFeatureStages, TimmStages


@pytest.mark.parametrize("name", ["pvt_v2_b0", "resnet18"])
@pytest.mark.parametrize(
    "features", [{}, {"features_only": True, "out_indices": [-4, -3, -2, -1]}], ids=["", "features"]
)
@torch.no_grad()
def test_a_bare_model_of_timm_is_built_again_by_its_name(name, features):
    if name == "resnet18" and not features:
        with pytest.raises(ValueError, match=r"yields 5 \(widths \[64, 64, 128, 256, 512\]\).*`out_indices`"):
            view_encoder(timm.create_model(name))
        return
    net, pixels = timm.create_model(name, num_classes=3, **features).eval(), torch.randn(1, 3, 64, 96)
    expected = net(pixels) if features else net.forward_intermediates(pixels, intermediates_only=True)
    encoder = view_encoder(net)
    assert type(encoder) is (TimmFeatureStages if features else TimmStages)
    check_maps(encoder(pixels), expected)
    assert encoder.strides == [4, 8, 16, 32]
    built = build_encoder(encoder.config).eval()
    built.load_state_dict(encoder.state_dict())
    check_maps(built(pixels), expected)


@torch.no_grad()
def test_a_timm_backbone_of_transformers():
    names = {"backbone": "swin_tiny_patch4_window7_224", "out_indices": [0, 1, 2, 3]}
    backbone, pixels = TimmBackbone(TimmBackboneConfig(**names)).eval(), torch.randn(1, 3, 224, 224)
    expected = [stage_map.movedim(-1, 1) for stage_map in backbone(pixels).feature_maps]
    encoder = view_encoder(backbone)
    check_maps(encoder(pixels), expected)
    assert sum(p.numel() for p in encoder.parameters()) == 27_517_818
    built = build_encoder(TimmBackboneConfig(**encoder.config.to_dict())).eval()
    built.load_state_dict(encoder.state_dict())
    check_maps(built(pixels), expected)


@pytest.mark.parametrize("arguments", [{"depths": (1, 1, 1, 1)}, {"embed_dims": (8, 16, 40, 32)}], ids=str)
def test_a_bare_model_of_timm_with_arguments_of_its_own_is_an_error(arguments):
    with pytest.raises(ValueError, match=r"not timm's 'pvt_v2_b0' as it is by default.*TimmWrapperModel\("):
        view_encoder(timm.create_model("pvt_v2_b0", **arguments))


def test_arguments_that_change_no_shape_are_seen_and_nothing_is_changed():
    net = timm.create_model("resnet18", features_only=True, out_indices=(1, 2, 3, 4), output_stride=8)
    with pytest.raises(ValueError, match="not timm's 'resnet18' as it is by default"):
        view_encoder(net)
    net = timm.create_model("pvt_v2_b0", depths=(1, 1, 1, 1), num_classes=7)
    with pytest.raises(ValueError, match="not timm's 'pvt_v2_b0'"):
        view_encoder(net)
    assert net.num_classes == 7 and isinstance(net.head, torch.nn.Linear)


@pytest.mark.parametrize("windows", [{"window_size": 16}, {"pretrained_window_sizes": (12, 12, 12, 6)}], ids=str)
def test_a_window_of_its_own_is_an_argument(windows):
    """It is in no weight of Swin V2, whose position bias is continuous."""
    with pytest.raises(ValueError, match="not timm's 'swinv2_tiny_window8_256'"):
        view_encoder(timm.create_model("swinv2_tiny_window8_256", **windows))


def test_a_model_of_timm_that_has_no_name_is_an_error():
    net = timm.models.pvt_v2.PyramidVisionTransformerV2(depths=(1, 1, 1, 1), embed_dims=(8, 16, 32, 64))
    with pytest.raises(ValueError, match="PyramidVisionTransformerV2 is not timm's 'None'"):
        view_encoder(net)


def test_a_model_of_timm_without_stages_is_an_error():
    tiny = {"embed_dim": 12, "depth": 3, "num_heads": 3}
    model = TimmWrapperModel(TimmWrapperConfig(architecture="vit_tiny_patch16_224", model_args=tiny))
    with pytest.raises(ValueError, match=r"needs the maps of four stages; TimmWrapperModel yields 3"):
        view_encoder(model)


@torch.no_grad()
def test_a_folder_as_timm_writes_it(tmp_path):
    """As on the Hub: no model type in the config, and bare keys."""
    net, pixels = timm.create_model("pvt_v2_b0").eval(), torch.randn(1, 3, 64, 96)
    config = {"architecture": "pvt_v2_b0", "num_classes": 1000, "pretrained_cfg": {"tag": "in1k"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(net.state_dict(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    encoder = load_encoder(str(tmp_path)).eval()
    check_maps(encoder(pixels), net.forward_intermediates(pixels, intermediates_only=True))


@torch.no_grad()
def test_a_folder_that_timm_saved(tmp_path):
    """timm 1.0.31 records the number of classes among the arguments of the model."""
    net, pixels = timm.create_model("pvt_v2_b0", num_classes=7).eval(), torch.randn(1, 3, 64, 96)
    timm.models.save_for_hf(net, tmp_path, safe_serialization=True)
    config = json.loads((tmp_path / "config.json").read_text())
    config.setdefault("model_args", {})["num_classes"] = 7
    (tmp_path / "config.json").write_text(json.dumps(config))
    encoder = load_encoder(str(tmp_path)).eval()
    check_maps(encoder(pixels), net.forward_intermediates(pixels, intermediates_only=True))


def test_a_folder_of_a_timm_backbone_is_an_error(tmp_path):
    TimmBackbone(TimmBackboneConfig(backbone="pvt_v2_b0")).save_pretrained(tmp_path)
    with pytest.raises(TypeError, match="holds a TimmBackbone, which transformers does not load from a folder"):
        load_encoder(str(tmp_path))
