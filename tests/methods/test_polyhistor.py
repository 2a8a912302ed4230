# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Polyhistor and Polyhistor-Lite against their definitions by loops, and their parameter counts."""

import math

import pytest
import torch
from peft import get_peft_model
from tiny_models import make_sites, randomise
from transformers import SwinConfig, SwinModel

from peft_polyhistor import MultiTaskDenseModel, PolyhistorConfig, PolyhistorLiteConfig
from peft_polyhistor.layers.bottleneck import BottleneckWeights, apply_bottleneck
from peft_polyhistor.layers.factors import Hypernetworks, kronecker_sum, kronecker_sum_of_vectors


RAW, HIDDEN = 512, 128  # sizes of the embeddings and of the projector, from the paper's counts
pytestmark = pytest.mark.usefixtures("double")
TASKS = ["first", "second", "third"]
EXACT = {"rtol": 1e-10, "atol": 1e-10}  # everything here is computed in float64
SWIN_T = {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24]}
SWIN_B = {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32]}


# The definitions, on lists of numbers


def linear(weight, bias, x):
    return [sum(w * value for w, value in zip(row, x, strict=True)) + b for row, b in zip(weight, bias, strict=True)]


def paced(layer, x):
    """gain W x + b."""
    weight = [[layer.gain.item() * w for w in row] for row in layer.weight.tolist()]
    return linear(weight, layer.bias.tolist(), x)


def layer_norm(x, weight, bias, epsilon=1e-5):
    mean = sum(x) / len(x)
    variance = sum((value - mean) ** 2 for value in x) / len(x)
    scale = math.sqrt(variance + epsilon)
    return [w * (value - mean) / scale + b for value, w, b in zip(x, weight, bias, strict=True)]


def gelu(x):
    return x * 0.5 * (1 + math.erf(x / math.sqrt(2)))


def project(projector, raw):
    """LayerNorm(W2 relu(W1 z + b1) + b2)."""
    (first, _, second), norm = projector
    hidden = [max(value, 0.0) for value in paced(first, raw)]
    projected = paced(second, hidden)
    return layer_norm(projected, norm.weight.tolist(), norm.bias.tolist())


def matrix(numbers, rows, cols):
    return [[next(numbers) for _ in range(cols)] for _ in range(rows)]


def multiply(left, right):
    return [[sum(a * b for a, b in zip(row, col, strict=True)) for col in zip(*right, strict=True)] for row in left]


def generate(hypernetworks, v, width, bottleneck, rank):
    """Output of the six generators for one embedding: two matrices of two factors each, and four vectors."""
    numbers = iter(paced(hypernetworks.linear, v))
    down = multiply(matrix(numbers, bottleneck, rank), matrix(numbers, rank, width))
    down_bias = [next(numbers) for _ in range(bottleneck)]
    up = multiply(matrix(numbers, width, rank), matrix(numbers, rank, bottleneck))
    up_bias, norm_weight, norm_bias = ([next(numbers) for _ in range(width)] for _ in range(3))
    assert next(numbers, None) is None
    return BottleneckWeights(*map(torch.tensor, (down, down_bias, up, up_bias, norm_weight, norm_bias)))


def starting_at_one(weights):
    return weights._replace(norm_weight=1 + weights.norm_weight)


# The adapter


@pytest.mark.parametrize("tasks", [1, 3])
def test_the_adapter_matches_the_definition(tasks):
    batch, tokens, width, bottleneck = 2, 4, 5, 3
    x = torch.randn(tasks * batch, tokens, width)
    shapes = [(bottleneck, width), (bottleneck,), (width, bottleneck), (width,), (width,), (width,)]
    weights = BottleneckWeights(*(torch.randn(tasks, *shape) for shape in shapes))
    actual = apply_bottleneck(x, weights)
    for i in range(tasks * batch):
        w = BottleneckWeights(*(tensor[i // batch].tolist() for tensor in weights))  # the first task comes first
        for token in range(tokens):
            normed = layer_norm(x[i, token].tolist(), w.norm_weight, w.norm_bias)
            hidden = [gelu(value) for value in linear(w.down, w.down_bias, normed)]
            expected = torch.tensor(linear(w.up, w.up_bias, hidden))
            torch.testing.assert_close(actual[i, token], expected, **EXACT)


def test_the_adapter_takes_maps_and_vectors():
    weights = BottleneckWeights(*(torch.randn(2, *s) for s in [(3, 5), (3,), (5, 3), (5,), (5,), (5,)]))
    x = torch.randn(4, 2, 7, 5)
    torch.testing.assert_close(
        apply_bottleneck(x, weights), apply_bottleneck(x.flatten(1, 2), weights).view_as(x), **EXACT
    )
    torch.testing.assert_close(apply_bottleneck(x[:, 0, 0], weights), apply_bottleneck(x, weights)[:, 0, 0], **EXACT)
    assert apply_bottleneck(x.bfloat16(), weights).dtype == torch.bfloat16


# Factors


def test_kronecker_sum_matches_the_definition():
    templates, kernels = torch.randn(2, 3, 4, 5), torch.randn(3, 6, 7)
    actual = kronecker_sum(templates, kernels)
    for task in range(2):
        expected = sum(torch.kron(templates[task, i].contiguous(), kernels[i]) for i in range(3))
        torch.testing.assert_close(actual[task], expected, **EXACT)


def test_kronecker_sum_of_vectors_matches_the_definition():
    templates, kernels = torch.randn(2, 3, 4), torch.randn(3, 6)
    actual = kronecker_sum_of_vectors(templates, kernels)
    for task in range(2):
        expected = sum(torch.kron(templates[task, i], kernels[i]) for i in range(3))
        torch.testing.assert_close(actual[task], expected, **EXACT)


def test_hypernetworks_match_the_definition():
    hypernetworks = randomise(Hypernetworks(4, {"matrix": (3, 2), "vector": (5,)}, 2, {"matrix": 1, "vector": 1}))
    embedding = torch.randn(2, 6, 4)
    outputs = hypernetworks(embedding)
    assert {name: tuple(output.shape) for name, output in outputs.items()} == {
        "matrix": (2, 6, 3, 2),
        "vector": (2, 6, 5),
    }
    for i, j in [(0, 0), (1, 5)]:
        numbers = paced(hypernetworks.linear, embedding[i, j].tolist())
        torch.testing.assert_close(outputs["matrix"][i, j].flatten(), torch.tensor(numbers[:6]), **EXACT)
        torch.testing.assert_close(outputs["vector"][i, j], torch.tensor(numbers[6:]), **EXACT)


# Polyhistor


def test_polyhistor_matches_the_definition():
    widths, embedding_dim, reduction_factor, rank = [12, 20, 35], 5, 4, 2
    config = PolyhistorConfig(tasks=TASKS, embedding_dim=embedding_dim, reduction_factor=reduction_factor, rank=rank)
    generator = randomise(config.make_generator(make_sites(*widths)))
    asked = [2, 0]
    actual = generator(torch.tensor(asked))
    assert len(actual) == len(widths)
    for site, width in enumerate(widths):
        for row, task in enumerate(asked):
            v = project(generator.projectors[site], generator.task_embedding[task].tolist())
            expected = generate(generator.hypernetworks[site], v, width, width // reduction_factor, rank)
            found = BottleneckWeights(*(tensor[row] for tensor in actual[site]))
            torch.testing.assert_close(found, starting_at_one(expected), **EXACT)


# Polyhistor-Lite


def test_polyhistor_lite_matches_the_definition():
    widths, embedding_dim, reduction_factor, rank = [16, 8, 24], 5, 4, 2
    base, bottleneck = 8, 2
    config = PolyhistorLiteConfig(
        tasks=TASKS, embedding_dim=embedding_dim, reduction_factor=reduction_factor, rank=rank
    )
    generator = randomise(config.make_generator(make_sites(*widths)))
    asked = [2, 0]
    actual = generator(torch.tensor(asked))
    first = 0  # row of the site's first layer embedding
    for site, width in enumerate(widths):
        scale = width // base
        kernels = generator.scaling[site]
        for row, task in enumerate(asked):
            templates = []
            for i in range(first, first + scale):
                raw = generator.task_embedding[task].tolist() + generator.layer_embedding[i].tolist()
                v = project(generator.projector, raw)
                templates.append(generate(generator.hypernetworks, v, base, bottleneck, rank))
            if scale == 1:
                expected = templates[0]
                assert not list(kernels.parameters())
            else:
                kernel_of = BottleneckWeights(
                    kernels.weight, kernels.bias, kernels.weight, kernels.bias, kernels.norm, kernels.norm
                )
                summands = zip(zip(*templates, strict=True), kernel_of, strict=True)
                expected = BottleneckWeights(*(sum(map(torch.kron, *pair)) for pair in summands))
            found = BottleneckWeights(*(tensor[row] for tensor in actual[site]))
            assert found.down.shape == (width // reduction_factor, width)
            torch.testing.assert_close(found, starting_at_one(expected), **EXACT)
        first += scale
    assert len(generator.layer_embedding) == first


def test_polyhistor_lite_needs_widths_that_are_multiples():
    with pytest.raises(ValueError, match=r"multiples of the smallest, 12, and 'site1' has 20.*use PolyhistorConfig"):
        PolyhistorLiteConfig().make_generator(make_sites(12, 20))


# The start


CONFIGS = [PolyhistorConfig, PolyhistorLiteConfig]


@pytest.mark.parametrize("config_class", CONFIGS)
def test_at_the_start_only_up_is_zero(config_class):
    generator = config_class(tasks=TASKS).make_generator(make_sites(16, 32, 48))
    for site in generator(torch.arange(3)):
        assert not site.up.any()
        assert not site.up_bias.any()
        assert all(tensor.any() for tensor in (site.down, site.down_bias, site.norm_bias))
        assert (site.norm_weight - 1).abs().mean() < 0.5
        assert (site.norm_weight - 1).any()


@pytest.mark.parametrize("config_class", CONFIGS)
def test_without_init_weights_nothing_is_zero(config_class):
    generator = config_class(tasks=TASKS, init_weights=False).make_generator(make_sites(16, 32, 48))
    for site in generator(torch.arange(3)):
        assert all(tensor.any() for tensor in site)


def units(rows, k):
    return k / math.sqrt(k - 1) * torch.eye(k)[torch.arange(rows) % k]


@torch.no_grad()
def test_each_task_of_polyhistor_starts_at_a_unit_vector_of_its_own():
    generator = PolyhistorConfig(tasks=TASKS, embedding_dim=5).make_generator(make_sites(16, 32, 48))
    for projector in generator.projectors:
        torch.testing.assert_close(projector(generator.task_embedding), units(3, 5), rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("k", [4, 64])  # for 46 templates on Swin-T
def test_each_template_of_polyhistor_lite_starts_near_a_unit_vector_for_all_tasks(k):
    widths = [96] * 2 + [192] * 2 + [384] * 6 + [768] * 2
    generator = PolyhistorLiteConfig(tasks=TASKS, embedding_dim=k).make_generator(make_sites(*widths))
    layers = generator.layer_embedding
    for task in generator.task_embedding:
        v = generator.projector(torch.cat([task.expand(len(layers), -1), layers], dim=-1))
        torch.testing.assert_close(v, units(46, k), rtol=0, atol=0.25 * math.sqrt(k))


def test_a_step_for_one_task_of_polyhistor_moves_no_other_task():
    generator = PolyhistorConfig(tasks=TASKS, embedding_dim=5).make_generator(make_sites(16))
    linear = generator.hypernetworks[0].linear
    before = generator(torch.arange(3))[0].up
    generator(torch.tensor([1]))[0].up.sum().backward()
    with torch.no_grad():
        linear.weight -= linear.weight.grad
        moved = (generator(torch.arange(3))[0].up - before).abs().amax((1, 2))
    assert moved[1] > 1 and moved[[0, 2]].max() < 1e-3


@pytest.mark.parametrize("config_class", CONFIGS)
def test_two_steps_from_the_start_reach_every_output_and_task(config_class):
    widths = [16, 32, 48]
    generator = config_class(tasks=TASKS).make_generator(make_sites(*widths))
    x, target = torch.randn(2, len(TASKS), 2, max(widths))
    for _ in range(2):
        generator.zero_grad()
        for site, width in zip(generator(torch.arange(len(TASKS))), widths, strict=True):
            loss = (apply_bottleneck(x[..., :width], site) * target[..., :width]).sum()
            loss.backward(retain_graph=True)
        with torch.no_grad():
            for parameter in generator.parameters():
                parameter -= 0.01 * parameter.grad
    for name, parameter in generator.named_parameters():
        if name == "task_embedding" or "hypernetworks" in name:
            assert parameter.grad.view(len(parameter), -1).any(dim=1).all(), name


# Parameter counts


def swin_on_meta(**sizes):
    with torch.device("meta"):
        return SwinModel(SwinConfig(**sizes), add_pooling_layer=False)


def count_adapter(config, **sizes):
    """Parameters that train, the encoder being on the meta device."""
    model = get_peft_model(swin_on_meta(**sizes), config)
    assert all(parameter.is_meta for parameter in model.parameters())
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize(("config", "sizes", "expected"), [
    (PolyhistorConfig(), SWIN_T, 6_410_684),
    (PolyhistorConfig(rank=1), SWIN_T, 2_379_644),
    (PolyhistorConfig(rank_divisor=8), SWIN_T, 4_076_924),
    (PolyhistorLiteConfig(), SWIN_T, 413_552),
    (PolyhistorLiteConfig(embedding_dim=32), SWIN_T, 288_016),
    (PolyhistorLiteConfig(embedding_dim=16), SWIN_T, 225_248),
    (PolyhistorLiteConfig(reduction_factor=1), SWIN_B, 1_291_040),
])  # fmt: skip
def test_counts_are_those_of_the_paper(config, sizes, expected):
    assert count_adapter(config, **sizes) == expected


def test_encoder_and_decoders_weigh_what_the_paper_says():
    encoder = swin_on_meta(**SWIN_T)
    final_norm = 2 * 768
    assert sum(parameter.numel() for parameter in encoder.parameters()) - final_norm == 27_517_818
    with torch.device("meta"):
        model = MultiTaskDenseModel.from_encoder(encoder, ["semseg", "human_parts", "saliency", "normals"])
    assert sum(parameter.numel() for parameter in model.decoders.parameters()) == 2_549_024
    config = PolyhistorLiteConfig()
    adapted = get_peft_model(model, config)
    assert sum(p.numel() for p in adapted.parameters() if p.requires_grad) == 413_552 + 2_549_024


def count_generators(width, bottleneck, rank, k):
    return (k + 1) * (2 * rank * (width + bottleneck) + bottleneck + 3 * width)


def count_projector(raw, k):
    return raw * HIDDEN + HIDDEN + HIDDEN * k + k + 2 * k


SIZES = {"embed_dim": 12, "depths": [1, 3, 2], "num_heads": [1, 2, 4]}
WIDTHS = [12] + 3 * [24] + 2 * [48]


@pytest.mark.parametrize(("tasks", "reduction_factor", "rank", "rank_divisor", "k"), [
    (3, 3, 2, 4, 5),
    (1, 4, None, 2, 7),
])  # fmt: skip
def test_counts_follow_the_formula(tasks, reduction_factor, rank, rank_divisor, k):
    settings = {
        "tasks": TASKS[:tasks], "reduction_factor": reduction_factor, "rank": rank, "rank_divisor": rank_divisor,
        "embedding_dim": k,
    }  # fmt: skip

    def generators(width):
        bottleneck = width // reduction_factor
        return count_generators(width, bottleneck, rank or max(1, bottleneck // rank_divisor), k)

    polyhistor = tasks * RAW + sum(count_projector(RAW, k) + generators(width) for width in WIDTHS)
    assert count_adapter(PolyhistorConfig(**settings), **SIZES) == polyhistor

    scales = [width // 12 for width in WIDTHS]
    lite = (tasks + sum(scales)) * RAW + count_projector(2 * RAW, k) + generators(12)
    lite += sum(scale**3 + 2 * scale**2 for scale in scales if scale > 1)
    assert count_adapter(PolyhistorLiteConfig(**settings), **SIZES) == lite


@pytest.mark.parametrize("config_class", [PolyhistorConfig, PolyhistorLiteConfig])
def test_embeddings_that_a_norm_makes_equal_are_refused(config_class):
    for length in (1, 2):
        with pytest.raises(ValueError, match=f"`embedding_dim` must be at least 3, got {length}: the norm"):
            config_class(embedding_dim=length)
    config_class(embedding_dim=3)
