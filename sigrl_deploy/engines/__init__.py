"""Backends that run a bundle, one file each, behind one protocol."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sigrl_deploy.config import Precision
from sigrl_deploy.vocabulary import Vocabulary

Array = NDArray[np.float32]

FUSED = ("svfr", "match", "gmc")  # ops that run as kernels on a GPU


class Engine(Protocol):
    """Runs one bundle's model. All arrays are fp32 on the host; an engine may be called from several threads."""

    description: str  # backend, device and why it was chosen; logged once
    device: str  # "cpu" or "cuda"
    precision: Precision  # of the variant that runs

    def preprocess(self) -> Callable[[Image.Image], Array]:
        """The bundle's `Preprocess`, on the engine's device. Raises UsageError where the engine has none."""

    def encode(self, pixels: Array, vocabulary: Vocabulary) -> tuple[Array | None, Array]:
        """pixels [B, 3, H, W] → local features [B, P, D] (None where patches are not matched), global feature [B, D]."""

    def score(self, pixels: Array, vocabulary: Vocabulary) -> Array:
        """pixels [B, 3, H, W] → scores [B, C] by the bundle's rule (see `Arch`)."""

    def encode_labels(self, token_ids: NDArray[np.int64]) -> Array:
        """token ids [N, L], L at most the context → label embeddings [N, D]."""

    def project_graph(self, label_embedding: Array) -> Array | None:
        """T [C, D] → G Wbᵀ [C, D], or None without a label graph."""
