# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Errors of scalar maps, scores of edges and shares of angles against their definitions by loops."""

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from random_labels import binary_labels, normal_labels

from peft_polyhistor.tasks.metrics import MeanAngularError, SaliencyScores
from peft_polyhistor.tasks.scalar_metrics import EdgeScores, ScalarErrors


PICTURES, HEIGHT, WIDTH = 5, 11, 9


def scalar_case(log=False):
    references = 9 * torch.rand(PICTURES, 1, HEIGHT, WIDTH) + 0.2
    values = (references + torch.randn(references.shape)).abs() + 0.01
    values[0, 0, :3] = references[0, 0, :3] * 1.2
    references[torch.rand(references.shape) < 0.3] = math.nan
    references[4] = math.nan
    return ScalarErrors(10, log=log), values.log() if log else values, references


def edge_case():
    references = binary_labels(PICTURES, HEIGHT, WIDTH, positive=0.15, unlabelled=0.2)
    return EdgeScores(tolerance=0.15), 2 * torch.randn(PICTURES, 1, HEIGHT, WIDTH), references


@pytest.mark.parametrize("log", [False, True])
def test_errors_of_numbers_match_the_definition(log):
    metric, logits, references = scalar_case(log)
    values = logits.double().exp() if log else logits.double()
    pairs = [(v, t) for v, t in zip(values.flatten().tolist(), references.flatten().tolist(), strict=True) if t == t]
    expected = {
        "RMSE": math.sqrt(sum((v - t) ** 2 for v, t in pairs) / len(pairs)),
        "AbsRel": 100 * sum(abs(v - t) / t for v, t in pairs) / len(pairs),
        "delta_1.25": 100 * sum(max(v / t, t / v) < 1.25 for v, t in pairs) / len(pairs),
    }
    assert 0 < expected["delta_1.25"] < 100
    scores = metric.compute(predictions=logits, references=references)
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)


def test_relative_errors_are_of_labels_above_zero_and_predictions_below_are_never_close():
    references = torch.tensor([0.0, -1.0, 2.0, 4.0]).view(1, 1, 2, 2)
    scores = ScalarErrors(8).compute(
        predictions=torch.tensor([1.0, -1.0, -2.0, 4.0]).view(1, 1, 2, 2), references=references
    )
    assert scores == {"RMSE": pytest.approx(math.sqrt(17 / 4)), "AbsRel": pytest.approx(100), "delta_1.25": 50}


@pytest.mark.parametrize("largest", [1e-6, 1.0, 65535.0, 1e9])
def test_the_unit_of_numbers_does_not_matter(largest):
    _, values, references = scalar_case()
    factor = largest / 10
    expected = ScalarErrors(10).compute(predictions=values, references=references)
    scores = ScalarErrors(largest).compute(predictions=values * factor, references=references * factor)
    assert scores["RMSE"] == pytest.approx(expected["RMSE"] * factor, rel=1e-5)
    assert scores["AbsRel"] == pytest.approx(expected["AbsRel"], rel=1e-4)


def test_errors_beyond_the_limit_are_told():
    references = torch.tensor([2e6, 1.0]).view(1, 1, 1, 2)
    zeros = torch.zeros(1, 1, 1, 2)
    limit = "limits errors to 524288, and some are larger, .* Give the task the range of its labels as `valid`"
    with pytest.warns(UserWarning, match=limit):
        assert ScalarErrors().compute(predictions=zeros, references=references)["RMSE"] < 2e6 / math.sqrt(2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = ScalarErrors(2e6).compute(predictions=zeros, references=references)
        assert scores["RMSE"] == pytest.approx(2e6 / math.sqrt(2))
        unlabeled = torch.where(references > 1, math.nan, references)
        ScalarErrors().compute(predictions=references, references=unlabeled)
    with pytest.warns(RuntimeWarning, match="NaN or infinite") as told:  # which says all
        ScalarErrors().compute(predictions=zeros + math.inf, references=references)
    assert len(told) == 1


def test_the_f_measure_of_edges_matches_the_definition():
    metric, logits, references = edge_case()
    radius = 0.15 * math.hypot(HEIGHT, WIDTH)
    places = [(y, x) for y in range(HEIGHT) for x in range(WIDTH)]
    best = 0
    for step in range(1, 100):
        right = predicted = found = edges = 0
        for logit, label in zip(logits[:, 0].sigmoid().tolist(), references[:, 0].tolist(), strict=True):
            labeled = [(y, x) for y, x in places if label[y][x] != -1]
            positive = {(y, x) for y, x in labeled if logit[y][x] > step / 100}
            true = {(y, x) for y, x in labeled if label[y][x] == 1}
            right += sum(any(math.dist(p, t) <= radius for t in true) for p in positive)
            found += sum(any(math.dist(p, t) <= radius for p in positive) for t in true)
            predicted, edges = predicted + len(positive), edges + len(true)
        precision, recall = right / max(predicted, 1), found / max(edges, 1)
        best = max(best, 2 * precision * recall / max(precision + recall, 1e-9))
    assert 0 < best < 1
    assert metric.compute(predictions=logits, references=references) == {"odsF": pytest.approx(100 * best)}


def test_shares_and_median_of_angles_match_the_definition():
    references = normal_labels(PICTURES, HEIGHT, WIDTH)
    logits = references + 0.4 * torch.randn(references.shape)
    angles = []
    for vector, label in zip(
        logits.movedim(1, -1).flatten(0, 2), references.movedim(1, -1).flatten(0, 2), strict=True
    ):
        if label.any():
            cosine = float(F.cosine_similarity(vector.double(), label.double(), dim=0))
            angles.append(math.degrees(math.acos(max(-1, min(1, cosine)))))
    scores = MeanAngularError((11.25, 30)).compute(predictions=logits, references=references)
    assert list(scores) == ["mErr", "median", "within_11.25", "within_30"]
    assert scores["mErr"] == pytest.approx(sum(angles) / len(angles), abs=1e-4)
    assert scores["median"] == pytest.approx(sorted(angles)[len(angles) // 2], abs=0.25)
    for limit in (11.25, 30):
        assert scores[f"within_{limit:g}"] == 100 * sum(angle < limit for angle in angles) / len(angles)


@pytest.mark.parametrize("case", [scalar_case, edge_case])
def test_scores_do_not_depend_on_batches(case):
    metric, logits, references = case()
    expected = metric.compute(predictions=logits, references=references)
    for chosen in torch.randperm(PICTURES).split(2):
        metric.add_batch(predictions=logits[chosen], references=references[chosen])
    assert metric.compute() == expected


def test_pictures_without_a_label_change_no_score_of_a_binary_task():
    logits, references = torch.randn(3, 1, HEIGHT, WIDTH), (torch.rand(3, 1, HEIGHT, WIDTH) < 0.4).float()
    references[2] = -1
    expected = SaliencyScores().compute(predictions=logits[:2], references=references[:2])
    assert SaliencyScores().compute(predictions=logits, references=references) == expected
    assert all(
        math.isnan(v) for v in SaliencyScores().compute(predictions=logits, references=references * 0 - 1).values()
    )
    references[0, 0, 3:] = -1
    assert SaliencyScores().compute(predictions=logits[:1], references=references[:1]) == SaliencyScores().compute(
        predictions=logits[:1, :, :3], references=references[:1, :, :3]
    )


def test_an_image_without_edges_has_no_score_of_its_own():
    metric, labels = EdgeScores(), torch.zeros(2, 1, 16, 16)
    labels[1, 0, :, 5] = 1
    rows = metric.statistics(10 * labels - 5, labels)
    first, second = metric.image_scores(rows)
    assert math.isnan(first["odsF"]) and second == {"odsF": pytest.approx(100)}
