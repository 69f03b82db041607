"""The kinds of arrays that pass between modules."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
Pixels = NDArray[np.float32 | np.uint8]  # [B, 3, H, W] or [3, H, W]: normalised, or uint8 where an engine normalises
Targets = NDArray[np.int8]  # [N, C] of a data set: 1 shown, -1 not shown, 0 not annotated (`datasets/dataset.py`)
