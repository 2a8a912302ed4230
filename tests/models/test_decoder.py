# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The composed decoder against its plain form."""

import copy

import pytest
import torch
from torch.nn import functional as F

from peft_polyhistor.models.decoder import Decoders, DenseDecoder


WIDTHS = [3, 5, 8, 12]
SIZES = [(9, 13), (5, 7), (3, 4), (2, 2)]  # odd ones, as maps are rounded up
ROUNDING = {"rtol": 1e-5, "atol": 1e-5}  # float32: sums of up to 28 terms in another order


def make_decoder(norms, dropout=0.0, channels=4, width=7):
    decoder = DenseDecoder(WIDTHS, channels, width, dropout, norms)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
        decoder.batch_norm.running_mean.normal_()
        decoder.batch_norm.running_var.uniform_(0.5, 2)
    return decoder


def make_maps(batch=2):
    return [torch.randn(batch, c, *size, requires_grad=True) for c, size in zip(WIDTHS, SIZES, strict=True)]


def plain_form(decoder, maps):
    """SegFormer's head as its authors write it: project, upsample, concatenate, fuse, normalise."""
    upsampled = []
    for stage_map, norm, projection in zip(maps, decoder.norms, decoder.projections, strict=True):
        projected = projection(norm(stage_map.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        upsampled.append(F.interpolate(projected, size=SIZES[0], mode="bilinear", align_corners=False))
    fused = decoder.batch_norm(decoder.fuse(torch.cat(upsampled, dim=1)))
    return decoder.classifier(decoder.dropout(fused.relu()))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norms", [True, False])
def test_the_composed_form_equals_the_plain_form(training, norms):
    decoder, maps = make_decoder(norms).train(training), make_maps()
    plain, plain_maps = copy.deepcopy(decoder), copy.deepcopy(maps)
    logits, expected = decoder(maps), plain_form(plain, plain_maps)
    assert logits.shape == (2, 4, *SIZES[0])
    torch.testing.assert_close(logits, expected, **ROUNDING)

    weight = torch.randn_like(logits) / 10
    (logits * weight).sum().backward()
    (expected * weight).sum().backward()
    for ours, theirs in zip([*decoder.parameters(), *maps], [*plain.parameters(), *plain_maps], strict=True):
        assert ours.grad.any()
        torch.testing.assert_close(ours.grad, theirs.grad, **ROUNDING)
    torch.testing.assert_close(dict(decoder.named_buffers()), dict(plain.named_buffers()), **ROUNDING)


def test_dropout_zeroes_whole_channels_in_training_alone():
    decoder, maps = make_decoder(norms=True, dropout=0.5), make_maps()
    seen = []
    decoder.classifier.register_forward_pre_hook(lambda module, args: seen.append(args[0].flatten(2)))
    decoder.train()(maps)
    assert not seen[0].any(dim=2).all()
    decoder.eval()
    assert torch.equal(decoder(maps), decoder(maps))


@pytest.mark.parametrize("norms", [True, False])
def test_parameters_follow_the_formula(norms):
    channels, width = 4, 7
    expected = sum((c + 1) * width for c in WIDTHS) + 4 * width**2 + 2 * width + (width + 1) * channels
    expected += 2 * sum(WIDTHS) if norms else 0
    assert sum(parameter.numel() for parameter in make_decoder(norms).parameters()) == expected


def test_each_task_has_a_decoder_of_its_own():
    decoders = Decoders({"first": 2, "second": 3}, WIDTHS, 7, 0.0, norms=True).eval()
    first, second = make_maps(), make_maps()
    logits = decoders({"second": second, "first": first})
    assert {task: task_logits.shape[1] for task, task_logits in logits.items()} == {"second": 3, "first": 2}
    assert torch.equal(logits["first"], decoders.heads["first"](first))
    assert torch.equal(decoders({"second": second})["second"], logits["second"])
