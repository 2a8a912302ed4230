# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Adapters merge into every encoder family whose feed-forward block has the norm in front, or it is said why not."""

import pytest
import torch
from methods_table import PLACED_BY_FILE, tensors_of
from peft import PeftModel, get_peft_model
from transformers import PvtV2Config, PvtV2Model, SwinModel, TimmBackbone, TimmBackboneConfig

from peft_polyhistor import AdapterConfig, BitFitConfig, MultiTaskDenseModel, SharedAdapterConfig, load_encoder
from peft_polyhistor.models.encoder import ASSETS


SINGLE = {"rtol": 1e-5, "atol": 1e-5}
RATIOS = {
    "swin": 4.5,
    "pvt": [9, 9, 5, 5],
    "pvt_v2": [9, 9, 5, 5],
    "timm_swin": {"mlp_ratio": 4.5},
    "timm_swin_features": {"mlp_ratio": 4.5},
    "timm_pvt_v2": {"mlp_ratios": [8.5, 8.5, 4.5, 4.5]},
}


def ratio_of(config):
    for name in ("mlp_ratio", "mlp_ratios"):
        if hasattr(config, name):
            return getattr(config, name)
    return {name: value for name, value in config.model_args.items() if "ratio" in name}


def check_close(got, expected, **tolerance):
    torch.testing.assert_close(tensors_of(got), tensors_of(expected), **tolerance)


@torch.no_grad()
def test_merges_and_is_saved_and_loaded_by_its_own_class(variant, make_variant, perturb, tmp_path):
    model, pixels = make_variant(), torch.randn(2, 3, 96, 96)
    kind = type(model)
    model = perturb(get_peft_model(model, AdapterConfig(tasks=["a", "b"])).eval())
    expected = model(pixels, task="b")
    if "swinv2" in variant:
        with pytest.raises(ValueError, match=r"cannot be merged.*norm is behind it, as in Swin V2"):
            model.merge_and_unload(task="b")
        check_close(model(pixels, task="b"), expected, rtol=0, atol=0)
        return
    merged = model.merge_and_unload(task="b")
    assert type(merged) is kind
    family = next(name for name in sorted(RATIOS, key=len, reverse=True) if variant.startswith(name))
    ratio = ratio_of(merged.config)
    assert (list(ratio) if isinstance(ratio, tuple) else ratio) == RATIOS[family]
    check_close(merged(pixels), expected, **SINGLE)
    merged.save_pretrained(tmp_path)
    check_close(kind.from_pretrained(tmp_path).eval()(pixels), merged(pixels), **PLACED_BY_FILE)


@pytest.mark.slow
@pytest.mark.parametrize("method", [AdapterConfig, SharedAdapterConfig, BitFitConfig])
@torch.no_grad()
def test_a_merged_dense_model_is_saved_and_loaded(family, make_model, perturb, method, tmp_path):
    if "swinv2" in family and method is not BitFitConfig:
        return
    dense = MultiTaskDenseModel.from_encoder(
        make_model(), ["saliency"], decoder_width=8, shared_norms=method.shares_pass
    )
    model, pixels = perturb(get_peft_model(dense, method(tasks=["saliency"])).eval()), torch.randn(2, 3, 96, 96)
    expected = model(pixels)
    merged = model.merge_and_unload()
    check_close(merged(pixels), expected, **SINGLE)
    merged.save_pretrained(tmp_path)
    check_close(MultiTaskDenseModel.from_pretrained(tmp_path)(pixels), merged(pixels), **PLACED_BY_FILE)


@torch.no_grad()
def test_adapters_of_swin_mini_merge_into_a_swin_of_transformers(perturb, tmp_path):
    """Adapters that were trained on `load_encoder("swin-mini")`, whose output are stage maps, fit its files."""
    trained = perturb(get_peft_model(load_encoder("swin-mini"), AdapterConfig(tasks=["a", "b"])).eval())
    trained.save_pretrained(tmp_path / "adapters")
    swin = SwinModel.from_pretrained(ASSETS / "swin-mini").eval()
    merged = PeftModel.from_pretrained(swin, tmp_path / "adapters").merge_and_unload(task="b")
    merged.save_pretrained(tmp_path / "merged")
    plain, pixels = SwinModel.from_pretrained(tmp_path / "merged").eval(), torch.randn(1, 3, 128, 128)
    maps = plain(pixels, output_hidden_states=True, output_hidden_states_before_downsampling=True)
    check_close(list(maps.reshaped_hidden_states[1:]), trained(pixels, task="b"), **SINGLE)


def test_a_relu_in_front_of_the_convolution_lets_no_channel_through():
    """In PVT v2's variant of linear attention."""
    sizes = {"hidden_sizes": [8, 16, 24, 40], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 2, 4]}
    model = get_peft_model(PvtV2Model(PvtV2Config(**sizes, linear_attention=True)), AdapterConfig(tasks=["a"]))
    with pytest.raises(ValueError, match=r"computes with ReLU\(\), and adapters with the exact GELU"):
        model.merge_and_unload()


def test_a_config_that_cannot_say_the_ratio_is_an_error():
    config = TimmBackboneConfig(
        backbone="swin_tiny_patch4_window7_224", use_pretrained_backbone=False, out_indices=[0, 1, 2, 3]
    )
    model = get_peft_model(TimmBackbone(config), AdapterConfig(tasks=["a"]))
    with pytest.raises(ValueError, match=r"TimmBackboneConfig has no field `mlp_ratio`.*TimmWrapperModel"):
        model.merge_and_unload()
