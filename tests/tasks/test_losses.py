# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Losses against their definitions by loops, their edges, and the label checks."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from random_labels import binary_labels, class_labels, normal_labels

from peft_polyhistor.tasks.labels import (
    check_binary_labels,
    check_class_labels,
    check_normal_labels,
    check_scalar_labels,
)
from peft_polyhistor.tasks.losses import (
    balanced_binary_cross_entropy,
    cosine_loss,
    count_binary,
    count_images,
    count_labeled,
    count_numbers,
    count_valid,
    cross_entropy,
    l1_loss,
    normal_loss,
    scale_invariant_loss,
)


BATCH, CLASSES, HEIGHT, WIDTH = 2, 4, 7, 5
SMALL = (3, 4)  # size of logits that must be resized
ROUNDING = {"rtol": 1e-5, "atol": 1e-6}  # float32 sums of about 100 terms
BFLOAT16_ROUNDING = {"rtol": 0.02, "atol": 0.02}  # 8 bits of mantissa in the logits


def class_case(size=SMALL):
    target = class_labels(BATCH, HEIGHT, WIDTH, CLASSES, unlabelled=0.3)
    return cross_entropy, torch.randn(BATCH, CLASSES, *size), target


def binary_case(size=SMALL):
    target = binary_labels(BATCH, HEIGHT, WIDTH, positive=0.3, unlabelled=0.2)
    return balanced_binary_cross_entropy, torch.randn(BATCH, 1, *size), target


def normal_case(size=SMALL):
    target = normal_labels(BATCH, HEIGHT, WIDTH)
    return normal_loss, torch.randn(BATCH, 3, *size), target


def cosine_case(size=SMALL):
    return cosine_loss, *normal_case(size)[1:]


def scalar_case(size=SMALL):
    target = 5 * torch.rand(BATCH, 1, HEIGHT, WIDTH) + 0.1
    target[torch.rand(target.shape) < 0.3] = math.nan
    return l1_loss, torch.randn(BATCH, 1, *size), target


def scale_invariant_case(size=SMALL):
    return scale_invariant_loss, *scalar_case(size)[1:]


CASES = [class_case, binary_case, normal_case, cosine_case, scalar_case, scale_invariant_case]


def pixels():
    return ((i, y, x) for i in range(BATCH) for y in range(HEIGHT) for x in range(WIDTH))


def test_cross_entropy_matches_the_definition():
    _, logits, target = class_case(size=(HEIGHT, WIDTH))
    terms = []
    for i, y, x in pixels():
        label = target[i, y, x].item()
        if label != 255:
            exponentials = [math.exp(value) for value in logits[i, :, y, x].tolist()]
            terms.append(-math.log(exponentials[label] / sum(exponentials)))
    assert 0 < len(terms) < target.numel()
    torch.testing.assert_close(cross_entropy(logits, target).item(), sum(terms) / len(terms), **ROUNDING)


def test_balanced_binary_cross_entropy_matches_the_definition():
    _, logits, target = binary_case(size=(HEIGHT, WIDTH))
    labeled = [(i, y, x) for i, y, x in pixels() if target[i, 0, y, x] != -1]
    negatives = sum(1 for i, y, x in labeled if target[i, 0, y, x] == 0)
    assert len(labeled) < target.numel()
    w = negatives / len(labeled)
    total = 0
    for i, y, x in labeled:
        probability = 1 / (1 + math.exp(-logits[i, 0, y, x].item()))
        is_positive = target[i, 0, y, x] == 1
        total += -w * math.log(probability) if is_positive else -(1 - w) * math.log(1 - probability)
    loss = balanced_binary_cross_entropy(logits, target)
    torch.testing.assert_close(loss.item(), total / len(labeled), **ROUNDING)


def test_a_fixed_weight_of_positives_is_that_of_the_definition():
    _, logits, target = binary_case(size=(HEIGHT, WIDTH))
    total, count = 0, 0
    for i, y, x in pixels():
        if target[i, 0, y, x] != -1:
            probability = 1 / (1 + math.exp(-logits[i, 0, y, x].item()))
            total += -0.95 * math.log(probability) if target[i, 0, y, x] else -0.05 * math.log(1 - probability)
            count += 1
    loss = balanced_binary_cross_entropy(logits, target, positive_weight=0.95)
    torch.testing.assert_close(loss.item(), total / count, **ROUNDING)


def test_normal_loss_matches_the_definition():
    _, prediction, target = normal_case(size=(HEIGHT, WIDTH))
    terms = []
    for i, y, x in pixels():
        wanted, vector = target[i, :, y, x].tolist(), prediction[i, :, y, x].tolist()
        if any(wanted):
            length = math.sqrt(sum(value**2 for value in vector))
            terms += [abs(value / length - goal) for value, goal in zip(vector, wanted, strict=True)]
    assert 0 < len(terms) < target.numel()
    torch.testing.assert_close(normal_loss(prediction, target).item(), sum(terms) / len(terms), **ROUNDING)


def test_cosine_loss_matches_the_definition():
    _, prediction, target = cosine_case(size=(HEIGHT, WIDTH))
    terms = []
    for i, y, x in pixels():
        wanted, vector = target[i, :, y, x].tolist(), prediction[i, :, y, x].tolist()
        if any(wanted):
            terms.append(1 - sum(p * q for p, q in zip(vector, wanted, strict=True)) / math.hypot(*vector))
    torch.testing.assert_close(cosine_loss(prediction, target).item(), sum(terms) / len(terms), **ROUNDING)


def test_l1_loss_matches_the_definition():
    _, prediction, target = scalar_case(size=(HEIGHT, WIDTH))
    pairs = [(prediction[i, 0, y, x].item(), target[i, 0, y, x].item()) for i, y, x in pixels()]
    terms = [abs(value - truth) for value, truth in pairs if not math.isnan(truth)]
    assert 0 < len(terms) < target.numel()
    torch.testing.assert_close(l1_loss(prediction, target).item(), sum(terms) / len(terms), **ROUNDING)


def test_the_scale_invariant_loss_matches_the_definition():
    _, prediction, target = scale_invariant_case(size=(HEIGHT, WIDTH))
    errors = []
    for i in range(BATCH):
        pairs = [(prediction[i, 0, y, x].item(), target[i, 0, y, x].item()) for j, y, x in pixels() if j == i]
        d = [value - math.log(truth) for value, truth in pairs if not math.isnan(truth)]
        errors.append(sum(term**2 for term in d) / len(d) - 0.5 * (sum(d) / len(d)) ** 2)
    torch.testing.assert_close(scale_invariant_loss(prediction, target).item(), sum(errors) / BATCH, **ROUNDING)


@pytest.mark.parametrize("case", CASES)
def test_logits_are_resized_to_the_label(case):
    loss, logits, target = case()
    resized = F.interpolate(logits, size=(HEIGHT, WIDTH), mode="bilinear", align_corners=False)
    assert loss(logits, target) == loss(resized, target)


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_finite(case):
    loss, logits, target = case()
    logits.requires_grad_()
    loss(logits, target).backward()
    assert logits.grad.isfinite().all()
    assert logits.grad.any()


@pytest.mark.parametrize("case", CASES)
def test_half_precision_computes_in_float32(case):
    loss, logits, target = case()
    expected = loss(logits, target)
    with torch.autocast("cpu", torch.bfloat16):
        actual = loss(logits.bfloat16(), target)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected, **BFLOAT16_ROUNDING)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("scale", [1e-30, 3e4])
def test_extreme_logits_give_finite_losses_and_gradients(case, scale):
    loss, logits, target = case()
    logits = (logits * scale).requires_grad_()
    value = loss(logits, target)
    value.backward()
    assert value.isfinite()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize(("loss", "channels", "target"), [
    (cross_entropy, CLASSES, torch.full((BATCH, HEIGHT, WIDTH), 255)),
    (normal_loss, 3, torch.zeros(BATCH, 3, HEIGHT, WIDTH)),
    (balanced_binary_cross_entropy, 1, torch.zeros(BATCH, 1, HEIGHT, WIDTH)),
    (balanced_binary_cross_entropy, 1, torch.ones(BATCH, 1, HEIGHT, WIDTH)),
    (balanced_binary_cross_entropy, 1, torch.zeros(0, 1, HEIGHT, WIDTH)),
    (balanced_binary_cross_entropy, 1, torch.full((BATCH, 1, HEIGHT, WIDTH), -1.0)),
    (cosine_loss, 3, torch.zeros(BATCH, 3, HEIGHT, WIDTH)),
    (l1_loss, 1, torch.full((BATCH, 1, HEIGHT, WIDTH), math.nan)),
    (scale_invariant_loss, 1, torch.full((BATCH, 1, HEIGHT, WIDTH), math.nan)),
])  # fmt: skip
def test_a_batch_without_information_gives_exactly_zero(loss, channels, target):
    logits = torch.randn(target.shape[0], channels, *SMALL, requires_grad=True)
    value = loss(logits, target)
    value.backward()
    assert value.item() == 0
    assert not logits.grad.any()


@pytest.mark.parametrize(
    ("case", "count", "nothing"),
    [
        (class_case, count_labeled, 255),
        (binary_case, count_binary, -1),
        (normal_case, count_valid, 0),
        (cosine_case, count_valid, 0),
        (scalar_case, count_numbers, math.nan),
    ],
)
@pytest.mark.parametrize("empty", [False, True], ids=["uneven", "one part empty"])
def test_the_mean_over_parts_that_share_their_counts_is_the_loss_of_the_whole(case, count, nothing, empty):
    loss, logits, target = case()
    target[0, ..., : HEIGHT if empty else 2, :] = nothing
    logits.requires_grad_()
    whole = loss(logits, target)
    [expected] = torch.autograd.grad(whole, logits)
    counts = [count(target[part : part + 1]) for part in range(BATCH)]
    assert not torch.equal(counts[0], counts[1]) and torch.equal(sum(counts), count(target))
    losses = [loss(logits[i : i + 1], target[i : i + 1], sum(counts) / BATCH) for i in range(BATCH)]
    mean = sum(losses) / BATCH
    torch.testing.assert_close(mean, whole, **ROUNDING)
    torch.testing.assert_close(torch.autograd.grad(mean, logits)[0], expected, **ROUNDING)
    apart = sum(loss(logits[i : i + 1], target[i : i + 1]) for i in range(BATCH)) / BATCH
    assert (apart - whole).abs() > 1e-4  # which is why


def test_images_without_a_label_do_not_count_in_the_scale_invariant_loss():
    _, logits, target = scale_invariant_case()
    expected = scale_invariant_loss(logits, target) * BATCH
    logits, target = (torch.cat([x, x[:1]]) for x in (logits, target))
    target[BATCH] = math.nan
    assert count_images(target) == BATCH
    losses = [scale_invariant_loss(logits[[i]], target[[i]], torch.tensor(BATCH / 3)) for i in range(BATCH + 1)]
    torch.testing.assert_close(sum(losses) / 3, expected / BATCH, **ROUNDING)


def test_one_labeled_pixel_in_many_parts_counts_as_one():
    logits, target = torch.randn(1, CLASSES, HEIGHT, WIDTH), torch.full((1, HEIGHT, WIDTH), 255)
    target[0, 2, 3] = 1
    expected = cross_entropy(logits, target)
    assert cross_entropy(logits, target, torch.tensor(1 / 8)) == 8 * expected
    assert cross_entropy(logits, torch.full_like(target, 255), torch.tensor(1 / 8)) == 0


def test_a_zero_normal_has_a_small_gradient():
    prediction = torch.zeros(1, 3, 3, 5, requires_grad=True)
    target = torch.tensor([0.0, 0.6, -0.8]).view(1, 3, 1, 1).expand(1, 3, 3, 5)
    normal_loss(prediction, target).backward()
    assert 0 < prediction.grad.abs().max() <= 1


def test_a_byte_map_of_classes_is_a_label():
    _, logits, target = class_case()
    assert cross_entropy(logits, target.to(torch.uint8)) == cross_entropy(logits, target)


@pytest.mark.parametrize("case", CASES)
def test_compiles_without_a_graph_break(case):
    loss, logits, target = case()
    compiled = torch.compile(loss, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(logits, target), loss(logits, target), **ROUNDING)


CHECKS = [
    (check_class_labels, CLASSES, class_case),
    (check_binary_labels, 1, binary_case),
    (check_normal_labels, 3, normal_case),
    (check_scalar_labels, 1, scalar_case),
]


@pytest.mark.parametrize(("check", "channels", "case"), CHECKS)
def test_checks_accept_labels(check, channels, case):
    check("edges", (BATCH, channels), case()[2])


@pytest.mark.parametrize(("check", "channels", "case"), CHECKS)
def test_checks_name_a_wrong_shape_or_dtype(check, channels, case):
    target = case()[2]
    check = partial(check, "edges")
    with pytest.raises(ValueError, match=r"edges have shape \(2, .*must have shape \(3, .*match the batches"):
        check((3, channels), target)
    with pytest.raises(ValueError, match=r"edges have shape .*Add or drop axes"):
        check((BATCH, channels), target[:, None])
    wrong_dtype = target.float() if check.func is check_class_labels else target.long()
    with pytest.raises(ValueError, match=r"edges are torch\..*Call `\."):
        check((BATCH, channels), wrong_dtype)
    with pytest.raises(ValueError, match=r"edges are torch.bool"):
        check((BATCH, channels), target.bool())


@pytest.mark.parametrize(("check", "channels", "value", "message"), [
    (check_class_labels, CLASSES, CLASSES, r"values \[4\]; allowed are the class ids 0 to 3 and 255"),
    (check_class_labels, CLASSES, -1, r"values \[-1\]"),
    (check_binary_labels, 1, 0.5, r"values \[0.5\]; allowed are 0 .* and 1"),
    (check_binary_labels, 1, math.nan, r"values \[nan\]"),
    (check_scalar_labels, 1, math.inf, r"values \[inf\]; allowed are finite numbers, and NaN"),
    (check_normal_labels, 3, 2.0, "vectors of length .*; allowed are unit vectors"),
    (check_normal_labels, 3, math.nan, r"vectors of length \[nan\]"),
])  # fmt: skip
def test_checks_name_a_wrong_value(check, channels, value, message):
    target = {check: case for check, _, case in CHECKS}[check]()[2]
    target[1, ..., 2, 3] = value
    with pytest.raises(ValueError, match=f"edges hold .*{message}"):
        check("edges", (BATCH, channels), target)
    check("edges", (BATCH, channels), target, check_values=False)


def test_checks_name_five_wrong_values_at_most():
    target = torch.arange(10, 10 + HEIGHT * WIDTH).view(1, HEIGHT, WIDTH)
    with pytest.raises(ValueError, match=r"values \[10, 11, 12, 13, 14\]; allowed"):
        check_class_labels("edges", (1, CLASSES), target)


def test_values_are_left_alone_on_other_devices():
    target = torch.zeros(BATCH, 1, HEIGHT, WIDTH, device="meta")  # reading a value of a meta tensor raises
    check_binary_labels("edges", (BATCH, 1), target)


@pytest.mark.parametrize(("check", "channels"), [(check_binary_labels, 1), (check_normal_labels, 3)])
def test_checks_name_wrong_logits(check, channels):
    with pytest.raises(ValueError, match=rf"shape \(2, 9\); they must have {channels} channel"):
        check("edges", (BATCH, 9), torch.zeros(BATCH, channels, HEIGHT, WIDTH))
