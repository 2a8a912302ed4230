# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Laws of merging metrics, and what may be done to pictures without a change of their scores."""

import copy
import math

import pytest
import torch
from random_labels import binary_labels, class_labels, normal_labels
from torch.nn import functional as F

from peft_polyhistor.tasks.kinds.vectors import flip_normals, rotate_normals
from peft_polyhistor.tasks.metrics import MeanAngularError, MeanIoU, SaliencyScores


PICTURES, CLASSES, HEIGHT, WIDTH = 6, 4, 5, 7
FLOAT32_ANGLE = {"rtol": 1e-6, "atol": 1e-5}  # degrees


def class_case():
    references = class_labels(PICTURES, HEIGHT, WIDTH, CLASSES, unlabelled=0.2)
    return MeanIoU(CLASSES), torch.randn(PICTURES, CLASSES, HEIGHT, WIDTH), references


def binary_case():
    references = binary_labels(PICTURES, HEIGHT, WIDTH, positive=0.4)
    return SaliencyScores(), 2 * torch.randn(PICTURES, 1, HEIGHT, WIDTH), references


def normal_case():
    references = normal_labels(PICTURES, HEIGHT, WIDTH)
    return MeanAngularError(), torch.randn(PICTURES, 3, HEIGHT, WIDTH), references


for_every_metric = pytest.mark.parametrize("case", [class_case, binary_case, normal_case])


def score(metric, logits, references):
    return metric.compute(predictions=logits, references=references)


def of_pictures(metric, logits, references, pictures):
    """A copy of the metric that holds some of the pictures."""
    metric = copy.deepcopy(metric)
    metric.add_batch(predictions=logits[pictures], references=references[pictures])
    return metric


def merged(*metrics):
    first, *others = map(copy.deepcopy, metrics)
    for other in others:
        first.merge(other)
    return first


def state(metric):
    return len(metric), metric.class_scores(), copy.deepcopy(metric).compute() if len(metric) else None


# Merging


@for_every_metric
def test_merging_is_commutative_and_associative_and_the_sum_of_the_parts(case):
    metric, logits, references = case()
    a, b, c = (of_pictures(metric, logits, references, part) for part in ([0, 1, 2], [3], [4, 5]))
    whole = state(of_pictures(metric, logits, references, list(range(PICTURES))))
    for together in (
        merged(a, b, c), merged(c, a, b), merged(b, c, a), merged(merged(a, b), c), merged(a, merged(b, c)),
    ):  # fmt: skip
        assert state(together) == whole


@for_every_metric
def test_merging_an_empty_metric_changes_nothing_on_either_side(case):
    metric, logits, references = case()
    full = of_pictures(metric, logits, references, [1, 2])
    assert state(merged(full, metric)) == state(merged(metric, full)) == state(full)


@for_every_metric
def test_what_is_merged_keeps_its_own_and_shares_nothing(case):
    metric, logits, references = case()
    a, b = (of_pictures(metric, logits, references, part) for part in ([0, 1], [2]))
    before = state(b)
    a.merge(b)
    assert state(b) == before
    together = state(a)
    b.reset()
    assert state(a) == together and len(a) == 3
    a.merge(a)
    assert len(a) == 6 and a.compute() == together[2]


@for_every_metric
def test_one_prediction_that_is_not_finite_spoils_whatever_it_is_merged_into(case):
    metric, logits, references = case()
    logits[2, 0, 1, 1] = math.nan
    sound, spoilt = (of_pictures(metric, logits, references, part) for part in ([0, 1], [2]))
    for together in (merged(sound, spoilt), merged(spoilt, sound)):
        with pytest.warns(RuntimeWarning, match="1 predicted values"):
            assert all(map(math.isnan, together.compute().values()))
    assert not any(map(math.isnan, sound.compute().values()))


@for_every_metric
def test_rows_are_counts_of_the_pictures_and_add_up_like_metrics(case):
    metric, logits, references = case()
    rows = metric.statistics(logits, references)
    assert rows.dtype == torch.int64 and len(rows) == PICTURES and (rows >= 0).all()
    halves = [copy.deepcopy(metric) for _ in range(2)]
    for half, part in zip(halves, (rows[:2], rows[2:]), strict=True):
        half.update(part)
    assert merged(*halves).compute() == score(metric, logits, references)


@for_every_metric
def test_pictures_that_come_twice_change_no_score(case):
    metric, logits, references = case()
    twice = score(metric, logits.repeat(2, 1, 1, 1), references.repeat(2, *[1] * (references.ndim - 1)))
    assert twice == score(metric, logits, references)


# Bounds


def test_a_perfect_prediction_scores_best_and_its_opposite_worst():
    metric, _, references = class_case()
    references[:, 0, :CLASSES] = torch.arange(CLASSES)
    logits = F.one_hot(references.clamp(max=CLASSES), CLASSES + 1).movedim(-1, 1)[:, :CLASSES].float()
    assert score(metric, logits, references) == {"mIoU": 100}
    assert score(metric, logits.roll(1, dims=1), references) == {"mIoU": 0}
    metric, _, references = binary_case()
    assert score(metric, 20 * references - 10, references) == {"mIoU": 100, "maxF": 100}
    assert score(metric, 10 - 20 * references, references) == {"mIoU": 0, "maxF": 0}
    metric, _, references = normal_case()
    assert score(metric, references, references)["mErr"] == pytest.approx(0, abs=1e-3)
    assert score(metric, -references, references)["mErr"] == pytest.approx(180, abs=1e-3)


# Changes that do not matter


@for_every_metric
def test_where_pixels_lie_does_not_matter(case):
    metric, logits, references = case()
    order = torch.randperm(HEIGHT * WIDTH)
    moved, moved_references = (x.flatten(-2)[..., order].unflatten(-1, (WIDTH, HEIGHT)) for x in (logits, references))
    assert torch.equal(metric.statistics(moved, moved_references), metric.statistics(logits, references))


def test_the_numbers_of_classes_do_not_matter():
    metric, logits, references = class_case()
    order = torch.randperm(CLASSES)
    number = torch.cat([order.argsort(), torch.full((256 - CLASSES,), 255)])  # the new one of each old one
    metric.add_batch(predictions=logits, references=references)
    scores = metric.class_scores()
    renumbered = MeanIoU(CLASSES)
    renumbered.add_batch(predictions=logits[:, order], references=number[references])
    assert renumbered.class_scores() == [scores[old] for old in order]
    assert renumbered.compute()["mIoU"] == pytest.approx(metric.compute()["mIoU"])


def test_what_is_ignored_does_not_matter():
    metric, logits, references = class_case()
    changed = torch.where((references == 255)[:, None], torch.randn_like(logits), logits)
    assert score(metric, changed, references) == score(metric, logits, references)
    metric, vectors, references = normal_case()
    changed = torch.where(references.any(dim=1, keepdim=True), vectors, torch.randn_like(vectors))
    assert score(metric, changed, references) == score(metric, vectors, references)


def test_adding_to_all_logits_of_a_pixel_does_not_change_its_class():
    metric, logits, references = class_case()
    logits = logits.mul(1024).round() / 1024  # such that the sums are exact
    shifted = logits + torch.randint(-9, 9, (PICTURES, 1, HEIGHT, WIDTH))
    assert score(metric, shifted, references) == score(metric, logits, references)


def test_the_length_of_a_predicted_normal_does_not_matter():
    metric, vectors, references = normal_case()
    lengths = torch.rand(PICTURES, 1, HEIGHT, WIDTH) + 0.1
    torch.testing.assert_close(
        score(metric, lengths * vectors, references), score(metric, vectors, references), **FLOAT32_ANGLE
    )
    exact = 2.0 ** torch.randint(-20, 20, lengths.shape)
    assert score(metric, exact * vectors, references) == score(metric, vectors, references)


def test_angles_between_normals_do_not_depend_on_who_is_right_nor_on_the_view():
    metric, vectors, references = normal_case()
    units = F.normalize(vectors, dim=1) * references.any(dim=1, keepdim=True)
    expected = score(metric, units, references)
    for first, second in [
        (references, units), (flip_normals(units), flip_normals(references)),
        (rotate_normals(units, 33.0), rotate_normals(references, 33.0)),
    ]:  # fmt: skip
        torch.testing.assert_close(score(metric, first, second), expected, **FLOAT32_ANGLE)
    opposite = score(metric, -units, references)
    torch.testing.assert_close(opposite["mErr"], 180 - expected["mErr"], **FLOAT32_ANGLE)
