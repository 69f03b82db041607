"""How far two models' best labels are the same."""

from __future__ import annotations

import numpy as np

from sigrl_deploy.arrays import FloatArray


def agreement(expected: FloatArray, found: FloatArray, k: int) -> float:
    """expected, found [N, C], scores of the same pictures and labels → the share, 0 to 1, of the k best labels of `expected`
    that are among the k best of `found`; k is cut to C, and ties go to the label that stands first.
    """
    k = min(k, expected.shape[1])
    pairs = zip(*(np.argsort(-scores, kind="stable")[:, :k] for scores in (expected, found)), strict=True)
    return float(np.mean([len(set(a) & set(b)) / k for a, b in pairs]))
