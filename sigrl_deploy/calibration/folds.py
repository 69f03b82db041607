"""The parts of a set of pictures that take turns at being held out."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from sigrl_deploy.arrays import Targets
from sigrl_deploy.datasets.dataset import POSITIVE
from sigrl_deploy.errors import DatasetError

FOLDS = 5
SEED = 0  # the same pictures, the same folds


def folds(targets: Targets) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """targets [N, C] int8 → for each of FOLDS parts of the pictures (N, where that is less), the others' indices and its own.

    Raises DatasetError where there is one picture only, or the others have no positive.
    """
    from sklearn.model_selection import KFold

    if len(targets) < 2:
        raise DatasetError("1 picture; expected at least 2, since what one part of them gives is tried on the other")
    shown = (targets == POSITIVE).any(axis=1)
    for others, held_out in KFold(min(FOLDS, len(targets)), shuffle=True, random_state=SEED).split(targets):
        if not shown[others].any():
            raise DatasetError(f"only {shown.sum()} of {len(targets)} pictures show any of the labels; expected more of them")
        yield others, held_out
