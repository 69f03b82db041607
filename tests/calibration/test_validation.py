"""Cross-validation against scikit-learn's metrics, and its intervals against resampling pictures one by one."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import f1_score, precision_score, recall_score

from sigrl_deploy.arrays import Targets
from sigrl_deploy.calibration.fitting import fit_thresholds
from sigrl_deploy.calibration.folds import folds
from sigrl_deploy.calibration.goals import parse_goal
from sigrl_deploy.calibration.quality import label_quality, quality
from sigrl_deploy.calibration.validation import FEWEST_POSITIVES, best_k, cross_validate, top_k
from sigrl_deploy.errors import DatasetError, UsageError
from tests.calibration.made import made, truth
from tests.support.refusals import assert_refused

TOLERANCE = 1e-12  # the same few float64 operations in another order
METRICS = {"f1": f1_score, "precision": precision_score, "recall": recall_score}
F1 = parse_goal("f1")


def _decided(pictures: int, labels: int, seed: int = 0) -> tuple[NDArray[np.bool_], Targets]:
    """Decisions that are right more often than not. The last label has no positive."""
    scores, targets = made(pictures, labels, seed)
    targets[:, -1] = np.minimum(targets[:, -1], 0)
    return scores > 0.1, targets


# 1,030 pictures are more than one block.
@pytest.mark.parametrize(("pictures", "labels"), [(2, 3), (39, 7), (1030, 5)])
def test_figures_agree_with_scikit_learn(pictures: int, labels: int) -> None:
    decided, targets = _decided(pictures, labels, seed=pictures)
    targets[0, 0] = 1
    known, positive = truth(targets)
    found, by_label = quality(decided, targets), label_quality(decided, targets)
    assert by_label.positives.tolist() == positive.sum(axis=0).tolist()
    present = positive.any(axis=0)
    for name, metric in METRICS.items():
        micro = metric(positive[known], decided[known], zero_division=0)
        assert getattr(found.micro, name).value == pytest.approx(micro, abs=TOLERANCE)
        each = [metric(positive[known[:, c], c], decided[known[:, c], c], zero_division=0) for c in range(labels)]
        assert getattr(by_label, name) == pytest.approx(each, abs=TOLERANCE)
        assert getattr(found.macro, name).value == pytest.approx(np.array(each)[present].mean(), abs=TOLERANCE)


@pytest.mark.parametrize("pictures", [61, 1030])
def test_intervals_agree_with_drawing_pictures_one_by_one(pictures: int) -> None:
    decided, targets = _decided(pictures, 5)
    rng = np.random.default_rng(7)
    micro, macro = [], []
    for _ in range(1000):
        drawn = rng.integers(pictures, size=pictures)
        hits = (decided[drawn] & (targets[drawn] == 1)).sum(axis=0)
        tags, positives = (decided[drawn] & (targets[drawn] != 0)).sum(axis=0), (targets[drawn] == 1).sum(axis=0)
        micro.append(2 * hits.sum() / (tags.sum() + positives.sum()))
        macro.append((2 * hits / np.maximum(1, tags + positives))[positives > 0].mean())
    found = quality(decided, targets)
    for interval, drawn_values in ((found.micro.f1, micro), (found.macro.f1, macro)):
        low, high = np.percentile(drawn_values, [2.5, 97.5])
        # The standard error of such a quantile of 1,000 normal values is 0.08 of their spread; two of them differ, by 4 such.
        assert [interval.low, interval.high] == pytest.approx([low, high], abs=0.08 * 2**0.5 * 4 * np.std(drawn_values))
        assert interval.low < interval.value < interval.high


def test_every_picture_is_decided_by_thresholds_of_the_others() -> None:
    scores, targets = made(57, 5)
    found = cross_validate(scores, targets, F1)
    decided = np.zeros(scores.shape, bool)
    times = np.zeros(57, int)
    for others, held_out in folds(targets):
        assert not set(others) & set(held_out)
        decided[held_out] = scores[held_out] >= fit_thresholds(scores[others], targets[others], F1).thresholds
        times[held_out] += 1
    assert times.tolist() == [1] * 57
    assert found.fitted == quality(decided, targets)
    assert found.labels.f1.tolist() == label_quality(decided, targets).f1.tolist()


def test_labels_that_differ_gain_by_thresholds_of_their_own() -> None:
    scores, targets = made(611, 6)
    scores += np.linspace(-0.5, 0.5, 6, dtype=np.float32)
    found = cross_validate(scores, targets, F1)
    assert found.fitted.macro.f1.low > found.one_threshold.macro.f1.high
    assert found.fitted.macro.f1.low > found.top_k.macro.f1.high


@pytest.mark.parametrize("labels", [3, 61])
def test_the_best_k_is_the_best_of_all_up_to_50(labels: int) -> None:
    scores, targets = made(43, labels)
    known, positive = truth(targets)
    worth = [f1_score(positive[known], top_k(scores, k)[known]) for k in range(1, min(labels, 50) + 1)]
    assert best_k(scores, targets) == int(np.argmax(worth)) + 1
    assert (top_k(scores, 2).sum(axis=1) == 2).all()


def test_labels_with_too_few_positives_are_listed() -> None:
    scores, targets = made(90, 4)
    for c, positives in ((1, FEWEST_POSITIVES - 1), (2, FEWEST_POSITIVES), (3, 0)):
        targets[:, c] = -1
        targets[:positives, c] = 1
    assert cross_validate(scores, targets, F1).too_few == (1, 3)


def test_what_cannot_be_held_out_is_refused() -> None:
    scores, targets = made(30, 3)
    single = np.full_like(targets, -1)
    single[4, 1] = 1
    assert_refused(partial(cross_validate, scores, single, F1), DatasetError, "only 1 of 30 pictures show any of the labels")
    assert_refused(partial(cross_validate, scores[:1], targets[:1], F1), DatasetError, "1 picture")
    assert_refused(partial(cross_validate, scores[:0], targets[:0], F1), UsageError, "[0, 3]")
