"""Local and global matching on the CPU, in numpy: features of one picture against a vocabulary."""

from __future__ import annotations

import numpy as np
from threadpoolctl import ThreadpoolController

from sigrl_deploy.arrays import FloatArray
from sigrl_deploy.config import Arch
from sigrl_deploy.errors import ScoreError

# Threads of numpy's BLAS spin for a while after their work, which takes cores from the next picture's graph: on
# two cores that costs as much as half of a ViT-B/16. The products here are small enough for one thread.
_blas = ThreadpoolController()

# In deviations: a match is nothing below the first and full from the second on. With the model that ships and its 104 labels,
# a label of a thing has 4.7 to 10 at that thing (5th and 95th percentile; median 6.9), and the four best labels have 1.3 to 4.0
# (2.4) in pictures of one colour and 2.9 to 4.7 (3.9) in noise. With ten labels: 2.2 to 8.8 (5.3), 0.4 to 2.9, and 0.9 to 3.2.
_NOTHING, _FULL = 4.0, 8.5
_LABELS_AT_ONCE = 1024


def _unit_rows(x: FloatArray) -> FloatArray:
    norm = np.linalg.norm(x, axis=-1, keepdims=True)
    unit: FloatArray = np.divide(x, norm, out=np.zeros_like(x), where=norm != 0)  # NaN stays NaN
    return unit


@np.errstate(invalid="ignore", over="ignore")  # NaN shows in the scores
def patch_similarity(local: FloatArray, label_embedding: FloatArray) -> FloatArray:
    """Y [P, D], T [C, D] → Y[n] · T[c] as [C, P]: the per-patch evidence of every label."""
    with _blas.limit(limits=1, user_api="blas"):
        similarity: FloatArray = label_embedding @ local.T
    return similarity


@np.errstate(invalid="ignore", over="ignore")
def strength(local: FloatArray, label_embedding: FloatArray, evidence: FloatArray) -> FloatArray:
    """Y [P, D], T [C, D] and the evidence [K, P] of K of those labels → [K, P], how clearly each patch shows the label, 0 to 1.

    The evidence is compared with that of all labels: from each patch's evidence its mean over the labels is taken away, and the
    rest is counted in standard deviations over all labels and patches. 0 is what a picture of nothing reaches as well. 1 is the
    clearest patch of the K labels, or, in a picture that shows none of them clearly, what a thing usually reaches.
    """
    mean = label_embedding.mean(axis=0)
    with _blas.limit(limits=1, user_api="blas"):
        # In pieces: all labels at all patches are many numbers, of which only the sum of squares is needed.
        pieces = (label_embedding[i : i + _LABELS_AT_ONCE] for i in range(0, len(label_embedding), _LABELS_AT_ONCE))
        squares = sum(float(np.square((piece - mean) @ local.T, dtype=np.float64).sum()) for piece in pieces)
        above = evidence - local @ mean
    deviation = np.sqrt(squares / (len(label_embedding) * len(local)))
    if not deviation > 0:
        return np.zeros_like(evidence)
    deviations = above / np.float32(deviation)
    full = max(_FULL, float(deviations.max(initial=0)))
    clear: FloatArray = ((deviations - _NOTHING) / (full - _NOTHING)).clip(0, 1).astype(np.float32)
    return clear


def local_match(local: FloatArray, label_embedding: FloatArray, topk: int) -> FloatArray:
    """Y [P, D], T [C, D] → [C], the mean of every label's k best patches; k is cut to P."""
    similarity = patch_similarity(local, label_embedding)
    topk = min(topk, similarity.shape[1])
    best: FloatArray = np.partition(similarity, -topk, axis=1)[:, -topk:].mean(axis=1)
    return best


@np.errstate(invalid="ignore", over="ignore")
def score(
    arch: Arch, local: FloatArray | None, global_feature: FloatArray, label_embedding: FloatArray, topk: int
) -> FloatArray:
    """Y [P, D], g [D], T [C, D] → scores [C] by the architecture's rule (see `Arch`). What it does not match is not read."""
    matches: list[FloatArray] = []
    if arch.has_global:
        with _blas.limit(limits=1, user_api="blas"):
            rows = _unit_rows(label_embedding) if arch.unit_labels else label_embedding
            matches.append(rows @ (_unit_rows(global_feature) if arch.unit_global else global_feature))
    if arch.has_local:
        assert local is not None
        matches.append(local_match(local, label_embedding, topk))
    if arch.compares_labels:
        matches = [_unit_rows(each) for each in matches]
    found: FloatArray = matches[0] if len(matches) == 1 else (matches[0] + matches[1]) / np.float32(2)
    return _sigmoid(found) if arch.gives_probabilities else found


def _sigmoid(x: FloatArray) -> FloatArray:
    """1 / (1 + exp(−x)); exp(−|x|) cannot overflow."""
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, np.float32(1), small) / (1 + small)


def require_finite(scores: FloatArray, precision: str) -> None:
    """Raise ScoreError where one of the scores [B, C] is not finite."""
    finite = np.isfinite(scores).all(axis=-1)
    if not finite.all():
        raise ScoreError(not_finite(precision), int(finite.argmin()))


def not_finite(precision: str) -> str:
    """The error of a picture whose scores are not finite."""
    return f"its scores are not finite in {precision}; try another precision, or export again"
