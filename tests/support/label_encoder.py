"""A label encoder without a network, for tests of the vocabulary cache."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sigrl_deploy.arrays import FloatArray
from sigrl_deploy.vocabulary.cache import VocabularyCache, digest
from sigrl_deploy.vocabulary.vocabulary import Vocabulary

DIM = 8
TEXT, GRAPH = digest("text tower", "template"), digest("graph")


def row(label: str) -> FloatArray:
    """Stands for a label's embedding: any fixed function of the label."""
    seed = int.from_bytes(hashlib.sha256(label.encode()).digest()[:4], "little")
    return np.random.RandomState(seed).standard_normal(DIM).astype(np.float32)


def project(embedding: FloatArray) -> FloatArray:
    """Stands for GMC: a row depends on all labels and moves with its own."""
    return embedding + embedding.sum(0)


class SmallBatches(VocabularyCache):
    labels_per_batch = 4


class Encoder:
    """Keeps what it was asked for."""

    def __init__(self, fail_after: int | None = None) -> None:
        self.asked: list[str] = []
        self.projected = 0
        self.fail_after = fail_after

    def encode(self, labels: Sequence[str]) -> FloatArray:
        if self.fail_after is not None and len(self.asked) >= self.fail_after:
            raise KeyboardInterrupt
        self.asked += labels
        return np.stack([row(label) for label in labels])

    def project(self, embedding: FloatArray) -> FloatArray:
        self.projected += 1
        return project(embedding)

    def cache(self, folder: Path | None, text_key: str = TEXT, graph_key: str = GRAPH) -> VocabularyCache:
        return SmallBatches(folder, text_key, graph_key, self.encode, self.project if graph_key else lambda _: None, DIM)


def names(count: int) -> tuple[str, ...]:
    return tuple(f"label {i}" for i in range(count))


def assert_right(vocabulary: Vocabulary, labels: Sequence[str]) -> None:
    assert vocabulary.labels == tuple(labels)
    assert np.array_equal(vocabulary.label_embedding, np.stack([row(label) for label in labels]))
    ordered = sorted(labels)
    graph = dict(zip(ordered, project(np.stack([row(label) for label in ordered])), strict=True))
    assert vocabulary.graph_projection is not None
    assert np.array_equal(vocabulary.graph_projection, np.stack([graph[label] for label in labels]))
