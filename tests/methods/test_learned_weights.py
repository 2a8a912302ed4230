# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Adapter, Low-rank Adapter, PHM, Compacter and Hyperformer against their definitions, and the paper's counts."""

import pytest
import torch
from peft import get_peft_model
from transformers import SwinConfig, SwinModel

from peft_polyhistor import (
    AdapterConfig,
    CompacterConfig,
    CompacterPlusPlusConfig,
    HyperformerConfig,
    LowRankAdapterConfig,
    PhmConfig,
    PolyhistorConfig,
    PolyhistorLiteConfig,
)
from peft_polyhistor.layers.bottleneck import ParallelLayer
from peft_polyhistor.tuner.site import Site


TASKS = ["a", "b", "c"]
SITES = [Site("x", ParallelLayer, 12, 0), Site("y", ParallelLayer, 12, 0), Site("z", ParallelLayer, 24, 1)]
CHOSEN = torch.tensor([2, 0])
BOTH = ["attention", "feed_forward"]


def generate(config_class, **kwargs):
    torch.manual_seed(0)
    generator = config_class(tasks=TASKS, init_weights=False, **kwargs).make_generator(SITES)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.normal_()
    return generator, generator(CHOSEN)


def check_vectors(parameters, weights):
    for name in ("down_bias", "up_bias", "norm_weight", "norm_bias"):
        torch.testing.assert_close(getattr(weights, name), getattr(parameters, name)[CHOSEN])


def test_adapter_matches_the_definition():
    generator, weights = generate(AdapterConfig, reduction_factor=4)
    for parameters, site_weights in zip(generator, weights, strict=True):
        check_vectors(parameters, site_weights)
        torch.testing.assert_close(site_weights.down, parameters.down.weight[CHOSEN])
        torch.testing.assert_close(site_weights.up, parameters.up.weight[CHOSEN])


def test_low_rank_adapter_matches_the_definition():
    generator, weights = generate(LowRankAdapterConfig, reduction_factor=2, rank=5)
    for parameters, site_weights in zip(generator, weights, strict=True):
        check_vectors(parameters, site_weights)
        for name in ("down", "up"):
            factors, matrices = getattr(parameters, name), getattr(site_weights, name)
            for i, task in enumerate(CHOSEN.tolist()):
                for row in range(0, matrices.shape[1], 5):
                    for col in range(0, matrices.shape[2], 5):
                        expected = sum(factors.left[task, row, r] * factors.right[task, r, col] for r in range(5))
                        torch.testing.assert_close(matrices[i, row, col], expected)


def test_phm_matches_the_definition():
    generator, weights = generate(PhmConfig, reduction_factor=2, order=3)
    for parameters, site_weights in zip(generator, weights, strict=True):
        check_vectors(parameters, site_weights)
        for name in ("down", "up"):
            form, matrices = getattr(parameters, name), getattr(site_weights, name)
            kernels = form.kernels.weight.unflatten(0, (3, 3))  # task, summand
            for i, task in enumerate(CHOSEN.tolist()):
                expected = sum(torch.kron(form.rule[task, j], kernels[task, j]) for j in range(3))
                torch.testing.assert_close(matrices[i], expected)


def test_compacter_matches_the_definition():
    generator, weights = generate(CompacterConfig, reduction_factor=2, order=2)
    for parameters, site_weights in zip(generator.sites, weights, strict=True):
        check_vectors(parameters, site_weights)
        for name in ("down", "up"):
            kernels, matrices = getattr(parameters, name).kernels, getattr(site_weights, name)
            for i, task in enumerate(CHOSEN.tolist()):
                expected = sum(
                    torch.kron(generator.rule[task, j], torch.outer(s[:, 0], t[0]))
                    for j, (s, t) in enumerate(
                        zip(kernels.left[2 * task : 2 * task + 2], kernels.right[2 * task : 2 * task + 2], strict=True)
                    )
                )
                torch.testing.assert_close(matrices[i], expected)


def paced(layer, x):
    return layer.gain * (layer.weight @ x) + layer.bias


def test_hyperformer_matches_the_definition():
    generator, weights = generate(HyperformerConfig, reduction_factor=4, embedding_dim=5)
    for site, (hypernetworks, site_weights) in enumerate(zip(generator.hypernetworks, weights, strict=True)):
        first, _, second = generator.projectors[[0, 0, 1][site]]
        for i, task in enumerate(CHOSEN.tolist()):
            hidden = paced(first, generator.task_embedding[task]).clamp(min=0)
            numbers = paced(hypernetworks.linear, paced(second, hidden))
            got = [tensor[i].flatten() for tensor in site_weights]
            got[4] = got[4] - 1  # the norm's weight is one plus what is generated
            torch.testing.assert_close(torch.cat(got), numbers, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("config_class", "kwargs", "message"),
    [
        (PhmConfig, {"order": 5, "reduction_factor": 2}, "`order` 5 must divide width 12 and bottleneck"),
        (CompacterConfig, {"reduction_factor": 4}, "`order` 2 must divide width 12 and bottleneck 3"),
        (PhmConfig, {"order": 0}, "`order` must be an integer of at least 1, got 0"),
        (LowRankAdapterConfig, {"rank": 0}, "`rank` must be an integer of at least 1, got 0"),
        (HyperformerConfig, {"embedding_dim": 1.5}, "`embedding_dim` must be an integer of at least 1, got 1.5"),
        (AdapterConfig, {"sublayers": ["mlp"]}, r"`sublayers` must be a list of one or both of .*got \['mlp'\]"),
        (AdapterConfig, {"sublayers": "attention"}, "`sublayers` must be a list"),
    ],
)
def test_bad_settings_say_what_is_allowed(config_class, kwargs, message):
    with pytest.raises(ValueError, match=message):
        config_class(tasks=TASKS, **kwargs).make_generator(SITES)


# Polyhistor, arXiv:2210.03265, Tables 1, 2, 5 and 6: millions of trainable parameters in the encoder, Swin-T, 4 tasks.
PAPER = [
    (PhmConfig, {}, "0.59"),
    (CompacterConfig, {}, "0.23"),
    (CompacterConfig, {"reduction_factor": 8}, "0.19"),
    (CompacterPlusPlusConfig, {}, "0.11"),
    (CompacterPlusPlusConfig, {"reduction_factor": 1}, "0.14"),
    (AdapterConfig, {"reduction_factor": 1}, "17.32"),
    (AdapterConfig, {}, "8.69"),
    (AdapterConfig, {"reduction_factor": 4}, "4.37"),
    (AdapterConfig, {"reduction_factor": 8}, "2.21"),
    (LowRankAdapterConfig, {}, "0.34"),
    (HyperformerConfig, {"sublayers": BOTH, "reduction_factor": 8}, "72.77"),
    (HyperformerConfig, {"sublayers": BOTH}, "37.69"),
    (PolyhistorConfig, {}, "6.41"),
    (PolyhistorConfig, {"rank": 1}, "2.38"),
    (PolyhistorConfig, {"rank_divisor": 8}, "4.08"),
    (PolyhistorLiteConfig, {}, "0.41"),
    (PolyhistorLiteConfig, {"embedding_dim": 32}, "0.29"),
    (PolyhistorLiteConfig, {"embedding_dim": 16}, "0.23"),
]


@pytest.mark.parametrize(("config_class", "kwargs", "millions"), PAPER)
def test_trainable_parameters_are_the_papers(config_class, kwargs, millions):
    with torch.device("meta"):
        model = get_peft_model(SwinModel(SwinConfig()), config_class(**kwargs))
    trainable, _ = model.get_nb_trainable_parameters()
    assert f"{trainable / 1e6:.2f}" == millions
