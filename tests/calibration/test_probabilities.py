"""Probabilities: a known sigmoid is found again, curves never fall, and what is stored gives the same numbers."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial

import msgspec
import numpy as np
import pytest
from sklearn.isotonic import IsotonicRegression

from sigrl_deploy.arrays import FloatArray, Targets
from sigrl_deploy.calibration.probabilities import (
    BINS,
    MOST_KNOTS,
    Curve,
    Isotonic,
    Platt,
    fit_probabilities,
    held_out_probabilities,
    reliability,
)
from sigrl_deploy.errors import DatasetError, UsageError
from tests.calibration.made import made
from tests.support.refusals import assert_refused

KNOWN = Platt(a=25.0, b=-2.0)


def _of_known_curve(pictures: int, labels: int) -> tuple[FloatArray, Targets]:
    rng = np.random.default_rng(pictures)
    scores = rng.normal(0, 0.08, (pictures, labels)).astype(np.float32)
    targets = np.where(rng.random(scores.shape) < KNOWN(scores), 1, -1).astype(np.int8)
    targets[rng.random(scores.shape) < 0.1] = 0
    return scores, targets


def test_a_known_sigmoid_is_found_again() -> None:
    scores, targets = _of_known_curve(997, 21)
    found = fit_probabilities(scores, targets)
    assert isinstance(found, Platt)
    # Standard errors of the maximum likelihood estimate, from the Fisher information; within 4 of them.
    wide, p = scores[targets != 0].astype(np.float64), KNOWN(scores)[targets != 0].astype(np.float64)
    design = np.stack([wide, np.ones_like(wide)])
    errors = np.sqrt(np.diag(np.linalg.inv((design * p * (1 - p)) @ design.T)))
    assert abs(found.a - KNOWN.a) < 4 * errors[0]
    assert abs(found.b - KNOWN.b) < 4 * errors[1]


def test_a_curve_of_free_shape_comes_near_it_too_and_never_falls() -> None:
    scores, targets = _of_known_curve(1000, 21)
    found = fit_probabilities(scores, targets)
    assert isinstance(found, Isotonic)
    grid = np.linspace(-1, 1, 2001, dtype=np.float32)
    assert (np.diff(found(grid)) >= 0).all()
    # 19,000 targets make some 100 steps of 190: the standard error of a share of 190 is 0.036 at most.
    middle = np.linspace(-0.15, 0.15, 301, dtype=np.float32)
    assert np.abs(found(middle) - KNOWN(middle)).mean() < 0.036


def test_fewer_knots_stay_near_scikit_learns_curve() -> None:
    rng = np.random.default_rng(0)
    scores = rng.random((5003, 40), np.float32)
    targets = np.where(rng.random(scores.shape) < scores, 1, -1).astype(np.int8)
    whole = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(scores.ravel(), targets.ravel() == 1)
    assert len(whole.X_thresholds_) > MOST_KNOTS
    found = fit_probabilities(scores, targets)
    assert isinstance(found, Isotonic)
    assert len(found.x) == MOST_KNOTS
    # Between two knots that are kept, at most a few steps are left out, each as high as the noise of its share.
    grid = np.linspace(0, 1, 1001, dtype=np.float32)
    assert np.abs(found(grid) - whole.predict(grid)).max() < 0.02


@pytest.mark.parametrize("pictures", [67, 1001])
def test_a_stored_curve_gives_the_same_probabilities(pictures: int) -> None:
    scores, targets = made(pictures, 3)
    curve = fit_probabilities(scores, targets)
    stored = json.dumps(curve.to_plain())
    read: Curve = msgspec.convert(json.loads(stored), Platt | Isotonic)
    assert read == curve
    probabilities = curve(scores)
    assert probabilities.dtype == np.float32
    assert probabilities.shape == scores.shape
    assert probabilities.min() >= 0
    assert probabilities.max() <= 1
    assert (read(scores) == probabilities).all()


def test_a_stored_curve_needs_numpy_alone() -> None:
    program = (
        "import sys, numpy as np\n"
        "from sigrl_deploy.calibration.probabilities import Isotonic, Platt\n"
        "scores = np.zeros((2, 3), np.float32)\n"
        "Platt(a=1.0, b=0.0)(scores), Isotonic(x=(0.0, 1.0), y=(0.0, 1.0))(scores)\n"
        "assert not {'sklearn', 'scipy', 'matplotlib', 'torch'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_scores_of_any_size_have_a_probability() -> None:
    with np.errstate(over="raise", invalid="raise"):
        assert Platt(a=1e4, b=0.0)(np.array([-1e3, 0, 1e3], np.float32)).tolist() == [0, 0.5, 1]


@pytest.mark.parametrize(
    ("values", "fact"),
    [
        ({"type": "platt", "a": float("nan"), "b": 0.0}, "finite"),
        ({"type": "isotonic", "x": [0.0, 0.0], "y": [0.1, 0.2]}, "rising"),
        ({"type": "isotonic", "x": [0.0, float("inf")], "y": [0.1, 0.2]}, "finite"),
        ({"type": "isotonic", "x": [0.0, 1.0], "y": [0.2, 0.1]}, "do not fall"),
        ({"type": "isotonic", "x": [0.0, 1.0], "y": [0.2, 1.1]}, "between 0 and 1"),
        ({"type": "isotonic", "x": [0.0, 1.0], "y": [0.2, float("nan")]}, "between 0 and 1"),
        ({"type": "isotonic", "x": [0.0], "y": [0.2, 0.3]}, "1 and 2 numbers"),
        ({"type": "isotonic", "x": [], "y": []}, "0 and 0 numbers"),
        ({"type": "isotonic", "x": list(map(float, range(999))), "y": [0.5] * 999}, f"{MOST_KNOTS} at most"),
    ],
)
def test_curves_that_are_none_are_refused(values: dict[str, object], fact: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=fact):
        msgspec.convert(values, Platt | Isotonic)


def test_the_calibration_error_of_a_case_worked_by_hand() -> None:
    targets = np.array([[1, -1, -1, 1, 0]], np.int8)
    # Three of the same bin, of which one is positive, one alone, and one unknown.
    found = reliability(np.array([[0.41, 0.42, 0.43, 1.0, 0.9]], np.float32), targets)
    assert found.count.tolist() == [3, 1]
    # Tolerances: the rounding of fp32 probabilities.
    assert found.predicted == pytest.approx([0.42, 1], abs=1e-7)
    assert found.observed == pytest.approx([1 / 3, 1])
    assert found.error == pytest.approx((0.42 - 1 / 3) * 3 / 4, abs=1e-7)


@pytest.mark.parametrize("pictures", [103, 1003])
def test_held_out_probabilities_say_what_is_there(pictures: int) -> None:
    scores, targets = _of_known_curve(pictures, 19)
    found = reliability(held_out_probabilities(scores, targets), targets)
    # A share of n has a standard error of 1 / (2√n) at most; the mean over bins, weighted by n, is at most √(bins / N) / 2.
    assert found.error < 2 * np.sqrt(BINS / found.count.sum()) / 2


def test_targets_without_a_positive_or_a_negative_are_refused() -> None:
    scores, targets = made(9, 3)
    negatives = int((targets == -1).sum())
    none = partial(fit_probabilities, scores, np.minimum(targets, 0))
    assert_refused(none, DatasetError, f"0 positive and {negatives} negative targets")
    assert_refused(partial(fit_probabilities, scores, np.maximum(targets, 0)), DatasetError, "0 negative targets")
    assert_refused(partial(fit_probabilities, scores[:0], targets[:0]), UsageError, "[0, 3]")
