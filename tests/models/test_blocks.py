# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Blocks are found by the roles of their parts."""

import torch
from peft import get_peft_model
from torch import nn
from transformers import SwinBackbone

from peft_polyhistor import AdapterConfig
from peft_polyhistor.models.blocks import BLOCK_FAMILIES, Block, FeedForward, Sublayer, find_blocks


def test_blocks_of_swin_are_found_in_order(make_swin):
    blocks = find_blocks(make_swin(SwinBackbone, depths=[2, 2, 2, 2]))
    path = "swin.encoder.layers.1.blocks.1"
    assert blocks[3] == Block(
        name=path,
        width=16,
        attention=Sublayer(f"{path}.drop_path", f"{path}.layernorm_before"),
        feed_forward=Sublayer(f"{path}.mlp", f"{path}.layernorm_after"),
        self_attention=f"{path}.attention",
        projections=tuple(f"{path}.attention.{part}_proj" for part in "qkv"),
        widens=FeedForward(("fc1", "activation_fn", "fc2"), "mlp_ratio"),
    )
    assert [block.width for block in blocks] == [8, 8, 16, 16, 32, 32, 64, 64]


def test_blocks_of_every_family_are_found_in_order(family, make_model):
    widths = [8, 16, 16, 24, 40] if "pvt" in family else [8, 8, 16, 16, 32, 32, 64, 64]
    assert [block.width for block in find_blocks(make_model())] == widths


def is_block(module):
    return (type(module).__module__, type(module).__name__) in BLOCK_FAMILIES


def record(model):
    """Fills a dict by module name, in a forward pass, with first arguments and outputs, as often as it was called."""
    calls = {}
    for name, module in model.named_modules():

        def hook(module, args, kwargs, output, name=name):
            first = args[0] if args else next(iter(kwargs.values()), None)
            calls.setdefault(name, []).append((first, output[0] if isinstance(output, tuple) else output))

        module.register_forward_hook(hook, with_kwargs=True)
    return calls


@torch.no_grad()
def test_a_block_is_the_stream_and_what_its_sublayers_add(make_model):
    """In double precision, where the sum is exact enough to tell every part from any other."""
    model = make_model().double()
    names = [name for name, module in model.named_modules() if is_block(module)]
    calls = record(model)
    model(torch.randn(2, 3, 96, 96).double())
    blocks = find_blocks(model)
    assert len(blocks) == len(names)
    for name, block in zip(names, blocks, strict=True):
        [(h, output)] = calls[name]
        for sublayer in (block.attention, block.feed_forward):
            [(stream, _)] = calls[sublayer.stream]
            [(_, added)] = calls[sublayer.module]  # called once, and returns a tensor or a tuple of it alone
            assert stream.shape[-1] == added.shape[-1] == block.width
            torch.testing.assert_close(stream.reshape(h.shape), h)
            h = h + added.reshape(h.shape)
        torch.testing.assert_close(output, h)


@torch.no_grad()
def test_an_adapter_reads_the_stream_in_front_of_its_sublayer(make_model, monkeypatch):
    """h + sublayer(h) + Adapter(h), also where the norm stands behind; the adapter here is an eighth of h."""
    monkeypatch.setattr("peft_polyhistor.layers.bottleneck.apply_bottleneck", lambda h, *weights: h / 8)
    model = make_model().double()
    names = [name for name, module in model.named_modules() if is_block(module)]
    blocks, calls = find_blocks(model), record(model)  # of the modules that the sites will wrap
    config = AdapterConfig(tasks=["saliency"], sublayers=["attention", "feed_forward"])
    get_peft_model(model, config).eval()(torch.randn(2, 3, 96, 96).double())
    for name, block in zip(names, blocks, strict=True):
        [(h, output)] = calls[name]
        for sublayer in (block.attention, block.feed_forward):
            [(_, added)] = calls[sublayer.module]
            h = h + added.reshape(h.shape) + h / 8
        torch.testing.assert_close(output, h)


@torch.no_grad()
def test_what_a_sublayer_adds_is_a_tensor(make_model):
    """And its first arguments are given by position: what an adapter's site relies on."""
    model, calls = make_model(), []
    for block in find_blocks(model):
        for name in {*block.attention, *block.feed_forward} - {block.attention.stream}:
            hook = lambda module, args, output: calls.append((args[0], output))  # noqa: E731
            model.get_submodule(name).register_forward_hook(hook)
    model(torch.randn(2, 3, 96, 96))
    assert len(calls) == 3 * len(find_blocks(model))
    assert all(isinstance(tensor, torch.Tensor) for call in calls for tensor in call)


@torch.no_grad()
def test_projections_make_queries_keys_and_values(family, make_model):
    model = make_model()
    calls = record(model)
    model(torch.randn(2, 3, 96, 96))
    for block in find_blocks(model):
        layers = [model.get_submodule(name) for name in block.projections]
        assert all(isinstance(layer, nn.Linear) and layer.in_features == block.width for layer in layers)
        assert all(len(calls[name]) == 1 for name in block.projections)
        assert all(name.startswith(f"{block.self_attention}.") for name in block.projections)
        # timm's Swin V2 reads the weight of its layer and never calls it
        assert sum(layer.out_features for layer in layers) == (0 if "timm_swinv2" in family else 3 * block.width)
        [(tokens, output)] = calls[block.self_attention]
        assert tokens.shape == output.shape


def test_a_class_of_the_same_name_elsewhere_is_no_block():
    class SwinLayer(nn.Module):
        pass

    assert find_blocks(nn.Sequential(SwinLayer(), nn.Linear(2, 2))) == []
