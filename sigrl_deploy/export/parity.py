"""Parity is shown, not assumed: the exported graphs against the eager fp32 model on real pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sigrl_deploy.bundle import Bundle
from sigrl_deploy.cache import LABELS_PER_BATCH
from sigrl_deploy.config import Precision
from sigrl_deploy.device_preprocess import DevicePreprocess
from sigrl_deploy.evaluation.agreement import agreement
from sigrl_deploy.export.graphs import TextGraph, VisualGraph
from sigrl_deploy.images import read_image
from sigrl_deploy.model.sigrl import SigRL, encode_text, match
from sigrl_deploy.model.towers import typed
from sigrl_deploy.recognizer import Recognizer
from sigrl_deploy.vocabulary import Vocabulary

PHOTOS = Path(__file__).parent.parent / "data" / "photos"
LABELS = Path(__file__).parent.parent / "data" / "labels.txt"
LABEL_COUNTS = (1, 7, 33, 100)  # one label, and counts that do and do not fill the last tile
BATCHES = (1, 3)

Array = NDArray[np.float32]
Scorer = Callable[[Array, Sequence[str]], Array]  # pixels [B, 3, H, W], labels → scores [B, C]


@dataclass(frozen=True)
class Case:
    """One comparison: the largest and the mean score error, and how much of the eager model's best labels agree (0 to 1)."""

    batch: int
    labels: int
    largest_error: float
    mean_error: float
    top1_agreement: float
    top5_agreement: float


@dataclass(frozen=True)
class Parity:
    """What export measured. `largest_error` is over all cases; scores lie within ±1.

    `device_preprocess_drift` is the largest difference that preparing pictures in PyTorch makes, where the bundle has weights.
    """

    backend: str
    tolerance: float
    largest_error: float
    cases: list[Case]
    device_preprocess_drift: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def photos() -> list[Path]:
    """The pictures that ship with the package."""
    return sorted(PHOTOS.glob("*.jpg"))


class EagerScorer:
    """Scores by the PyTorch graphs of a model, with its token ids or label embeddings looked up by label."""

    def __init__(self, model: SigRL, rows: dict[str, torch.Tensor]) -> None:
        self.visual = VisualGraph(model).eval()
        self.text = TextGraph(model).eval()
        self.config = model.config
        self.rows = rows  # label → token ids [context], or label embedding [D] where there is no text tower
        self._vocabularies: dict[tuple[str, ...], Vocabulary] = {}

    def vocabulary(self, labels: Sequence[str]) -> Vocabulary:
        """T and G Wbᵀ of labels, in fp32; encoded once."""
        key = tuple(labels)
        if key not in self._vocabularies:
            self._vocabularies[key] = self._encode(key)
        return self._vocabularies[key]

    @torch.inference_mode()
    def _encode(self, labels: tuple[str, ...]) -> Vocabulary:
        rows = torch.stack([self.rows[label] for label in labels])
        if self.text.text is not None:
            rows = torch.cat([encode_text(self.text.text, batch).float() for batch in rows.split(LABELS_PER_BATCH)])
        no_labels = torch.zeros(0, 8, dtype=torch.int64)
        given = {"cached_embedding": rows, "token_ids": no_labels}
        outputs = self.text(*(given[name] for name in self.text.input_names)) if self.text.gmc is not None else (rows,)
        label_embedding, *graph_projection = (output.numpy() for output in outputs)
        return Vocabulary(labels, label_embedding, graph_projection[0] if graph_projection else None)

    @torch.inference_mode()
    def __call__(self, pixels: Array, labels: Sequence[str]) -> Array:
        vocabulary = self.vocabulary(labels)
        label_embedding = torch.from_numpy(vocabulary.label_embedding)
        inputs = [torch.from_numpy(pixels)]
        if vocabulary.graph_projection is not None:
            inputs += [label_embedding, torch.from_numpy(vocabulary.graph_projection)]
        *local, global_feature = self.visual(*inputs)
        patches = local[0] if local else torch.empty(0)
        scores: Array = match(self.config.arch, patches, global_feature, label_embedding, self.config.topk).numpy()
        return scores


def measure(model: SigRL, rows: dict[str, torch.Tensor], bundle: Path, precision: Precision, tolerance: float) -> Parity:
    """Compare a written bundle with the eager fp32 model.

    fp32 and fp16 files run in ONNX Runtime as `infer` would run them. Its CPU provider has no bf16 products, so bf16 runs the
    same typed graph in PyTorch.
    """
    recognizer = (
        Recognizer(bundle, device="cpu", precision=precision, cache_dir=False) if precision is not Precision.BF16 else None
    )
    manifest = Bundle(bundle).manifest
    pictures = [read_image(path) for path in photos()]
    pixels = np.stack([manifest.preprocess(picture) for picture in pictures])
    exact = EagerScorer(model, rows)
    if recognizer is not None:
        backend, tested = recognizer.engine.description, _engine_scorer(recognizer)
    else:
        backend, tested = f"PyTorch {torch.__version__} on cpu, bf16", EagerScorer(typed(model, precision), rows)
    known = list(rows)
    counts = sorted({min(count, len(known)) for count in LABEL_COUNTS})
    cases = [_compare(exact, tested, pixels[:batch], known[:count]) for count in counts for batch in BATCHES]
    drift = None
    if manifest.variants[precision].weights:
        on_device = DevicePreprocess(manifest.preprocess, torch.device("cpu"))
        drift = _drift(tested, pixels, np.stack([on_device(picture) for picture in pictures]), known[: counts[-1]])
    return Parity(backend, tolerance, max(case.largest_error for case in cases), cases, drift)


def _drift(tested: Scorer, pixels: Array, others: Array, labels: Sequence[str]) -> float:
    """The largest score difference between pictures prepared in two ways."""
    if np.array_equal(pixels, others):
        return 0.0
    return float(np.abs(tested(pixels, labels) - tested(others, labels)).max())


def _engine_scorer(recognizer: Recognizer) -> Scorer:
    return lambda pixels, labels: recognizer.score_pixels(pixels, recognizer.vocabulary(labels))


def _compare(exact: Scorer, tested: Scorer, pixels: Array, labels: Sequence[str]) -> Case:
    expected, got = exact(pixels, labels), tested(pixels, labels)
    error = np.abs(expected.astype(np.float64) - got)
    largest = float(error.max()) if np.isfinite(error).all() else float("inf")
    shares = [agreement(expected, got, k) for k in (1, 5)]
    return Case(len(pixels), len(labels), largest, float(error.mean()), *shares)
