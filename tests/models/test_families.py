# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Every encoder family: maps, saving, loading and adapters; every class of it: maps and loading."""

import copy
import json

import pytest
import torch
from methods_table import check_equal, tensors_of
from peft import PeftModel, get_peft_model
from stage_maps import check_maps
from tiny_models import recompute_layers
from torch.nn import functional as F
from transformers import ViTConfig, ViTModel

from peft_polyhistor import MultiTaskDenseModel, PolyhistorLiteConfig
from peft_polyhistor.models.encoder import build_encoder, load_encoder, view_encoder


TASKS = ["semseg", "saliency", "normals"]
FLOAT32 = {"rtol": 1.3e-6, "atol": 1e-5}  # PyTorch's default


def widths_of(family):
    return [8, 16, 24, 40] if "pvt" in family else [8, 16, 32, 64]


def outputs_of(model, names, pixels):
    """Outputs of the modules `names` while `model` sees `pixels`."""
    outputs = {}
    for name in names:
        hook = lambda module, args, output, name=name: outputs.__setitem__(name, output)  # noqa: E731
        model.get_submodule(name).register_forward_hook(hook)
    model(pixels)
    return [outputs[name][0] if isinstance(outputs[name], tuple) else outputs[name] for name in names]


def maps_of(family, model, pixels):
    """The maps of a model as it is, without a view: of timm from timm, of transformers from the blocks."""
    if family.startswith("timm"):
        net = model.timm_model
        if not family.endswith("features"):
            return net.forward_intermediates(pixels, intermediates_only=True)
        return [m.permute(0, 3, 1, 2) if "swin" in family else m for m in net(pixels)]
    model = model.base_model
    if family.startswith("swin"):
        tokens = outputs_of(model, [f"encoder.layers.{i}.blocks.1" for i in range(4)], pixels)
    elif family.startswith("pvt_v2"):
        tokens = outputs_of(model, [f"encoder.layers.{i}.layer_norm" for i in range(4)], pixels)
    else:
        tokens = outputs_of(model, ["encoder.block.0.0", "encoder.block.1.1", "encoder.block.2.0"], pixels)
        tokens.append(outputs_of(model, ["encoder.block.3.0"], pixels)[0][:, 1:])  # less the class token
    grids = [tuple(side // stride for side in pixels.shape[2:]) for stride in (4, 8, 16, 32)]
    return [x.mT.unflatten(-1, grid) for x, grid in zip(tokens, grids, strict=True)]


def state_for(model, size):
    """The state of `model` for a model of another picture size: PVT's position embeddings are resized."""
    state = copy.deepcopy(model.state_dict())
    for name, positions in state.items():
        if name.endswith("position_embeddings"):
            stage = int(name.split(".")[-2])
            split = 1 if stage == 3 else 0  # the class token's
            grids = [positions[:, split:].mT.unflatten(-1, (96 >> (stage + 2),) * 2)]
            grids.append(F.interpolate(grids[0], size=(size >> (stage + 2),) * 2, mode="bilinear"))
            state[name] = torch.cat([positions[:, :split], grids[1].flatten(2).mT], dim=1)
    return state


@pytest.mark.parametrize("size", [pytest.param((96, 96), marks=pytest.mark.slow), (160, 160), (128, 192)], ids=str)
@torch.no_grad()
def test_maps_are_those_of_a_model_made_for_the_size(variant, make_variant, size):
    """The last map is one window of 3 x 3 at 96 pixels, and exceeds it at the others."""
    if variant.startswith("pvt") and "v2" not in variant and size[0] != size[1]:
        pytest.skip("transformers' PVT is made for square pictures")
    model = make_variant()
    try:
        twin = make_variant(size)
    except RuntimeError as error:
        if "swinv2" not in variant:
            raise
        pytest.skip(f"before 1.0.31, timm cannot make a Swin V2 of this size: {error}")
    twin.load_state_dict(state_for(model, size[0]))
    pixels = torch.randn(2, 3, *size)
    expected = maps_of(variant, twin, pixels)
    encoder = view_encoder(model)
    check_maps(encoder(pixels), expected, **FLOAT32)
    assert [stage_map.shape[1] for stage_map in expected] == encoder.widths == widths_of(variant)
    assert encoder.strides == [4, 8, 16, 32]
    assert encoder.needs_norm == ("swin" in variant)


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (40, 200)], ids=str)
@torch.no_grad()
def test_any_size_gives_maps_of_the_strides(make_model, size):
    encoder = view_encoder(make_model())
    for stage_map, stride, width in zip(
        encoder(torch.randn(2, 3, *size)), encoder.strides, encoder.widths, strict=True
    ):
        assert stage_map.isfinite().all()
        assert stage_map.shape[:2] == (2, width)
        for side, pixels in zip(stage_map.shape[2:], size, strict=True):
            assert side in {pixels // stride, -(-pixels // stride)}


@torch.no_grad()
def test_a_small_picture_does_not_change_a_later_one(make_model):
    encoder, pixels = view_encoder(make_model()), torch.randn(1, 3, 128, 96)
    before = encoder(pixels)
    encoder(pixels[:, :, :32, :40])
    assert all(torch.equal(a, b) for a, b in zip(encoder(pixels), before, strict=True))


def test_every_parameter_is_part_of_a_map(make_model):
    encoder = view_encoder(make_model())
    sum(stage_map.square().sum() for stage_map in encoder(torch.randn(1, 3, 96, 96))).backward()
    assert [name for name, parameter in encoder.named_parameters() if parameter.grad is None] == []


@torch.no_grad()
def test_an_encoder_is_built_from_the_json_of_its_config(make_model):
    encoder = view_encoder(make_model())
    written = json.loads(json.dumps(encoder.config.to_dict()))
    built = build_encoder(type(encoder.config)(**written)).eval()
    assert type(built) is type(encoder)
    assert json.loads(json.dumps(built.config.to_dict())) == written
    built.load_state_dict(encoder.state_dict())
    pixels = torch.randn(1, 3, 64, 80)
    check_maps(built(pixels), encoder(pixels), **FLOAT32)


@torch.no_grad()
def test_the_dense_model_is_saved_with_any_encoder(make_model, tmp_path, monkeypatch):
    model = MultiTaskDenseModel.from_encoder(make_model(), TASKS, decoder_width=4).eval()
    model.save_pretrained(tmp_path)
    empty_like = torch.empty_like  # else a buffer that is left empty finds the right values in freed memory
    monkeypatch.setattr(torch, "empty_like", lambda *args, **kwargs: empty_like(*args, **kwargs).fill_(1))
    loaded = MultiTaskDenseModel.from_pretrained(tmp_path)
    assert type(loaded.encoder) is type(model.encoder)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    places = {"_name_or_path": None}
    assert {**loaded.config.encoder.to_dict(), **places} == {**model.config.encoder.to_dict(), **places}
    pixels = torch.randn(1, 3, 64, 80)
    for task, logits in model(pixels).logits.items():
        assert torch.equal(loaded(pixels).logits[task], logits)


@torch.no_grad()
def test_an_encoder_is_loaded_from_a_folder(make_variant, tmp_path):
    model = make_variant()
    model.save_pretrained(tmp_path)
    encoder, pixels = load_encoder(str(tmp_path)), torch.randn(1, 3, 64, 80)
    assert encoder.config.name_or_path == str(tmp_path)
    check_maps(encoder.eval()(pixels), view_encoder(model)(pixels), **FLOAT32)


@pytest.mark.parametrize(
    ("view", "placement"),
    [
        (view_encoder, "parallel"),
        pytest.param(view_encoder, "serial", marks=pytest.mark.slow),
        pytest.param(lambda model: model, "parallel", marks=pytest.mark.slow),
    ],
    ids=["view-parallel", "view-serial", "bare-parallel"],
)
@torch.no_grad()
def test_adapters_fit_every_family(make_model, perturb, view, placement, tmp_path):
    base, pixels = view(make_model()), torch.randn(2, 3, 96, 96)
    expected = base(pixels)
    config = PolyhistorLiteConfig(
        tasks=TASKS, sublayers=["attention", "feed_forward"], placement=placement, reduction_factor=2
    )
    model = get_peft_model(base, config).eval()
    for task in TASKS:
        check_equal(model(pixels, task=task), expected)
    perturb(model.base_model.model.task_adapters)
    together = model(pixels, tasks=TASKS)
    for task in TASKS:
        alone = model(pixels, task=task)
        check_equal(together[task], alone, atol=1e-4, rtol=1e-4)  # batched products round in another order
        assert not any(map(torch.equal, tensors_of(alone).values(), tensors_of(expected).values()))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(view(make_model()), tmp_path).eval()
    check_equal(loaded(pixels, tasks=TASKS), together)


def test_recomputed_blocks_give_the_same_gradients(family, make_model, perturb):
    """Families without blocks that transformers can recompute say so."""
    pixels, gradients = torch.randn(2, 3, 64, 96), []
    for recompute in (False, True):
        base = MultiTaskDenseModel.from_encoder(make_model(), TASKS, decoder_width=4)
        config = PolyhistorLiteConfig(tasks=TASKS, sublayers=["attention", "feed_forward"], reduction_factor=2)
        model = get_peft_model(base, config).eval().requires_grad_(False)
        torch.manual_seed(3)
        adapters = perturb(model.base_model.model.task_adapters.requires_grad_(True))
        model.train()
        if recompute and family not in {"swin", "swinv2", "pvt_v2"}:
            with pytest.raises(ValueError, match="gradient checkpointing"):
                recompute_layers(base)
            return
        if recompute:
            recompute_layers(base)
        sum(tensor.square().sum() for tensor in tensors_of(base.encoder(pixels, tasks=TASKS)).values()).backward()
        gradients.append([parameter.grad for parameter in adapters.parameters()])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


@torch.no_grad()
def test_an_encoder_nobody_foresaw_works_where_modules_are_named(perturb):
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    vit, pixels = ViTModel(ViTConfig(**sizes, image_size=32, patch_size=8)).eval(), torch.randn(2, 3, 32, 32)
    with pytest.raises(TypeError, match=r"ViTModel is no encoder of a known family.*StageEncoder, which defines"):
        view_encoder(vit)
    with pytest.raises(ValueError, match=r"ViTModel has no blocks of a known encoder family.*Name the modules"):
        get_peft_model(vit, PolyhistorLiteConfig(tasks=TASKS))
    expected = vit(pixels).last_hidden_state
    config = PolyhistorLiteConfig(tasks=TASKS, target_modules=["mlp"], reduction_factor=2)
    model = get_peft_model(vit, config)
    assert torch.equal(model(pixels, task="saliency").last_hidden_state, expected)
    perturb(model.base_model.model.task_adapters)
    assert not torch.equal(model(pixels, task="saliency").last_hidden_state, expected)
