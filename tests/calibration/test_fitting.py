"""Thresholds against trying out every one, and against the rule written as plain loops."""

from __future__ import annotations

import statistics
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from sigrl_deploy.calibration import pooling
from sigrl_deploy.calibration.fitting import fit_quantiles, fit_thresholds
from sigrl_deploy.calibration.goals import best_threshold, parse_goal, passing
from sigrl_deploy.errors import DatasetError, UsageError
from tests.calibration.made import made, truth
from tests.support.refusals import assert_refused, refused

# The same few float64 operations in another order.
TOLERANCE = 1e-12
F1 = parse_goal("f1")


def _tried(scores: NDArray[np.float64], positive: NDArray[np.bool_], metric: str) -> float:
    """The best threshold, by counting at each of them. They are the lowest score and the middles between two neighbours."""
    values = sorted(set(scores.tolist()))
    name, _, level = metric.partition("@")
    worth: dict[float, float] = {}
    for threshold in [values[0], *((a + b) / 2 for a, b in pairwise(values))]:
        passes = scores >= threshold
        hits, tags, positives = int((passes & positive).sum()), int(passes.sum()), int(positive.sum())
        worth[threshold] = {"f1": 2 * hits / (tags + positives), "precision": hits / tags, "recall": hits / positives}[name]
    best = max(worth.values())
    if name == "f1":
        return max(threshold for threshold, found in worth.items() if found == best)
    enough = [threshold for threshold, found in worth.items() if found >= min(float(level), best)]
    return max(enough) if name == "recall" else min(enough)


@pytest.mark.parametrize("metric", ["f1", "precision@0.9", "precision@0.5", "precision@.3", "recall@0.8", "recall@1"])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("count", [1, 2, 37, 113])
def test_the_best_threshold_is_the_best_of_all_that_there_are(metric: str, ties: bool, count: int) -> None:
    for seed in range(5):
        scores, targets = made(count, 1, seed, ties)
        targets[seed % count] = 1
        values, positive = scores[:, 0].astype(np.float64), targets[:, 0] == 1
        assert best_threshold(values, positive, parse_goal(metric)) == pytest.approx(
            _tried(values, positive, metric), abs=TOLERANCE
        )


def test_a_precision_that_no_threshold_reaches_gives_the_best_one() -> None:
    scores, positive = np.array([0.1, 0.2, 0.3, 0.4, 0.5]), np.array([False, True, True, False, False])
    # Precisions from the lowest threshold on: 2/5, 2/4, 1/3, 0, 0.
    assert best_threshold(scores, positive, parse_goal("precision@0.9")) == pytest.approx(0.15, abs=TOLERANCE)


@pytest.mark.parametrize("metric", ["f1", "precision@0.6", "recall@0.8"])
@pytest.mark.parametrize(("pictures", "labels"), [(1, 3), (41, 7), (203, 3)])
def test_thresholds_are_drawn_to_the_global_one_by_positives(metric: str, pictures: int, labels: int) -> None:
    scores, targets = made(pictures, labels, seed=pictures)
    targets[0, 0] = 1
    targets[:, -1] = np.minimum(targets[:, -1], 0)
    known, positive = truth(targets)
    wide = scores.astype(np.float64)
    shared = _tried(wide[known], positive[known], metric)
    tags = (wide[known] >= shared).sum() / positive.sum()
    found = fit_thresholds(scores, targets, parse_goal(metric))
    assert found.global_threshold == pytest.approx(shared, abs=TOLERANCE)
    assert found.positives.tolist() == positive.sum(axis=0).tolist()
    for c in range(labels):
        n = int(positive[:, c].sum())
        if n == 0:
            assert found.thresholds[c] == found.global_threshold
            continue
        values = wide[known[:, c], c]
        own = _tried(values, positive[known[:, c], c], metric)
        if metric == "f1":
            falling = sorted(values, reverse=True)
            last = min(len(falling), max(1, round(tags * n))) - 1
            own = (own + (falling[last] + falling[min(last + 1, len(falling) - 1)]) / 2) / 2
        weight = n / (n + (5 if metric == "f1" else 10))
        assert found.thresholds[c] == pytest.approx(weight * own + (1 - weight) * shared, abs=TOLERANCE)
    assert found.thresholds[-1] == found.global_threshold


def test_unknown_targets_change_nothing() -> None:
    scores, targets = made(53, 5)
    other = np.where(targets == 0, np.float32(9), scores)
    found, same = fit_thresholds(scores, targets, F1), fit_thresholds(other, targets, F1)
    assert found.thresholds.tolist() == same.thresholds.tolist()


def test_of_very_many_scores_the_global_threshold_is_that_of_every_so_many_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, targets = made(101, 5)
    third = fit_thresholds(scores[::3], targets[::3], F1)
    monkeypatch.setattr(pooling, "MOST_POOLED", 200)
    found = fit_thresholds(scores, targets, F1)
    assert found.global_threshold == third.global_threshold
    assert found.positives.tolist() == (targets == 1).sum(axis=0).tolist()


def test_thresholds_stand_clear_of_scores_that_are_a_little_off() -> None:
    scores, targets = made(53, 1)
    found = fit_thresholds(scores, targets, parse_goal("recall@0.8"))
    noise = np.random.default_rng(1).uniform(-1e-7, 1e-7, scores.shape)  # an fp32 rounding error at scores this large
    assert ((scores + noise >= found.global_threshold) == (scores >= found.global_threshold)).all()


@pytest.mark.parametrize(("pictures", "labels", "tags"), [(1, 3, 1.0), (47, 13, 2.5), (47, 13, 0.01), (31, 2, 1.999)])
def test_quantiles_give_the_tags_per_picture(pictures: int, labels: int, tags: float) -> None:
    scores, _ = made(pictures, labels)
    shared, thresholds = fit_quantiles(scores, tags)
    assert thresholds.shape == (labels,)
    expected = max(1, round(tags * pictures))
    assert np.count_nonzero(scores >= shared) == expected
    assert np.count_nonzero(scores >= thresholds) == expected
    # By its scores' mean and spread, each label's threshold lies equally high.
    columns = [scores[:, c].astype(float).tolist() for c in range(labels)]
    heights = [
        (threshold - statistics.fmean(column) / 4) / (statistics.pstdev(column) ** 0.5 or 1)
        for threshold, column in zip(thresholds, columns, strict=True)
    ]
    assert heights == pytest.approx([heights[0]] * labels)


def test_equal_scores_pass_together() -> None:
    scores = np.array([0.1, 0.3, 0.3, 0.3, 0.5], np.float32)
    assert [int((scores >= passing(scores, count)).sum()) for count in range(1, 6)] == [1, 4, 4, 4, 5]


@pytest.mark.parametrize(
    "text", ["", "f2", "F1", "f1@0.5", "f1@", "precision", "precision@", "precision@0", "recall@1.1", "recall@nan", "recall@-1"]
)
def test_other_goals_are_refused(text: str) -> None:
    assert refused(partial(parse_goal, text)) == ("metric", text)


def test_goals_read_back() -> None:
    for text in ("f1", "precision@0.9", "recall@0.125"):
        assert str(parse_goal(text)) == text


def test_what_nothing_can_be_fitted_to_is_refused() -> None:
    scores, targets = made(7, 3)
    assert_refused(partial(fit_thresholds, scores[:0], targets[:0], F1), UsageError, "[0, 3]")
    assert_refused(
        partial(fit_thresholds, scores, np.minimum(targets, 0), F1), DatasetError, "no picture shows any of the labels"
    )
    assert_refused(partial(fit_quantiles, scores[:0], 1.0), UsageError, "[0, 3]")
    assert_refused(partial(fit_quantiles, scores * np.float32(np.nan), 1.0), UsageError, "nan for picture 0")
    for tags in (0, 3, -1.0, float("nan")):
        assert refused(partial(fit_quantiles, scores, tags))[0] == "tags_per_picture"
