"""How far apart scores are, by hand and against the plain formula on more pictures than a block holds."""

from __future__ import annotations

import numpy as np
import pytest

from sigrl_deploy.comparison import agreement, best_labels, compared, flips, lowest_cosine, overlap, score_errors


@pytest.fixture(scope="module")
def pair() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    expected = rng.normal(size=(2500, 13)).astype(np.float32)
    found = expected + rng.normal(scale=0.2, size=expected.shape).astype(np.float32)
    found[2400] = expected[2400] - 3  # the worst picture is in the last block
    return expected, found


def test_errors_and_cosine_are_those_of_all_scores(pair: tuple[np.ndarray, np.ndarray]) -> None:
    a, b = (scores.astype(np.longdouble) for scores in pair)
    errors = score_errors(*pair)
    assert errors.largest == pytest.approx(float(abs(a - b).max()), rel=1e-12)
    assert errors.mean == pytest.approx(float(abs(a - b).mean()), rel=1e-12)
    assert errors.rms == pytest.approx(float(((a - b) ** 2).mean() ** 0.5), rel=1e-12)
    cosines = [float(x @ y / np.sqrt((x @ x) * (y @ y))) for x, y in zip(a, b, strict=True)]
    assert lowest_cosine(*pair) == pytest.approx(min(cosines), rel=1e-12)


def test_a_score_that_is_not_finite_is_an_infinite_error() -> None:
    expected = np.zeros((1500, 2), np.float32)
    for row, value in ((0, np.nan), (1499, np.inf)):
        found = expected.copy()
        found[row, 1] = value
        assert score_errors(expected, found).largest == np.inf


def test_probabilities_are_compared_before_their_sigmoid() -> None:
    """Those next to 0 are told apart, and those next to 1 are not, of which fp32 has few."""
    logits = np.array([[-80.0, -9.0, -7.5, 0.0, 3.0, 7.9, 12.0, 30.0]], np.float32)
    probabilities = 1 / (1 + np.exp(-logits))
    expected = np.minimum(logits, 8)
    np.testing.assert_allclose(compared(probabilities, True), expected, atol=1e-5 * 80)
    assert compared(logits, False) is logits
    swapped = probabilities[:, [1, 2, 0, 3, 4, 5, 6, 7]]
    assert score_errors(probabilities, swapped).largest < 1e-3
    assert score_errors(compared(probabilities, True), compared(swapped, True)).largest > 70
    assert np.isnan(compared(np.full((1, 1), np.nan, np.float32), True)).all()


def test_the_cosine_of_scores_that_are_all_zero_is_zero() -> None:
    assert lowest_cosine(np.zeros((1, 3), np.float32), np.ones((1, 3), np.float32)) == 0


@pytest.mark.parametrize("k", [1, 3, 5, 13, 20])
def test_agreement_and_overlap_are_those_of_sets(pair: tuple[np.ndarray, np.ndarray], k: int) -> None:
    sets = [[set(sorted(range(13), key=lambda c: (-row[c], c))[:k]) for row in scores.tolist()] for scores in pair]
    shared = [len(a & b) / len(a) for a, b in zip(*sets, strict=True)]
    assert overlap(*pair, k) == pytest.approx(sum(shared) / len(shared), rel=1e-12)
    assert agreement(*pair, k) == pytest.approx(shared.count(1.0) / len(shared), rel=1e-12)


def test_agreement_asks_for_all_k_and_overlap_for_each() -> None:
    expected = np.array([[4, 3, 2, 1], [4, 3, 2, 1], [4, 3, 2, 1]], np.float32)
    found = np.array([[4, 3, 2, 1], [3, 4, 2, 1], [4, 3, 1, 2]], np.float32)  # same, two swapped, another third label
    assert (agreement(expected, found, 1), overlap(expected, found, 1)) == (2 / 3, 2 / 3)
    assert agreement(expected, found, 3) == 2 / 3
    assert overlap(expected, found, 3) == pytest.approx(8 / 9)


def test_ties_go_to_the_label_that_stands_first() -> None:
    scores = np.array([[1, 2, 2, 1, 2]] * 1030, np.float32)
    assert best_labels(scores, 4).tolist() == [[1, 2, 4, 0]] * 1030
    assert best_labels(scores, 9).shape == (1030, 5)


def test_a_score_on_the_threshold_passes_it(pair: tuple[np.ndarray, np.ndarray]) -> None:
    expected = np.array([[3, 4, 0], [0, 0, 2]], np.float32)
    found = np.array([[4, 3, 0], [0, 0, 2]], np.float32)
    assert flips(expected, found, 3.5).tolist() == [1, 1, 0]
    assert flips(expected, found, np.array([3, 3.5, 0], np.float32)).tolist() == [0, 1, 0]
    assert not flips(expected, found, 3).any()
    sides = [[value >= 0.3 for value in scores.ravel().tolist()] for scores in pair]
    assert flips(*pair, 0.3).sum() == sum(a != b for a, b in zip(*sides, strict=True))
