"""The losses against their definitions in plain loops, and against cases worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sigrl_deploy.training.losses import caption_loss, distillation_loss, entropy_loss, ranking_loss

# float64 sums of at most a few hundred terms, in another order.
TOLERANCE = 1e-12
SIZES = st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(0, 10_000))


def _case(size: tuple[int, int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(size)
    return torch.from_numpy(rng.normal(0, 2, size[:2])), torch.from_numpy(rng.integers(-1, 2, size[:2]))


@given(SIZES)
@settings(max_examples=60, deadline=None)
def test_ranking_loss_is_the_mean_hinge_of_violated_pairs(size: tuple[int, int, int]) -> None:
    scores, targets = _case(size)
    images = []
    for row, target in zip(scores.tolist(), targets.tolist(), strict=True):
        positives = [s for s, t in zip(row, target, strict=True) if t == 1]
        negatives = [s for s, t in zip(row, target, strict=True) if t == -1]
        hinges = [1 + q - p for p in positives for q in negatives if 1 + q - p > 0]
        images.append(sum(hinges) / len(hinges) if hinges else 0.0)
    assert ranking_loss(scores, targets).item() == pytest.approx(sum(images) / len(images), abs=TOLERANCE)


def test_ranking_loss_by_hand() -> None:
    # Picture 1: positive 2; negatives 0.5 (kept apart), 1.5 (violated by 0.5), 3 (by 2): mean 1.25. Picture 2: nothing known.
    scores = torch.tensor([[2.0, 0.5, 1.5, 3.0, 9.0], [1.0, 2.0, 3.0, 4.0, 5.0]])
    targets = torch.tensor([[1, -1, -1, -1, 0], [0, 0, 0, 0, 0]])
    assert ranking_loss(scores, targets).item() == pytest.approx(1.25 / 2)


def test_ranking_loss_pulls_positives_up_and_violating_negatives_down() -> None:
    scores = torch.tensor([[0.2, 0.1, -5.0]], requires_grad=True)
    ranking_loss(scores, torch.tensor([[1, -1, -1]])).backward()
    assert scores.grad is not None
    assert scores.grad.tolist() == [[-1.0, 1.0, 0.0]]


@given(SIZES, st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_entropy_loss_is_its_formula(size: tuple[int, int, int], weight: float) -> None:
    logits, targets = _case(size)
    total = 0.0
    for x, t in zip(logits.flatten().tolist(), targets.flatten().tolist(), strict=True):
        p = 1 / (1 + math.exp(-x))
        total += {1: -math.log(p), -1: -math.log(1 - p), 0: weight * (p * math.log(p) + (1 - p) * math.log(1 - p))}[t]
    assert entropy_loss(logits, targets, weight).item() == pytest.approx(total / logits.numel(), abs=TOLERANCE)


def test_entropy_loss_stays_finite_where_a_probability_is_0_or_1() -> None:
    logits = torch.tensor([[200.0, -200.0, 200.0]], requires_grad=True)
    loss = entropy_loss(logits, torch.tensor([[0, 0, 1]]), 0.1)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_distillation_is_the_mean_absolute_difference() -> None:
    a, b = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0, 0.0], [7.0, 4.0]])
    assert distillation_loss(a, b).item() == pytest.approx(6 / 4)


def test_caption_loss_counts_every_pair() -> None:
    logits, true = (
        torch.tensor([[0.0, 2.0], [-1.0, 3.0], [1.0, 1.0]]),
        torch.tensor([[True, False], [False, True], [True, True]]),
    )
    pairs = zip(logits.flatten().tolist(), true.flatten().tolist(), strict=True)
    total = sum(math.log1p(math.exp(-x if t else x)) for x, t in pairs)
    assert caption_loss(logits, true).item() == pytest.approx(total / 2, rel=1e-6)  # of two captions; fp32
