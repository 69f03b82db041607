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
    """Y [P, D] (None where patches are not matched), g [D], T [C, D] → scores [C] by the architecture's rule (see `Arch`)."""
    with _blas.limit(limits=1, user_api="blas"):
        if arch is Arch.CLIP:
            cosine: FloatArray = _unit_rows(label_embedding) @ _unit_rows(global_feature)
            return cosine
        global_score = _unit_rows(label_embedding @ global_feature)
    if local is None:
        return global_score
    return (_unit_rows(local_match(local, label_embedding, topk)) + global_score) / np.float32(2)


def require_finite(scores: FloatArray, precision: str) -> None:
    """Raise ScoreError where one of the scores [B, C] is not finite."""
    finite = np.isfinite(scores).all(axis=-1)
    if not finite.all():
        raise ScoreError(not_finite(precision), int(finite.argmin()))


def not_finite(precision: str) -> str:
    """The error of a picture whose scores are not finite."""
    return f"its scores are not finite in {precision}; try another precision, or export again"
