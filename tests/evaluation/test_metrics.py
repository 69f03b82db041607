"""Multi-label metrics against cases worked by hand, plain loops and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import f1_score

from sigrl_deploy.comparison import best_labels
from sigrl_deploy.errors import UsageError
from sigrl_deploy.evaluation.metrics import Metrics, difference, evaluate_scores

# The same few float64 operations in another order.
TOLERANCE = 1e-12


def _evaluate(scores: object, targets: object) -> Metrics:
    return evaluate_scores(np.array(scores, np.float32), np.array(targets, np.int8))


def _random(pictures: int, labels: int, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    """Scores with many ties, targets of all three kinds; the last label has no positive."""
    random = np.random.default_rng(seed)
    scores = (random.integers(-6, 6, (pictures, labels)) / 64).astype(np.float32)
    targets = random.choice(np.array([1, -1, 0], np.int8), (pictures, labels), p=[0.2, 0.6, 0.2])
    targets[:, -1] = np.minimum(targets[:, -1], 0)
    return scores, targets


def test_a_case_worked_by_hand() -> None:
    scores = [[0.9, 0.1, 0.2, 0.3], [0.8, 0.7, 0.1, 0.2], [0.7, 0.3, 0.6, 0.1], [0.6, 0.9, 0.4, 0.8]]
    targets = [[1, -1, -1, -1], [-1, 1, -1, -1], [1, -1, -1, 1], [-1, 1, -1, -1]]
    found = _evaluate(scores, targets)
    # Label 0 ranks its pictures 0 1 2 3 with positives at ranks 1 and 3: (1/1 + 2/3) / 2. Label 1: ranks 1 and 2. Label 2: no
    # positive. Label 3: 3 0 1 2, its positive at rank 4.
    assert found.average_precision == pytest.approx((5 / 6, 1.0, None, 1 / 4), abs=TOLERANCE)
    assert found.map == pytest.approx((5 / 6 + 1 + 1 / 4) / 4, abs=TOLERANCE)
    assert found.map_present == pytest.approx((5 / 6 + 1 + 1 / 4) / 3, abs=TOLERANCE)
    assert found.positives == (2, 2, 0, 1)
    # Three best: 0 3 2, 0 1 3, 0 2 1, 1 3 0. Right: picture 0 its one, 1 its one, 2 one of two, 3 its one: 4 of 12, of 5.
    three = found.top_k[3]
    assert (three.k, three.precision, three.recall) == pytest.approx((3, 4 / 12, 4 / 5), abs=TOLERANCE)
    assert three.f1 == pytest.approx(2 * (1 / 3) * (4 / 5) / (1 / 3 + 4 / 5), abs=TOLERANCE)
    assert three.sample_f1 == pytest.approx((2 / 4 + 2 / 4 + 2 / 5 + 2 / 4) / 4, abs=TOLERANCE)
    # Label 0: predicted 4 times, 2 right of 2. Label 1: 3 times, 2 of 2. Label 2: twice, never right. Label 3: 3 times, 0 of 1.
    assert three.macro_f1 == pytest.approx((4 / 6 + 4 / 5 + 0 + 0) / 4, abs=TOLERANCE)


def test_k_is_cut_to_the_number_of_labels() -> None:
    scores, targets = _random(17, 4)
    found = evaluate_scores(scores, targets)
    assert found.top_k[3].k == 3
    assert found.top_k[5].k == 4
    assert found.top_k[5].recall == 1
    assert found.top_k[5].precision == pytest.approx((targets == 1).mean(), abs=TOLERANCE)


def test_one_label() -> None:
    found = _evaluate([[0.1], [0.2], [0.3]], [[1], [-1], [-1]])
    assert found.map == found.map_present == pytest.approx(1 / 3, abs=TOLERANCE)
    assert found.top_k[3] == found.top_k[5]
    assert (found.top_k[3].precision, found.top_k[3].recall) == pytest.approx((1 / 3, 1), abs=TOLERANCE)
    assert found.top_k[3].sample_f1 == pytest.approx(1 / 3, abs=TOLERANCE)


@pytest.mark.parametrize("positive_first", [True, False])
def test_pictures_of_equal_score_share_the_last_ones_precision_in_any_order(positive_first: bool) -> None:
    tied = [1, -1] if positive_first else [-1, 1]
    found = _evaluate([[0.9], [0.5], [0.5], [0.1]], [[1], [tied[0]], [tied[1]], [-1]])
    # The first positive has precision 1/1; the second counts at the end of its tie, 2/3.
    assert found.map == pytest.approx((1 + 2 / 3) / 2, abs=TOLERANCE)


def test_labels_of_equal_score_are_ranked_in_order() -> None:
    tied = np.zeros((2, 9), np.float32)
    tied[1, 6] = 1
    assert best_labels(tied, 3).tolist() == [[0, 1, 2], [6, 0, 1]]


def test_unknown_targets_are_left_out_of_ap_and_not_positive_in_f1() -> None:
    found = _evaluate([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]], [[0, -1], [1, -1], [-1, 0]])
    assert found.average_precision == (1.0, None)
    assert found.positives == (1, 0)
    assert found.top_k[3].precision == pytest.approx(1 / 6, abs=TOLERANCE)
    assert found.top_k[3].sample_f1 == pytest.approx((0 + 2 / 3 + 0) / 3, abs=TOLERANCE)


def test_without_any_positive_there_is_no_map_present() -> None:
    found = _evaluate([[0.9, 0.1], [0.8, 0.2]], [[-1, 0], [-1, -1]])
    assert found.map_present is None
    assert (found.map, found.top_k[3].f1, found.top_k[3].recall, found.top_k[3].sample_f1) == (0, 0, 0, 0)


# 1030 pictures are more than one block of the ranking.
@pytest.mark.parametrize(("pictures", "labels"), [(1, 2), (37, 7), (1030, 13)])
def test_agrees_with_plain_loops(pictures: int, labels: int) -> None:
    scores, targets = _random(pictures, labels, seed=pictures)
    found = evaluate_scores(scores, targets)
    for c in range(labels):
        assert found.average_precision[c] == pytest.approx(_ap(scores[:, c], targets[:, c]), abs=TOLERANCE)
    for asked in (3, 5):
        k = min(asked, labels)
        best = [sorted(range(labels), key=lambda c, row=row: (-row[c], c))[:k] for row in scores.tolist()]
        predicted = np.zeros(targets.shape, bool)
        for row, columns in zip(predicted, best, strict=True):
            row[columns] = True
        positive = targets == 1
        hits = int((predicted & positive).sum())
        top = found.top_k[asked]
        assert top.precision == pytest.approx(hits / (pictures * k), abs=TOLERANCE)
        assert top.recall == pytest.approx(hits / max(1, positive.sum()), abs=TOLERANCE)
        assert top.f1 == pytest.approx(f1_score(positive, predicted, average="micro", zero_division=0), abs=TOLERANCE)
        assert top.sample_f1 == pytest.approx(f1_score(positive, predicted, average="samples", zero_division=0), abs=TOLERANCE)
        assert top.macro_f1 == pytest.approx(f1_score(positive, predicted, average="macro", zero_division=0), abs=TOLERANCE)


def _ap(scores: NDArray[np.float32], targets: NDArray[np.int8]) -> float | None:
    """The definition: mean over positives of the share of positives among the known pictures that score at least as high."""
    precisions = []
    for score, target in zip(scores, targets, strict=True):
        if target == 1:
            above = targets[(scores >= score) & (targets != 0)]
            precisions.append(np.count_nonzero(above == 1) / len(above))
    return sum(precisions) / len(precisions) if precisions else None


@pytest.mark.parametrize(
    ("scores", "targets", "fact"),
    [
        (np.zeros((3, 2)), np.zeros((2, 3)), "scores [3, 2], targets [2, 3]"),
        (np.zeros(3), np.zeros(3), "scores [3], targets [3]"),
        (np.zeros((0, 2)), np.zeros((0, 2)), "[0, 2]"),
        (np.zeros((2, 0)), np.zeros((2, 0)), "[2, 0]"),
        ([[0.1, 0.2], [0.3, np.nan]], np.zeros((2, 2)), "nan for picture 1, label 1"),
        ([[0.1, np.inf]], np.zeros((1, 2)), "inf for picture 0, label 1"),
        ([[0.1, 0.2]], [[1, 2]], "targets: int8 from 1 to 2"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(scores: object, targets: object, fact: str) -> None:
    with pytest.raises(UsageError) as raised:
        _evaluate(scores, targets)
    assert fact in str(raised.value)


def test_a_comparison_worked_by_hand() -> None:
    reference = np.array([[4, 3, 2, 1], [4, 3, 2, 1], [4, 3, 2, 1]], np.float32) / 8
    other = np.array([[4, 3, 2, 1], [3, 4, 2, 1], [4, 3, 1, 2.5]], np.float32) / 8
    found = difference(other, reference, 0.5, 0.75)
    # The first picture ranks alike; the second swaps its two best; the third has another third label.
    assert found.top1_agreement == pytest.approx(2 / 3, abs=TOLERANCE)
    assert found.top3_agreement == pytest.approx(2 / 3, abs=TOLERANCE)
    assert found.map == -0.25
    assert found.largest_score == 1.5 / 8
