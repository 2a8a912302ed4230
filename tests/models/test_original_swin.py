# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints in the layout of Swin's authors, against timm's model with the same weights."""

import sys
import types

import pytest
import timm
import torch
from safetensors.torch import save_file

from peft_polyhistor import MultiTaskDenseModel, load_original_swin


SIZES = {"embed_dim": 8, "depths": (2, 1, 3, 2), "num_heads": (1, 2, 2, 4), "window_size": 3, "mlp_ratio": 2.5}


@pytest.fixture
def net(perturb):
    """timm's Swin, made for pictures whose maps all consist of several whole windows."""
    return perturb(
        timm.create_model("swin_tiny_patch4_window7_224", img_size=(192, 288), num_classes=5, **SIZES)
    ).eval()


@pytest.fixture
def original(net):
    """Its weights as the authors' code would save them: patches merge at the end of a stage, and buffers are saved."""
    state = {}
    for name, tensor in net.state_dict().items():
        parts = name.split(".")
        if "downsample" in parts:  # timm merges at the start of the next stage
            parts[1] = str(int(parts[1]) - 1)
        state[".".join(parts).replace("head.fc.", "head.")] = tensor
    for i, depth in enumerate(SIZES["depths"]):
        for j in range(depth):
            state[f"layers.{i}.blocks.{j}.attn.relative_position_index"] = torch.zeros(9, 9, dtype=torch.long)
            if j % 2:
                state[f"layers.{i}.blocks.{j}.attn_mask"] = torch.zeros(4, 9, 9)
    return state


def moby(original):
    """The state that MoBY's training saves: online and momentum encoder, projectors, predictor and queues."""
    online = {f"encoder.{key}": tensor for key, tensor in original.items() if not key.startswith("head.")}
    momentum = {key.replace("encoder.", "encoder_k."): torch.zeros_like(tensor) for key, tensor in online.items()}
    others = ("projector.linear_out.weight", "projector_k.linear_out.weight", "predictor.linear_out.bias", "queue1")
    return {**momentum, **online, **{key: torch.zeros(2, 2) for key in others}}


@torch.no_grad()
def check(path, net):
    encoder = load_original_swin(path).eval()
    pixels = torch.randn(2, 3, 192, 288)
    for ours, theirs in zip(encoder(pixels), net.forward_intermediates(pixels, intermediates_only=True), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"model": state}], ids=["bare", "model"])
def test_a_swin_of_its_authors_computes_what_timm_does(net, original, tmp_path, wrap):
    torch.save(wrap(original), tmp_path / "swin.pth")
    check(tmp_path / "swin.pth", net)


def test_a_safetensors_file(net, original, tmp_path):
    save_file({key: tensor.contiguous() for key, tensor in original.items()}, tmp_path / "swin.safetensors")
    check(str(tmp_path / "swin.safetensors"), net)


def test_the_online_encoder_of_moby_is_taken(net, original, tmp_path):
    torch.save({"model": moby(original), "epoch": 299}, tmp_path / "moby.pth")
    check(tmp_path / "moby.pth", net)


def test_a_training_checkpoint_with_settings_is_read_without_their_library(net, original, tmp_path, monkeypatch):
    module = types.ModuleType("yacs.config")
    module.CfgNode = type("CfgNode", (dict,), {"__module__": "yacs.config"})
    settings = module.CfgNode(MODEL=module.CfgNode(NAME="moby"))
    settings.__dict__["__immutable__"] = True
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
        patch.setitem(sys.modules, "yacs.config", module)
        torch.save({"model": moby(original), "optimizer": {"state": {}}, "config": settings}, tmp_path / "moby.pth")
    check(tmp_path / "moby.pth", net)


def test_sizes_are_read_off_the_tensors(original, tmp_path):
    torch.save(original, tmp_path / "swin.pth")
    config = load_original_swin(tmp_path / "swin.pth").config
    for name, value in SIZES.items():
        assert getattr(config, name) == (list(value) if isinstance(value, tuple) else value)
    assert config.qkv_bias and config.patch_size == 4 and config.name_or_path == ""


@torch.no_grad()
def test_the_dense_model_keeps_the_weights(original, tmp_path):
    torch.save(original, tmp_path / "swin.pth")
    model = MultiTaskDenseModel.from_encoder(load_original_swin(tmp_path / "swin.pth"), ["saliency"], decoder_width=4)
    model.eval().save_pretrained(tmp_path / "dense")
    pixels = torch.randn(1, 3, 64, 96)
    loaded = MultiTaskDenseModel.from_pretrained(tmp_path / "dense")
    assert torch.equal(loaded(pixels).logits["saliency"], model(pixels).logits["saliency"])


@pytest.mark.parametrize(("spoil", "message"), [
    (lambda s: s.pop("layers.2.blocks.1.norm2.bias"), r"missing keys \['layers.2.blocks.1.norm2.bias'\], unexpected"),
    (lambda s: s.update(absolute_pos_embed=torch.zeros(1, 9, 8)), r"unexpected keys \['absolute_pos_embed'\]"),
    (lambda s: s.pop("layers.0.blocks.0.mlp.fc1.weight"), "'layers.0.blocks.0.mlp.fc1.weight' is missing"),
    (lambda s: s.pop("patch_embed.proj.weight"), "'patch_embed.proj.weight' is missing"),
    (lambda s: s.update({"layers.3.blocks.0.attn.relative_position_bias_table": torch.zeros(9, 4)}), r"25, 25, 25, 9"),
])  # fmt: skip
def test_what_is_no_whole_swin_is_an_error(original, tmp_path, spoil, message):
    spoil(original)
    torch.save(original, tmp_path / "swin.pth")
    with pytest.raises(ValueError, match=message):
        load_original_swin(tmp_path / "swin.pth")


@pytest.mark.parametrize("prefix", ["module.", "backbone.", "module.encoder."])
def test_prefixes_of_other_code_are_taken_off(net, original, tmp_path, prefix):
    state = {f"{prefix}{key}": value for key, value in original.items()}
    torch.save({"state_dict": state | {f"{prefix}mask_token": torch.zeros(1, 1, 8)}}, tmp_path / "swin.pth")
    check(tmp_path / "swin.pth", net)
    assert not any(module.training for module in load_original_swin(tmp_path / "swin.pth").modules())


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(2), {"model": {"a": 1}}], ids=str)
def test_a_file_without_tensors_is_an_error(tmp_path, content):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"no dict of tensors, bare or as 'model' or 'state_dict'"):
        load_original_swin(tmp_path / "other.pth")


def test_a_shape_that_does_not_fit_is_an_error(original, tmp_path):
    original["layers.1.blocks.0.norm1.weight"] = torch.zeros(3)
    torch.save(original, tmp_path / "swin.pth")
    with pytest.raises(ValueError, match=r"shapes of \['layers.1.blocks.0.norm1.weight'\] do not fit"):
        load_original_swin(tmp_path / "swin.pth")


def test_another_layout_is_an_error(tmp_path):
    torch.save({"model": {"conv1.weight": torch.zeros(1)}}, tmp_path / "resnet.pth")
    with pytest.raises(ValueError, match=r"holds no Swin under the keys of its authors.*'conv1.weight'"):
        load_original_swin(tmp_path / "resnet.pth")
    with pytest.raises(FileNotFoundError):
        load_original_swin(tmp_path / "nowhere.pth")
