# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Laws of Kronecker sums, hypernetworks, bottlenecks and generators, on numbers of chance."""

import math

import pytest
import torch
from tiny_models import randomise
from torch import nn

from peft_polyhistor import (
    AdapterConfig,
    CompacterConfig,
    HyperformerConfig,
    LowRankAdapterConfig,
    PhmConfig,
    PolyhistorConfig,
    PolyhistorLiteConfig,
)
from peft_polyhistor.layers.bottleneck import BottleneckWeights, ParallelLayer, apply_bottleneck
from peft_polyhistor.layers.factors import Hypernetworks, group_equal, kronecker_sum, kronecker_sum_of_vectors
from peft_polyhistor.layers.matrices import KroneckerMatrix, LowRankMatrix
from peft_polyhistor.tuner.site import Site


pytestmark = pytest.mark.usefixtures("double")
EXACT = {"rtol": 1e-10, "atol": 1e-10}  # everything here is computed in float64
TASKS = ["a", "b", "c"]
SITES = [
    Site(name, ParallelLayer, width, block) for block, (name, width) in enumerate([("x", 24), ("y", 12), ("z", 36)])
]
CONFIGS = [
    AdapterConfig(tasks=TASKS, reduction_factor=4),
    LowRankAdapterConfig(tasks=TASKS, reduction_factor=2, rank=2),
    PhmConfig(tasks=TASKS, reduction_factor=2, order=3),
    CompacterConfig(tasks=TASKS, order=2),
    HyperformerConfig(tasks=TASKS, reduction_factor=4, embedding_dim=5),
    PolyhistorConfig(tasks=TASKS, reduction_factor=2, rank=2, embedding_dim=5),
    PolyhistorLiteConfig(tasks=TASKS, reduction_factor=2, rank=2, embedding_dim=5),
]
for_every_method = pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.method)


def check_sites(actual, expected, **tolerance):
    for site, expected_site in zip(actual, expected, strict=True):
        torch.testing.assert_close(site, expected_site, **(tolerance or EXACT))


# Sums of Kronecker products


def test_a_kronecker_sum_is_linear_in_templates_and_in_kernels():
    (a, b), (k, m) = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 2, 7)
    torch.testing.assert_close(kronecker_sum(a + 2 * b, k), kronecker_sum(a, k) + 2 * kronecker_sum(b, k), **EXACT)
    torch.testing.assert_close(kronecker_sum(a, k - 3 * m), kronecker_sum(a, k) - 3 * kronecker_sum(a, m), **EXACT)


def test_a_kronecker_sum_is_the_sum_of_its_summands_in_any_order():
    templates, kernels = torch.randn(4, 2, 3), torch.randn(4, 5, 2)
    apart = sum(kronecker_sum(templates[i : i + 1], kernels[i : i + 1]) for i in (2, 0, 3, 1))
    torch.testing.assert_close(kronecker_sum(templates, kernels), apart, **EXACT)


def test_products_and_transposes_of_kronecker_products_are_those_of_their_factors():
    """(A (x) B)(C (x) D) = AC (x) BD."""
    a, b, c, d = torch.randn(1, 2, 3), torch.randn(1, 4, 5), torch.randn(1, 3, 7), torch.randn(1, 5, 2)
    torch.testing.assert_close(kronecker_sum(a, b) @ kronecker_sum(c, d), kronecker_sum(a @ c, b @ d), **EXACT)
    torch.testing.assert_close(kronecker_sum(a, b).mT, kronecker_sum(a.mT, b.mT), **EXACT)


def test_the_template_says_where_and_the_kernel_what():
    kernel = torch.randn(1, 2, 3)
    expected = torch.block_diag(*[kernel[0]] * 4)
    torch.testing.assert_close(kronecker_sum(torch.eye(4)[None], kernel), expected, **EXACT)
    torch.testing.assert_close(kronecker_sum(torch.ones(1, 1, 1), kernel), kernel[0], **EXACT)


def test_leading_axes_of_a_kronecker_sum_broadcast():
    templates, kernels = torch.randn(5, 1, 3, 2, 4), torch.randn(6, 3, 3, 2)
    together = kronecker_sum(templates, kernels)
    assert together.shape == (5, 6, 6, 8)
    for i, j in [(0, 0), (4, 5), (2, 3)]:
        torch.testing.assert_close(together[i, j], kronecker_sum(templates[i, 0], kernels[j]), **EXACT)


def test_a_kronecker_sum_of_vectors_is_that_of_matrices_of_one_row():
    templates, kernels = torch.randn(2, 3, 4), torch.randn(2, 3, 5)
    of_rows = kronecker_sum(templates[..., None, :], kernels[..., None, :])
    torch.testing.assert_close(kronecker_sum_of_vectors(templates, kernels), of_rows.squeeze(-2), **EXACT)


def test_of_order_one_a_kronecker_matrix_is_a_scaled_dense_one():
    matrix = randomise(KroneckerMatrix(3, 4, 5, order=1))
    tasks = torch.tensor([2, 0])
    torch.testing.assert_close(matrix(tasks), matrix.rule[tasks, 0] * matrix.kernels.weight[tasks], **EXACT)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_low_rank_matrices_have_the_rank_that_is_said(rank):
    assert torch.linalg.matrix_rank(LowRankMatrix(2, 5, 4, rank)(torch.tensor([0, 1]))).tolist() == [rank, rank]
    compacter = KroneckerMatrix(2, 12, 8, order=2, rank=1)
    assert torch.linalg.matrix_rank(compacter.kernels(torch.arange(4))).tolist() == [1] * 4


# Hypernetworks


def test_hypernetworks_are_affine_in_the_embedding():
    hypernetworks = randomise(Hypernetworks(4, {"matrix": (3, 2), "vector": (5,)}, 2, {"matrix": 1, "vector": 1}))
    u, v = torch.randn(2, 6, 4)
    between, at_u, at_v = hypernetworks(0.3 * u + 0.7 * v), hypernetworks(u), hypernetworks(v)
    for name in hypernetworks.shapes:
        torch.testing.assert_close(between[name], 0.3 * at_u[name] + 0.7 * at_v[name], **EXACT)


def test_hypernetworks_start_with_the_deviations_that_are_named():
    shapes = {"first": (8, 9), "second": (7,), "third": (10, 80)}
    hypernetworks = Hypernetworks(50, shapes, 2, {"first": 0.3, "second": 0.0, "third": 2.0})
    outputs = hypernetworks(torch.randn(1000, 50))
    assert not outputs["second"].any() and not hypernetworks.linear.bias.any()
    assert abs(outputs["first"].std() - 0.3) < 0.03 and abs(outputs["third"].std() - 2.0) < 0.1


@pytest.mark.parametrize("shape", [(4, 4), (3, 7), (7, 3), (1, 5), (5, 1)])
def test_unit_vectors_give_orthogonal_matrices_at_the_start(shape):
    matrices = Hypernetworks(6, {"matrix": shape}, 1, {"matrix": 0.5})(math.sqrt(6) * torch.eye(6))["matrix"]
    wide = matrices if shape[0] <= shape[1] else matrices.mT
    expected = 0.25 * max(shape) * torch.eye(min(shape)).expand(6, -1, -1)
    torch.testing.assert_close(wide @ wide.mT, expected, rtol=1e-5, atol=1e-5)
    assert (matrices[0] - matrices[1]).abs().max() > 0.1


def test_what_multiplies_two_factors_grows_with_the_square_of_the_embedding():
    generator = randomise(PolyhistorConfig(tasks=TASKS, rank=2, embedding_dim=5).make_generator(SITES[:1]))
    [hypernetworks] = generator.hypernetworks
    nn.init.zeros_(hypernetworks.linear.bias)
    [norm] = (projector[1] for projector in generator.projectors)
    [once] = generator(torch.arange(3))
    with torch.no_grad():
        norm.weight *= 2
        norm.bias *= 2  # the embedding, doubled
    [twice] = generator(torch.arange(3))
    grows = {"down": 4, "up": 4, "down_bias": 2, "up_bias": 2, "norm_bias": 2}
    for name, factor in grows.items():
        torch.testing.assert_close(getattr(twice, name), factor * getattr(once, name), **EXACT)
    torch.testing.assert_close(twice.norm_weight - 1, 2 * (once.norm_weight - 1), **EXACT)


# Generators


@for_every_method
def test_weights_of_a_task_do_not_depend_on_who_else_is_asked(config):
    generator = randomise(config.make_generator(SITES))
    every = generator(torch.arange(3))
    for tasks in ([1], [2, 0], [0, 0, 2, 1]):
        expected = [BottleneckWeights(*(tensor[tasks] for tensor in site)) for site in every]
        check_sites(generator(torch.tensor(tasks)), expected)


@for_every_method
def test_what_belongs_to_a_task_moves_no_other(config):
    generator = randomise(config.make_generator(SITES))
    before = generator(torch.arange(3))
    own = [generator.task_embedding] if hasattr(generator, "task_embedding") else generator.parameters()
    with torch.no_grad():
        for parameter in own:
            parameter.unflatten(0, (3, -1))[1] += 1
    for site, site_before in zip(generator(torch.arange(3)), before, strict=True):
        for tensor, tensor_before in zip(site, site_before, strict=True):
            torch.testing.assert_close(tensor[[0, 2]], tensor_before[[0, 2]], **EXACT)
            assert not torch.equal(tensor[1], tensor_before[1])


def test_polyhistor_lite_without_its_kernels_leaves_an_adapter_of_zero():
    generator = randomise(PolyhistorLiteConfig(tasks=TASKS, embedding_dim=5).make_generator(SITES))
    for kernels in generator.scaling:
        for parameter in kernels.parameters():
            nn.init.zeros_(parameter)
    for site, weights in zip(SITES, generator(torch.arange(3)), strict=True):
        scaled = site.width > 12
        assert bool(weights.up.any()) != scaled and bool(weights.up_bias.any()) != scaled
        assert bool((weights.norm_weight != 1).any()) != scaled


@pytest.mark.parametrize("values", [[], [4], [1, 2, 1, 4, 2, 1], [3, 3, 3], [4, 3, 2, 1]])
def test_groups_hold_every_index_once_and_equal_values_alone(values):
    groups = group_equal(values)
    assert sorted(index for group in groups for index in group) == list(range(len(values)))
    assert [len({values[index] for index in group}) for group in groups] == [1] * len(set(values))


# The bottleneck


def weights_of(tasks, width=5, bottleneck=3):
    shapes = [(bottleneck, width), (bottleneck,), (width, bottleneck), (width,), (width,), (width,)]
    return BottleneckWeights(*(torch.randn(tasks, *shape) for shape in shapes))


def test_tasks_of_a_batch_go_their_own_ways():
    weights, x = weights_of(3), torch.randn(6, 4, 5)
    together = apply_bottleneck(x, weights)
    for task in range(3):
        alone = BottleneckWeights(*(tensor[task : task + 1] for tensor in weights))
        rows = slice(2 * task, 2 * task + 2)
        torch.testing.assert_close(together[rows], apply_bottleneck(x[rows], alone), **EXACT)


def test_a_bottleneck_adds_up_over_its_channels():
    """Two adapters side by side are one of twice the bottleneck."""
    first, second = weights_of(2), weights_of(2)
    second = second._replace(norm_weight=first.norm_weight, norm_bias=first.norm_bias)
    both = first._replace(
        down=torch.cat([first.down, second.down], dim=1),
        down_bias=torch.cat([first.down_bias, second.down_bias], dim=1),
        up=torch.cat([first.up, second.up], dim=2),
        up_bias=first.up_bias + second.up_bias,
    )
    x = torch.randn(4, 7, 5)
    torch.testing.assert_close(
        apply_bottleneck(x, both), apply_bottleneck(x, first) + apply_bottleneck(x, second), **EXACT
    )


def test_a_bottleneck_sees_neither_the_mean_nor_the_size_of_a_token():
    weights, x = weights_of(2), 100 * torch.randn(4, 7, 5)
    moved = apply_bottleneck(3 * x + 8, weights)
    torch.testing.assert_close(moved, apply_bottleneck(x, weights), rtol=1e-6, atol=1e-6)  # but for the norm's 1e-5
