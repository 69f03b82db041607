"""The runtime's matching in numpy against the eager model's in PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from threadpoolctl import ThreadpoolController

from benchmarks.random_weights import label_embeddings
from sigrl_deploy.config import Arch
from sigrl_deploy.model import matching
from sigrl_deploy.model.sigrl import match

TOLERANCE = 1e-6  # fp32 sums over 512 terms of order one, divided by norms of order ten


def features(patches: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((patches, 512), np.float32), rng.standard_normal(512, np.float32)


@pytest.mark.parametrize("arch", Arch)
@pytest.mark.parametrize(("patches", "labels", "topk"), [(1, 1, 1), (25, 7, 16), (49, 81, 18), (196, 1006, 16), (25, 3, 500)])
def test_scores_equal_the_eager_rule(arch: Arch, patches: int, labels: int, topk: int) -> None:
    local, global_feature = features(patches)
    embedding = label_embeddings(labels, seed=1)
    expected = match(arch, *(torch.from_numpy(a).double() for a in (local[None], global_feature[None], embedding)), topk)[0]
    scores = matching.score(arch, local if arch.has_local else None, global_feature, embedding, topk)
    assert scores.dtype == np.float32
    assert np.abs(scores - expected.numpy()).max() < TOLERANCE * max(1, np.abs(scores).max())  # which norms keep within ±1


@pytest.mark.parametrize("arch", Arch)
def test_zero_features_score_zero(arch: Arch) -> None:
    local = np.zeros((25, 512), np.float32) if arch.has_local else None
    scores = matching.score(arch, local, np.zeros(512, np.float32), label_embeddings(4, 1), 16)
    assert (scores == (0.5 if arch.gives_probabilities else 0)).all()


def test_evidence_is_what_the_local_match_averages() -> None:
    local, _ = features(25)
    embedding = label_embeddings(3, seed=1)
    evidence = np.sort(matching.patch_similarity(local, embedding), axis=1)
    assert evidence.shape == (3, 25)
    assert np.allclose(evidence[:, -4:].mean(1), matching.local_match(local, embedding, 4), atol=1e-4)


@pytest.mark.parametrize(("patches", "labels"), [(25, 3), (49, 81), (196, 2500)])
def test_strength_compares_evidence_with_that_of_all_labels(patches: int, labels: int) -> None:
    """By its words, in float64 with the whole matrix."""
    local, _ = features(patches)
    embedding = label_embeddings(labels, seed=1) + np.float32(0.1)  # what labels share says nothing about any of them
    embedding[1] += 0.1 * local[3]
    everything = embedding.astype(np.float64) @ local.T.astype(np.float64)
    above = everything - everything.mean(axis=0)
    deviations = (above / above.std())[:3]
    strength = matching.strength(local, embedding, matching.patch_similarity(local, embedding[:3]))
    assert strength.dtype == np.float32
    expected = ((deviations - 4) / (max(deviations.max(), 8.5) - 4)).clip(0, 1)
    assert np.abs(strength - expected).max() < 1e-4
    if labels > 3:  # among fewer, nothing stands out as far
        assert strength.argmax() == patches + 3
    assert matching.strength(local, embedding, matching.patch_similarity(local, embedding[:0])).shape == (0, patches)


@pytest.mark.filterwarnings("error")
def test_without_a_difference_between_labels_nothing_is_strong() -> None:
    local, _ = features(25)
    for embedding, features_ in ((label_embeddings(1, 1), local), (label_embeddings(4, 1), np.zeros_like(local))):
        evidence = matching.patch_similarity(features_, embedding)
        assert (matching.strength(features_, embedding, evidence) == 0).all()


def test_matching_leaves_no_blas_threads_spinning() -> None:
    """They would take cores from the graph of the next picture; other numpy work keeps its threads."""
    controller = ThreadpoolController()

    def threads() -> list[int]:
        """Of numpy's own BLAS, whatever else the tests have loaded."""
        return [pool["num_threads"] for pool in controller.info() if "numpy" in pool["filepath"]]

    before, seen = threads(), []
    assert before

    class Watched(np.ndarray):
        def __matmul__(self, other: np.ndarray) -> np.ndarray:
            seen.extend(threads())
            return np.asarray(self) @ other

    rng = np.random.default_rng(0)
    local, g, rows = (rng.standard_normal(shape, np.float32) for shape in ((9, 16), (16,), (5, 16)))
    expected = matching.score(Arch.SIGRL, local, g, rows, 3)
    assert np.array_equal(matching.score(Arch.SIGRL, local, g, rows.view(Watched), 3), expected)
    assert set(seen) == {1}
    assert threads() == before
