"""The protocol that every backend implements; each backend has a file of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sigrl_deploy.arrays import FloatArray, Pixels
from sigrl_deploy.config import Precision
from sigrl_deploy.errors import UsageError
from sigrl_deploy.vocabulary.vocabulary import Vocabulary


class UnavailableError(UsageError):
    """An engine cannot run on this machine; `reason` is what is logged where another takes its place."""

    def __init__(self, reason: str, advice: str, *, argument: str, value: str) -> None:
        super().__init__(f"{reason}; {advice}", argument=argument, value=value)
        self.reason = reason


class Preparation(Protocol):
    """A bundle's preprocessing contract, in Pillow or on a device; see `Preprocess`."""

    def __call__(self, image: Image.Image, /) -> FloatArray:
        """An RGB picture → normalised pixels [3, S, S]."""

    def uint8(self, image: Image.Image, /) -> NDArray[np.uint8]:
        """The same before normalisation, where the contract ends in that."""


class Engine(Protocol):
    """Runs one bundle's model. All arrays are fp32 on the host, pixels also uint8 where the engine takes them; an engine may be
    called from several threads.
    """

    description: str  # backend, device and why it was chosen; logged once
    device: str  # "cpu" or "cuda"
    precision: Precision  # of the variant that runs
    takes_uint8: bool  # whether pixels may be uint8, as `Preparation.uint8` gives them, and are normalised on the device

    @property
    def text_digests(self) -> tuple[str, ...]:
        """The sha256 of every file that label embeddings and graph projections are computed from."""

    def preprocess(self) -> Preparation:
        """The bundle's `Preprocess`, on the engine's device. Raises UsageError where the engine has none."""

    def encode(self, pixels: Pixels, vocabulary: Vocabulary) -> tuple[FloatArray | None, FloatArray]:
        """pixels [B, 3, H, W] → local features [B, P, D] (None where patches are not matched), global feature [B, D],
        or [B, 0] where that is not matched.
        """

    def score(self, pixels: Pixels, vocabulary: Vocabulary) -> FloatArray:
        """pixels [B, 3, H, W] → scores [B, R] of the vocabulary's rows by the bundle's rule (see `Arch`)."""

    def score_batches(self, batches: Iterable[Pixels], vocabulary: Vocabulary) -> Iterator[FloatArray]:
        """`score` of each batch, in order. On a GPU a batch is copied there while the one before it runs."""

    def encode_labels(self, token_ids: NDArray[np.int64]) -> FloatArray:
        """token ids [N, L], L at most the context → label embeddings [N, D]."""

    def project_graph(self, label_embedding: FloatArray) -> FloatArray | None:
        """T [C, D] → G Wbᵀ [C, D], or None without a label graph."""
