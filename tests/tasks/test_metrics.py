# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Metrics against their definitions by loops, exactness of their sums, and the `evaluate` interface."""

import copy
import math
import pickle

import evaluate
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from random_labels import binary_labels, class_labels, normal_labels

from peft_polyhistor.tasks.evaluate_metric import EvaluateMetric
from peft_polyhistor.tasks.metrics import SALIENCY_THRESHOLDS, MeanAngularError, MeanIoU, SaliencyScores, _angles
from peft_polyhistor.tasks.running_metric import RunningMetric
from peft_polyhistor.tasks.scalar_metrics import EdgeScores, ScalarErrors


PICTURES, CLASSES, HEIGHT, WIDTH = 7, 4, 5, 3
SMALL = (3, 2)  # size of logits that must be resized
FIXED_POINT = {"rtol": 1e-8, "atol": 1e-7}  # the sums are rounded to 2**-32 per picture
FLOAT32_ANGLE = {"rtol": 1e-6, "atol": 1e-5}  # degrees


def class_case(size=SMALL):
    references = class_labels(PICTURES, HEIGHT, WIDTH, CLASSES - 1, unlabelled=0.3)  # never the last class
    return MeanIoU(CLASSES), torch.randn(PICTURES, CLASSES, *size), references


def binary_case(size=SMALL):
    references = binary_labels(PICTURES, HEIGHT, WIDTH, positive=0.4)
    references[2] = 0
    return SaliencyScores(), 2 * torch.randn(PICTURES, 1, *size), references


def normal_case(size=SMALL):
    return MeanAngularError(), torch.randn(PICTURES, 3, *size), normal_labels(PICTURES, HEIGHT, WIDTH)


CASES = [class_case, binary_case, normal_case]


def resize(logits):
    return F.interpolate(logits, size=(HEIGHT, WIDTH), mode="bilinear", align_corners=False)


def normal_map(*vector):
    return torch.tensor(vector).view(1, 3, 1, 1).repeat(1, 1, HEIGHT, WIDTH)


def test_mean_iou_matches_the_definition():
    metric, logits, references = class_case()
    predicted, labeled = resize(logits).argmax(dim=1).flatten().tolist(), references.flatten().tolist()
    pairs = [(prediction, label) for prediction, label in zip(predicted, labeled, strict=True) if label != 255]
    ious = []
    for c in range(CLASSES):
        union = sum(c in pair for pair in pairs)
        ious.append(sum(pair == (c, c) for pair in pairs) / union if union else 0)
    expected = {"mIoU": 100 * sum(ious) / CLASSES}
    assert metric.compute(predictions=logits, references=references) == pytest.approx(expected)


def test_saliency_scores_match_the_definition():
    metric, logits, references = binary_case()
    probabilities = resize(logits).sigmoid()
    ious, f1s = [], []
    for threshold in SALIENCY_THRESHOLDS:
        rows = []
        for probability, label in zip(probabilities, references.bool(), strict=True):
            predicted = (probability > threshold).flatten().tolist()
            pairs = list(zip(predicted, label.flatten().tolist(), strict=True))
            both, union = sum(p and g for p, g in pairs), sum(p or g for p, g in pairs)
            positives, foreground = sum(p for p, _ in pairs), sum(g for _, g in pairs)
            rows.append((both / union if union else 1, both / max(positives, 1), both / max(foreground, 1)))
        iou, precision, recall = (sum(column) / PICTURES for column in zip(*rows, strict=True))
        ious.append(iou)
        f1s.append(2 * precision * recall / (precision + recall))
    assert len(set(ious)) > 10, "the thresholds must differ for the maximum to mean anything"
    scores = metric.compute(predictions=logits, references=references)
    torch.testing.assert_close(scores, {"mIoU": 100 * max(ious), "maxF": 100 * max(f1s)}, **FIXED_POINT)


def test_mean_angular_error_matches_the_definition():
    metric, logits, references = normal_case()
    vectors = resize(logits).double()
    angles = []
    for i in range(PICTURES):
        for y in range(HEIGHT):
            for x in range(WIDTH):
                a, b = vectors[i, :, y, x].tolist(), references[i, :, y, x].tolist()
                if any(b):
                    cosine = sum(p * q for p, q in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))
                    angles.append(math.degrees(math.acos(max(-1, min(1, cosine)))))
    expected = {"mErr": sum(angles) / len(angles)}
    torch.testing.assert_close(metric.compute(predictions=logits, references=references), expected, **FLOAT32_ANGLE)


def test_class_scores_match_the_definition():
    metric, logits, references = class_case()
    logits[:, -1] = -1e3  # nor is the last class predicted
    assert all(map(math.isnan, metric.class_scores()))
    metric.add_batch(predictions=logits, references=references)
    predicted, valid = resize(logits).argmax(dim=1), references != 255
    expected = []
    for c in range(CLASSES - 1):
        both, either = (predicted == c) & (references == c), (predicted == c) | (references == c)
        expected.append(100 * (both & valid).sum().item() / (either & valid).sum().item())
    *scores, absent = metric.class_scores()
    assert scores == pytest.approx(expected) and math.isnan(absent)
    assert metric.compute() == {"mIoU": pytest.approx(sum(expected) / CLASSES)}


def test_class_scores_of_a_diverged_model_and_of_metrics_without_classes():
    metric, logits, references = class_case((HEIGHT, WIDTH))
    logits[0, 0, 0, 0] = math.nan
    metric.add_batch(predictions=logits, references=references)
    assert len(metric.class_scores()) == CLASSES and all(map(math.isnan, metric.class_scores()))
    assert SaliencyScores().class_scores() == MeanAngularError().class_scores() == []


@pytest.mark.parametrize("case", [binary_case, normal_case])
def test_a_image_scores_what_it_would_alone(case):
    metric, logits, references = case()
    references[0] = 1 if case is binary_case else normal_map(0.0, 0.0, 1.0)[0]
    rows = metric.statistics(logits, references)
    scores = metric.image_scores(rows)
    assert len(metric) == 0 and len(scores) == PICTURES
    for i in (i for i in range(PICTURES) if references[i].any()):
        assert scores[i] == metric.compute(predictions=logits[[i]], references=references[[i]])


def test_a_image_scores_the_mean_of_the_classes_that_are_in_it():
    metric, logits, references = class_case()
    scores = metric.image_scores(metric.statistics(logits, references))
    for i in range(PICTURES):
        metric.add(prediction=logits[i], reference=references[i])
        present = [score for score in metric.class_scores() if not math.isnan(score)]
        assert scores[i] == {"mIoU": pytest.approx(sum(present) / len(present))}
        metric.reset()


@pytest.mark.parametrize(("case", "unlabeled"), [(class_case, 255), (binary_case, 0), (normal_case, 0)])
def test_a_picture_without_a_label_or_with_predictions_that_are_not_finite_has_no_score(case, unlabeled):
    metric, logits, references = case((HEIGHT, WIDTH))
    references[[0, 1]], references[[2, 3]] = references[[4, 5]], references[[5, 4]]
    references[1] = unlabeled
    logits[3, 0, 1, 2] = math.inf
    scores = metric.image_scores(metric.statistics(logits, references))
    for i, values in enumerate(scores):
        assert all(math.isnan(value) == (i in (1, 3)) for value in values.values())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("size", [SMALL, (HEIGHT, WIDTH), (9, 11)])
def test_scores_do_not_depend_on_order_batches_or_processes(case, size):
    metric, logits, references = case(size)
    expected = metric.compute(predictions=logits, references=references)
    order = torch.randperm(PICTURES)
    for batch in (1, 2, 3):
        for chosen in order.split(batch):
            metric.add_batch(predictions=logits[chosen], references=references[chosen])
        assert metric.compute() == expected
    for processes in (2, 3):
        shards = [copy.deepcopy(metric) for _ in range(processes)]
        for position, picture in enumerate(order):
            shards[position % processes].add(prediction=logits[picture], reference=references[picture])
        for shard in shards:
            metric.merge(shard)
        assert len(metric) == PICTURES
        assert metric.compute() == expected


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("processes", [2, 3])
def test_padded_duplicates_can_be_dropped_from_the_rows(case, processes):
    metric, logits, references = case()
    expected = metric.compute(predictions=logits, references=references)
    padded = list(range(PICTURES)) + list(range(-PICTURES % processes))  # as accelerate pads: pictures from the start
    for step in range(0, len(padded), processes):
        rows = [metric.statistics(logits[[i]], references[[i]]) for i in padded[step : step + processes]]
        metric.update(torch.cat(rows)[: PICTURES - step])
    assert len(metric) == PICTURES
    assert metric.compute() == expected


@pytest.mark.parametrize("case", CASES)
def test_rows_go_through_accelerate(case):
    metric, logits, references = case()
    expected = metric.compute(predictions=logits, references=references)
    accelerator = Accelerator(cpu=True)
    dataset = torch.utils.data.TensorDataset(logits, references)
    for prediction, reference in accelerator.prepare(torch.utils.data.DataLoader(dataset, batch_size=3)):
        metric.update(accelerator.gather_for_metrics(metric.statistics(prediction, reference)))
    assert metric.compute() == expected


@pytest.mark.parametrize("case", CASES)
def test_bfloat16_logits_are_computed_in_float32(case):
    metric, logits, references = case()
    logits = logits.bfloat16()
    expected = metric.compute(predictions=logits.float(), references=references)
    assert metric.compute(predictions=logits, references=references) == expected


@pytest.mark.parametrize("case", CASES)
def test_totals_have_no_bound(case):
    metric, logits, references = case()
    expected = metric.compute(predictions=logits, references=references)
    metric.add_batch(predictions=logits, references=references)
    for _ in range(70):  # 2**70 times the pictures
        metric.merge(copy.deepcopy(metric))
    assert metric.compute() == expected


@pytest.mark.parametrize("case", CASES)
def test_the_default_type_of_numbers_does_not_matter(case):
    metric, logits, references = case((HEIGHT, WIDTH))
    if case is binary_case:  # on a threshold, of which float64 has another
        logits[0] = torch.tensor([math.log(p / (1 - p)) for p in SALIENCY_THRESHOLDS]).view(1, HEIGHT, WIDTH)
    expected = metric.compute(predictions=logits, references=references)
    torch.set_default_dtype(torch.float64)
    try:
        assert metric.compute(predictions=logits, references=references) == expected
    finally:
        torch.set_default_dtype(torch.float32)


def test_one_class_is_enough():
    references = torch.zeros(1, HEIGHT, WIDTH, dtype=torch.long)
    assert MeanIoU(1).compute(predictions=torch.randn(1, 1, *SMALL), references=references) == {"mIoU": 100}


def test_a_metric_without_scores_of_its_own_for_an_image_scores_it_as_a_set_of_one():
    class Brightness(RunningMetric):
        def _check(self, shape, references):
            pass

        def _counts(self, logits, references):
            return logits.flatten(1).sum(dim=1, keepdim=True).long()

        def _scores(self, totals, pictures):
            return {"brightness": totals[0] / pictures}

    metric, pictures = Brightness(1), torch.tensor([3.0, 5.0]).view(2, 1, 1, 1)
    assert metric.image_scores(metric.statistics(pictures, pictures)) == [{"brightness": 3}, {"brightness": 5}]
    assert metric.compute(predictions=pictures, references=pictures) == {"brightness": 4}
    assert metric.class_scores() == []


def test_an_absent_class_counts_zero():
    references = torch.zeros(1, HEIGHT, WIDTH, dtype=torch.long)
    logits = F.one_hot(references, 3).movedim(-1, 1).float()
    assert MeanIoU(3).compute(predictions=logits, references=references) == {"mIoU": pytest.approx(100 / 3)}


def test_only_ignored_pixels_give_nan():
    metric, references = MeanIoU(3), torch.full((2, HEIGHT, WIDTH), 255)
    assert math.isnan(metric.compute(predictions=torch.randn(2, 3, *SMALL), references=references)["mIoU"])
    references[1, 2, 1] = 2  # one pixel is enough, and a wrong prediction of it is 0
    logits = F.one_hot(torch.zeros_like(references), 3).movedim(-1, 1).float()
    assert metric.compute(predictions=logits, references=references) == {"mIoU": 0}


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int16, torch.int64])
def test_class_ids_of_any_integer_type_count_alike(dtype):
    metric, references = MeanIoU(3), torch.tensor([[[0, 1], [2, 255]]])
    logits = torch.randn(1, 3, 2, 2)
    expected = metric.compute(predictions=logits, references=references)
    assert metric.compute(predictions=logits, references=references.to(dtype)) == expected


def test_another_ignore_index():
    metric, logits, references = class_case()
    expected = metric.compute(predictions=logits, references=references)
    references[references == 255] = -1
    assert MeanIoU(CLASSES, ignore_index=-1).compute(predictions=logits, references=references) == expected


def test_saliency_of_one_picture_uses_all_of_it():
    references = torch.zeros(1, 1, HEIGHT, WIDTH)
    references[0, 0, -1] = 1
    scores = SaliencyScores().compute(predictions=20 * references - 10, references=references)
    assert scores == {"mIoU": 100, "maxF": 100}
    scores = SaliencyScores().compute(predictions=10 - 20 * references, references=references)
    assert scores == {"mIoU": 0, "maxF": 0}


@pytest.mark.parametrize("position", range(15))
def test_saliency_thresholds_are_strict(position):
    threshold = (0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9)[position]
    logit = torch.tensor(math.log(threshold / (1 - threshold)))
    references = torch.ones(1, 1, HEIGHT, WIDTH)
    for value, passed in [(logit, position), (torch.nextafter(logit, torch.tensor(math.inf)), position + 1)]:
        row = SaliencyScores().statistics(value.expand(1, 1, HEIGHT, WIDTH), references)[0]
        assert (row[:15] > 0).tolist() == [index < passed for index in range(15)]


def test_empty_against_empty_is_a_perfect_iou():
    references = torch.zeros(1, 1, HEIGHT, WIDTH)
    scores = SaliencyScores().compute(predictions=references - 10, references=references)
    assert scores == {"mIoU": 100, "maxF": 0}
    scores = SaliencyScores().compute(predictions=references + 10, references=references)
    assert scores == {"mIoU": 0, "maxF": 0}


@pytest.mark.parametrize(("vector", "angle"), [
    ((0.0, 0.6, -0.8), 0),
    ((0.0, 6e-31, -8e-31), 0),
    ((0.0, 6e30, -8e30), 0),
    ((0.0, -0.6, 0.8), 180),
    ((5.0, 0.0, 0.0), 90),
    ((0.0, 0.0, 0.0), 90),
    ((1e-4, 0.6, -0.8), math.degrees(math.atan(1e-4))),
    ((1e-4, -0.6, 0.8), 180 - math.degrees(math.atan(1e-4))),
])  # fmt: skip
def test_angles_at_the_edges(vector, angle):
    scores = MeanAngularError().compute(predictions=normal_map(*vector), references=normal_map(0.0, 0.6, -0.8))
    torch.testing.assert_close(scores, {"mErr": float(angle)}, **FLOAT32_ANGLE)


def test_angles_are_accurate_everywhere():
    angles = torch.linspace(0, math.pi, 601, dtype=torch.float64)
    vectors = torch.stack([angles.sin(), angles.cos(), torch.zeros(601)])[None, :, None].float()
    units = torch.tensor([0.0, 1.0, 0.0]).view(1, 3, 1, 1).expand(1, 3, 1, 601)
    torch.testing.assert_close(_angles(vectors, units)[0, 0], angles, rtol=5e-7, atol=1e-10)


@pytest.mark.parametrize("threads", [1, 2])
def test_angles_do_not_depend_on_the_place_of_a_pixel(threads):
    """Bit for bit: PyTorch's vector code for whole registers and its scalar code for the rest round differently."""
    vectors = torch.randn(3, 40_001)
    units = F.normalize(torch.randn(3, 40_001), dim=0)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        angles = _angles(vectors[None], units[None])[0]
        for start in range(1, 9):
            assert torch.equal(_angles(vectors[None, :, start:], units[None, :, start:])[0], angles[start:])
        expected = [_angles(vectors[None, :, [i]], units[None, :, [i]]).item() for i in range(300)]
        assert angles[:300].tolist() == expected
    finally:
        torch.set_num_threads(before)


def test_normals_without_a_valid_pixel_give_nan():
    scores = MeanAngularError().compute(
        predictions=torch.ones(2, 3, *SMALL), references=normal_map(0.0, 0.0, 0.0).repeat(2, 1, 1, 1)
    )
    assert math.isnan(scores["mErr"])


def test_normals_that_are_not_finite_give_nan_for_the_median_and_the_shares_too():
    _, logits, references = normal_case()
    logits[0, 0, 0, 0] = math.nan
    with pytest.warns(RuntimeWarning, match="predicted values are NaN or infinite"):
        scores = MeanAngularError([11.25]).compute(predictions=logits, references=references)
    assert scores.keys() == {"mErr", "median", "within_11.25"} and all(map(math.isnan, scores.values()))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_predictions_that_are_not_finite_give_nan_and_a_warning(case, value):
    metric, logits, references = case((HEIGHT, WIDTH))
    logits[3, 0, 1, 2] = value
    with pytest.warns(RuntimeWarning, match="1 predicted values are NaN or infinite"):
        scores = metric.compute(predictions=logits, references=references)
    assert all(math.isnan(score) for score in scores.values())
    assert len(metric) == 0


@pytest.mark.parametrize("case", CASES)
def test_compute_and_reset_empty_the_state(case):
    metric, logits, references = case()
    metric.add_batch(predictions=logits, references=references)
    assert len(metric) == PICTURES
    metric.reset()
    with pytest.raises(ValueError, match=r"holds no image. Call `add_batch`"):
        metric.compute()


@pytest.mark.parametrize("case", CASES)
def test_copies_and_pickles_keep_the_state_and_are_independent(case):
    metric, logits, references = case()
    metric.add_batch(predictions=logits, references=references)
    for other in (copy.deepcopy(metric), pickle.loads(pickle.dumps(metric))):
        other.add_batch(predictions=logits, references=references)
        assert (len(metric), len(other)) == (PICTURES, 2 * PICTURES)
        assert other.compute() == copy.deepcopy(metric).compute()


def test_arrays_are_taken_like_tensors():
    metric, logits, references = class_case()
    expected = metric.compute(predictions=logits, references=references)
    assert metric.compute(predictions=logits.numpy(), references=references.numpy()) == expected


def test_combines_with_other_metrics_of_evaluate():
    _, logits, references = class_case()
    expected = MeanIoU(CLASSES).compute(predictions=logits, references=references)["mIoU"]
    combined = evaluate.combine({name: EvaluateMetric(MeanIoU(CLASSES)) for name in ("all", "again")})
    scores = {"all_mIoU": expected, "again_mIoU": expected}
    assert combined.compute(predictions=logits, references=references) == scores
    combined.add_batch(predictions=logits[:-1], references=references[:-1])
    combined.add(prediction=logits[-1], reference=references[-1])
    assert combined.compute() == scores


def test_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", tmp_path / "metrics")
    monkeypatch.chdir(tmp_path)
    for case in CASES:
        metric, logits, references = case()
        expected = metric.compute(predictions=logits, references=references)
        assert EvaluateMetric(metric).compute(predictions=logits, references=references) == expected
    assert not list(tmp_path.iterdir())


def test_the_help_of_evaluate_works():
    metric = EvaluateMetric(MeanIoU(3))
    assert isinstance(metric, evaluate.Metric)
    assert metric.description.startswith("Mean intersection over union")
    assert "stored examples: 0" in repr(metric)


def test_rows_are_checked():
    with pytest.raises(ValueError, match=r"MeanIoU.update got torch.float32 .*\(images, 13\)"):
        MeanIoU(4).update(torch.zeros(2, 9))
    with pytest.raises(ValueError, match=r"MeanIoU.image_scores got .* of shape \(2, 3\)"):
        MeanIoU(4).image_scores(torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"of shape \(2, 15\)"):
        MeanIoU(4).update(torch.zeros(2, 15, dtype=torch.int64))


@pytest.mark.parametrize("case", CASES)
def test_an_empty_batch_adds_nothing(case):
    metric, logits, references = case()
    metric.add_batch(predictions=logits[:0], references=references[:0])
    assert len(metric) == 0


def test_metrics_of_other_kinds_are_not_merged():
    for other in (MeanIoU(7), SaliencyScores()):
        with pytest.raises(ValueError, match=f"merge {type(other).__name__} into MeanIoU"):
            MeanIoU(4).merge(other)


@pytest.mark.parametrize(("first", "second"), [
    (ScalarErrors(1.0), ScalarErrors(256.0)),
    (ScalarErrors(log=True), ScalarErrors()),
    (MeanAngularError((11.25, 30)), MeanAngularError((11.25, 22.5))),
    (EdgeScores(0.0075), EdgeScores(0.011)),
    (MeanIoU(4), MeanIoU(4, ignore_index=0)),
])  # fmt: skip
def test_metrics_of_other_settings_are_not_merged(first, second):
    with pytest.raises(ValueError, match=r": the settings are \{.* and \{.*Merge metrics with equal settings"):
        first.merge(second)


def test_arguments_that_are_missing_or_unknown():
    metric, logits, references = class_case()
    with pytest.raises(ValueError, match="needs `predictions` and `references`, or neither"):
        metric.compute(predictions=logits)
    with pytest.raises(TypeError, match="missing 1 required keyword-only argument: 'reference'"):
        metric.add(prediction=logits[0])
    with pytest.raises(TypeError, match="unexpected keyword argument 'weight'"):
        metric.add(prediction=logits[0], reference=references[0], weight=1)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        MeanIoU(0)
    with pytest.raises(NotImplementedError, match="RunningMetric must define `_check`"):
        RunningMetric(2).statistics(logits, references)


@pytest.mark.parametrize(("metric", "shape", "references", "message"), [
    (MeanIoU(4), (2, 5, 3), torch.zeros(2, 5, 3).long(), "must be logits of shape .*before any argmax"),
    (MeanIoU(4), (2, 3, 5, 3), torch.zeros(2, 5, 3).long(), r"3 channels.*4 classes.*`MeanIoU\(3\)`"),
    (MeanIoU(4), (2, 4, 5, 3), torch.zeros(2, 5, 3), "torch.float32; they must be integer"),
    (MeanIoU(4), (2, 4, 5, 3), torch.full((2, 5, 3), 9), r"MeanIoU hold the values \[9\]"),
    (SaliencyScores(), (2, 1, 5, 3), torch.zeros(3, 1, 5, 3), r"shape \(2, 1, height, width\)"),
    (SaliencyScores(), (2, 2, 5, 3), torch.zeros(2, 1, 5, 3), r"must have 1 channel"),
    (SaliencyScores(), (2, 1, 5, 3), torch.full((2, 1, 5, 3), 0.5), r"SaliencyScores hold the values \[0.5\]"),
    (MeanAngularError(), (2, 3, 5, 3), torch.ones(2, 5, 3), r"shape \(2, 3, height, width\)"),
    (MeanAngularError(), (2, 3, 5, 3), torch.ones(2, 3, 5, 3), r"vectors of length \[1.73"),
])  # fmt: skip
def test_predictions_and_labels_are_checked(metric, shape, references, message):
    with pytest.raises(ValueError, match=message):
        metric.add_batch(predictions=torch.zeros(shape), references=references)
