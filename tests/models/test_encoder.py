# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Stage maps of encoders against the models they come from."""

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from stage_maps import check_maps
from tiny_models import STAGES, make_pvt
from torch import nn
from transformers import (
    ConvNextBackbone,
    ConvNextConfig,
    Dinov2Backbone,
    Dinov2Config,
    ResNetBackbone,
    ResNetConfig,
    SwinBackbone,
    SwinConfig,
    SwinForImageClassification,
    SwinForMaskedImageModeling,
    SwinModel,
    ViTConfig,
    ViTModel,
)

from peft_polyhistor import MultiTaskDenseModel
from peft_polyhistor.models.encoder import (
    BackboneStages,
    StageEncoder,
    SwinStages,
    build_encoder,
    load_encoder,
    view_encoder,
)


SWINS = [SwinModel, SwinBackbone, SwinForImageClassification]


def make_resnet():
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16, 20, 32], "depths": [1, 1, 1, 1], "layer_type": "basic"}
    return ResNetBackbone(ResNetConfig(**sizes, out_features=STAGES))


def maps_of_swin(model, pixels):
    output = model(pixels, output_hidden_states=True, output_hidden_states_before_downsampling=True)
    return output.reshaped_hidden_states[1:]


@pytest.mark.parametrize("cls", SWINS)
@pytest.mark.parametrize("size", [(96, 96), (128, 160), (160, 100)], ids=str)
@torch.no_grad()
def test_maps_of_swin_are_those_of_swin_model(make_swin, cls, size):
    """The last map is one window of 3 x 3 at 96 pixels, and exceeds it at the others."""
    model = make_swin(cls)
    plain = copy.deepcopy(model if cls is SwinModel else model.swin)
    pixels = torch.randn(2, 3, *size)
    encoder = view_encoder(model)
    assert isinstance(encoder, SwinStages)
    maps = encoder(pixels)
    check_maps(maps, maps_of_swin(plain, pixels))
    assert [stage_map.shape[1] for stage_map in maps] == encoder.widths == [8, 16, 32, 64]
    assert encoder.strides == [4, 8, 16, 32]
    assert encoder.needs_norm


@torch.no_grad()
def test_a_small_picture_does_not_change_a_later_one(make_swin):
    encoder, pixels = view_encoder(make_swin()), torch.randn(1, 3, 128, 128)
    before = encoder(pixels)
    encoder(pixels[:, :, :32, :40])
    check_maps(encoder(pixels), before)


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (40, 200)], ids=str)
@torch.no_grad()
def test_maps_of_small_pictures(make_swin, size):
    height, width = size
    pixels = torch.randn(2, 3, height, width)
    for encoder in (view_encoder(make_swin()), view_encoder(make_pvt())):
        for stage_map, stride, channels in zip(encoder(pixels), encoder.strides, encoder.widths, strict=True):
            assert stage_map.isfinite().all()
            assert stage_map.shape[:2] == (2, channels)
            rounded_up = (-(-height // stride), -(-width // stride))
            assert tuple(stage_map.shape[2:]) in {rounded_up, (height // stride, width // stride)}


@torch.no_grad()
def test_a_picture_does_not_depend_on_its_batch(make_swin):
    encoder, pixels = view_encoder(make_swin().double()), torch.randn(3, 3, 40, 72).double()
    for together, alone in zip(encoder(pixels), encoder(pixels[1:2]), strict=True):
        torch.testing.assert_close(together[1:2], alone)


@torch.no_grad()
def test_maps_of_a_backbone_are_its_own():
    backbone, pixels = make_pvt(), torch.randn(2, 3, 64, 96)
    encoder = view_encoder(backbone)
    assert isinstance(encoder, BackboneStages)
    assert encoder.widths == [8, 16, 20, 32]
    assert encoder.strides == [4, 8, 16, 32]
    assert not encoder.needs_norm
    check_maps(encoder(pixels), copy.deepcopy(backbone)(pixels).feature_maps)


@torch.no_grad()
def test_an_unadapted_encoder_needs_one_pass_for_all_tasks(make_swin):
    encoder, pixels = view_encoder(make_swin()), torch.randn(1, 3, 96, 96)
    by_task = encoder(pixels, tasks=["b", "a"])
    assert list(by_task) == ["b", "a"]
    assert by_task["a"] is by_task["b"]
    check_maps(by_task["a"], encoder(pixels))


@pytest.mark.parametrize("training", [True, False])
def test_looking_at_a_backbone_does_not_change_it(training):
    backbone = make_resnet().train(training)  # with the statistics of BatchNorm
    before = copy.deepcopy(backbone.state_dict())
    view_encoder(backbone)
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())
    assert all(module.training == training for module in backbone.modules())


@torch.no_grad()
def test_a_backbone_of_another_family():
    sizes = {"hidden_sizes": [8, 16, 20, 32], "depths": [1, 1, 1, 1]}
    backbone, pixels = ConvNextBackbone(ConvNextConfig(**sizes, out_features=STAGES)).eval(), torch.randn(2, 3, 64, 96)
    encoder = view_encoder(backbone)
    assert type(encoder) is BackboneStages
    check_maps(encoder(pixels), backbone(pixels).feature_maps)


# Sizes


def swin_parameters(width, depths, heads, window):
    """Parameters of the encoder without its final norm, layer by layer."""
    total = (3 * 4 * 4 + 1) * width + 2 * width  # patches and their norm
    for stage, (depth, head) in enumerate(zip(depths, heads, strict=True)):
        c = width * 2**stage
        block = 4 * (c + 1) * c + (c + 1) * 4 * c + (4 * c + 1) * c + 2 * 2 * c + (2 * window - 1) ** 2 * head
        total += depth * block
        if stage < 3:
            total += 4 * c * 2 * c + 2 * 4 * c  # patch merging and its norm
    return total


@pytest.mark.parametrize("window", [7, 12])
@pytest.mark.parametrize(("width", "depths", "heads"), [
    (96, [2, 2, 6, 2], [3, 6, 12, 24]),
    (96, [2, 2, 18, 2], [3, 6, 12, 24]),
    (128, [2, 2, 18, 2], [4, 8, 16, 32]),
    (192, [2, 2, 18, 2], [6, 12, 24, 48]),
], ids=["tiny", "small", "base", "large"])  # fmt: skip
def test_parameters_of_swin_of_every_size(width, depths, heads, window):
    sizes = {"embed_dim": width, "depths": depths, "num_heads": heads, "window_size": window}
    with torch.device("meta"):
        encoder = build_encoder(SwinConfig(**sizes))
    count = sum(p.numel() for p in encoder.parameters())
    assert count == swin_parameters(width, depths, heads, window)
    if (width, depths[2], window) == (96, 6, 7):
        assert count == 27_517_818


def test_the_mask_token_of_masked_pretraining_is_left_out(make_swin):
    encoder = view_encoder(make_swin(SwinForMaskedImageModeling, encoder_stride=32))
    assert encoder.state_dict().keys() == build_encoder(encoder.config).state_dict().keys()


# Errors


def test_a_stage_encoder_is_taken_as_it_is(make_swin):
    encoder = view_encoder(make_swin())
    assert view_encoder(encoder) is encoder


def test_a_stage_encoder_must_make_maps():
    class Incomplete(StageEncoder):
        pass

    with pytest.raises(NotImplementedError, match="Incomplete must define `stage_maps`"):
        Incomplete()(torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize("model", [nn.Linear(3, 3), nn.Sequential()], ids=lambda model: type(model).__name__)
def test_what_is_no_encoder_is_an_error(model):
    with pytest.raises(TypeError, match=rf"{type(model).__name__} is no encoder of a known family.*SwinModel"):
        view_encoder(model)


def test_an_encoder_without_four_stages_is_an_error(make_swin):
    with pytest.raises(ValueError, match=r"four stages; SwinModel yields 3 \(widths \[8, 16, 32\]\)"):
        view_encoder(make_swin(depths=[2, 2, 2], num_heads=[1, 2, 2], out_features=["stage3"]))
    with pytest.raises(ValueError, match=r"four stages; PvtV2Backbone yields 2 \(widths \[16, 32\]\).*`out_features`"):
        view_encoder(make_pvt(out_features=["stage2", "stage4"]))


@torch.no_grad()
def test_an_encoder_is_built_from_its_config(make_swin):
    for model in (make_swin(), make_pvt()):
        encoder = view_encoder(model).eval()
        built = build_encoder(copy.deepcopy(encoder.config)).eval()
        assert type(built) is type(encoder)
        built.load_state_dict(encoder.state_dict())
        pixels = torch.randn(1, 3, 64, 64)
        check_maps(built(pixels), encoder(pixels))


@torch.no_grad()
def test_an_encoder_is_loaded_from_a_folder(make_swin, tmp_path):
    for model in (make_swin(), make_swin(SwinBackbone), make_swin(SwinForImageClassification), make_pvt()):
        folder = tmp_path / type(model).__name__
        model.save_pretrained(folder)
        encoder, pixels = load_encoder(str(folder)), torch.randn(1, 3, 64, 64)
        assert encoder.config.name_or_path == str(folder)
        check_maps(encoder.eval()(pixels), view_encoder(model)(pixels))


def test_a_folder_that_holds_no_encoder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no folder .*nowhere.*one of \['swin-mini'\]"):
        load_encoder(str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"There is no folder 'swin_mini'.*one of \['swin-mini'\]"):
        load_encoder("swin_mini")  # names without an owner are not looked up on the Hub
    for name in ("./swin-mini", Path("swin-mini"), ""):
        with pytest.raises(FileNotFoundError, match="There is no folder"):
            load_encoder(name)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    ViTModel(ViTConfig(**sizes)).save_pretrained(tmp_path / "vit")
    with pytest.raises(TypeError, match="holds a vit model, which is no backbone"):
        load_encoder(str(tmp_path / "vit"))


def test_the_earlier_name_of_dtype_counts_and_code_of_a_repository_is_not_run(make_swin, tmp_path):
    make_swin().save_pretrained(tmp_path)
    loaded = load_encoder(tmp_path, torch_dtype=torch.float16, trust_remote_code=False)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float16}
    with pytest.raises(ValueError, match="runs no code of a repository"):
        load_encoder(tmp_path, trust_remote_code=True)


def test_a_file_without_weights_of_its_encoder_is_refused(make_swin, tmp_path):
    make_swin(SwinForImageClassification).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")

    def save_without(part):
        kept = {name: weight for name, weight in weights.items() if part not in name}
        save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})

    save_without("classifier")
    load_encoder(tmp_path)  # it is no part of the encoder
    save_without(".layers.3.")
    with pytest.raises(ValueError, match=r"lacks \d+ weights of its encoder, such as \['.*layers\.3\."):
        load_encoder(tmp_path)


def test_four_stages_of_a_longer_backbone_are_those_asked_for(tmp_path):
    sizes = {"hidden_size": 8, "num_hidden_layers": 8, "num_attention_heads": 1, "image_size": 28, "patch_size": 14}
    Dinov2Backbone(Dinov2Config(**sizes)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"has 8 stages.*out_features=\['stage2', 'stage4', 'stage6', 'stage8'\]"):
        load_encoder(tmp_path)
    encoder = load_encoder(tmp_path, out_features=["stage2", "stage4", "stage6", "stage8"])
    assert encoder.config.out_features == ["stage2", "stage4", "stage6", "stage8"] and encoder.strides == [14] * 4


def test_decoders_have_the_dtype_of_their_encoder(make_swin):
    model = MultiTaskDenseModel.from_encoder(make_swin().bfloat16(), ["semseg"], decoder_width=8).eval()
    assert model(torch.randn(1, 3, 64, 64).bfloat16()).logits["semseg"].isfinite().all()
