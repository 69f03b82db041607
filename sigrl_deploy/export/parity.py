"""Parity: the scores of the exported graphs compared with the PyTorch fp32 model's, on real pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sigrl_deploy.arrays import FloatArray
from sigrl_deploy.bundle.bundle import Bundle
from sigrl_deploy.checkpoints.eager import cut_padding
from sigrl_deploy.comparison import agreement, compared, overlap, score_errors, unit_of
from sigrl_deploy.config import Arch, Backend, Device, Precision, runs
from sigrl_deploy.engines.options import EngineOptions
from sigrl_deploy.export.graph_modules import TextGraph, VisualGraph
from sigrl_deploy.model.sigrl import SigRL, encode_text, match
from sigrl_deploy.pictures.device_preprocess import DevicePreprocess
from sigrl_deploy.pictures.preprocess import Preprocess
from sigrl_deploy.pictures.reading import read_image
from sigrl_deploy.recognizer import Recognizer
from sigrl_deploy.vocabulary.cache import LABELS_PER_BATCH
from sigrl_deploy.vocabulary.vocabulary import Vocabulary

PHOTOS = Path(__file__).parent.parent / "data" / "photos"
LABELS = Path(__file__).parent.parent / "data" / "labels.txt"
LABEL_COUNTS = (1, 7, 33, 100)  # one label, and counts that do and do not fill the last tile
BATCHES = (1, 3)

Scorer = Callable[[FloatArray, Sequence[str]], FloatArray]  # pixels [B, 3, H, W] and C labels to scores [B, C]


@dataclass(frozen=True)
class Case:
    """One comparison with the PyTorch model: score errors, and how many of its best labels are the graphs' too.

    Errors of probabilities are those before the sigmoid. Beyond ±1 they are counted in the largest score.

    `top1_agreement` is a share of pictures, `top5_overlap` a share of the five best labels (of all, where there are fewer).
    """

    batch: int
    labels: int
    largest_error: float
    mean_error: float
    top1_agreement: float
    top5_overlap: float


@dataclass(frozen=True)
class Parity:
    """What the export measured. `largest_error` is over all cases; scores lie within ±1, or else errors are counted in
    the largest score.

    `device_preprocess_drift` is the largest score difference that preparing pictures in PyTorch makes, where the bundle has
    weights for it, else None.
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
    """Scores pictures with the PyTorch graphs of a model.

    `rows` has the token ids [context] of every label, or its embedding [D] where the model has no text tower.
    """

    def __init__(self, model: SigRL, rows: dict[str, torch.Tensor]) -> None:
        self.visual = VisualGraph(model).eval()
        self.text = TextGraph(model).eval()
        self.config = model.config
        self.rows = rows
        self._embedded: dict[str, torch.Tensor] = {}
        self._vocabularies: dict[tuple[str, ...], Vocabulary] = {}

    def vocabulary(self, labels: Sequence[str]) -> Vocabulary:
        """T and G Wbᵀ [C, D] of labels, in fp32. Each list of labels is encoded once."""
        key = tuple(labels)
        if key not in self._vocabularies:
            self._vocabularies[key] = self._encode(key)
        return self._vocabularies[key]

    @torch.inference_mode()
    def _encode(self, labels: tuple[str, ...]) -> Vocabulary:
        self._embed([label for label in labels if label not in self._embedded])
        rows = torch.stack([self._embedded[label] for label in labels])
        no_labels = torch.zeros(0, 8, dtype=torch.int64)
        given = {"cached_embedding": rows, "token_ids": no_labels}
        outputs = self.text(*(given[name] for name in self.text.input_names)) if self.text.gmc is not None else (rows,)
        label_embedding, *graph_projection = (output.numpy() for output in outputs)
        return Vocabulary(labels, label_embedding, graph_projection[0] if graph_projection else None)

    def _embed(self, labels: Sequence[str]) -> None:
        """Encode labels. A label's row of T does not depend on the others, so it serves every vocabulary."""
        for start in range(0, len(labels), LABELS_PER_BATCH):
            batch = labels[start : start + LABELS_PER_BATCH]
            rows = torch.stack([self.rows[label] for label in batch])
            if self.text.text is not None:
                rows = encode_text(self.text.text, cut_padding(rows)).float()
            self._embedded |= dict(zip(batch, rows, strict=True))

    @torch.inference_mode()
    def __call__(self, pixels: FloatArray, labels: Sequence[str]) -> FloatArray:
        vocabulary = self.vocabulary(labels)
        label_embedding = torch.from_numpy(vocabulary.label_embedding)
        inputs = [torch.from_numpy(pixels)]
        if vocabulary.graph_projection is not None:
            inputs += [label_embedding, torch.from_numpy(vocabulary.graph_projection)]
        outputs = dict(zip(self.visual.output_names, self.visual(*inputs), strict=True))
        patches, global_feature = (outputs.get(name, torch.empty(0)) for name in ("local_feature", "global_feature"))
        scores: FloatArray = match(self.config.arch, patches, global_feature, label_embedding, self.config.topk).numpy()
        return scores


class Reference:
    """The PyTorch fp32 model's scores of the package's photographs, computed once for all precisions.

    `cache` is a folder of label embeddings, for precisions that share a text graph.
    """

    def __init__(self, model: SigRL, rows: dict[str, torch.Tensor], preprocess: Preprocess, cache: Path) -> None:
        self.rows, self.preprocess, self.cache = rows, preprocess, cache
        self.pictures = [read_image(path) for path in photos()]
        self.pixels: FloatArray = np.stack([preprocess(picture) for picture in self.pictures])
        known = list(rows)
        counts = sorted({min(count, len(known)) for count in LABEL_COUNTS})
        exact = EagerScorer(model, rows)
        self.scores = {
            (batch, tuple(known[:count])): exact(self.pixels[:batch], known[:count]) for count in counts for batch in BATCHES
        }


def measure(reference: Reference, bundle: Path, precision: Precision, tolerance: float, graphs: SigRL) -> Parity:
    """Compare a written bundle with the PyTorch fp32 model.

    The files run in ONNX Runtime as `infer` runs them where there is no kernel for SVFR: what they hold is measured. What its
    CPU provider does not run, bf16, runs in PyTorch: `graphs`, the typed model that the files were made from.
    """
    tested: Scorer
    if not runs(Backend.ONNXRUNTIME, precision, Device.CPU):
        backend, tested = f"PyTorch {torch.__version__} on cpu, {precision.value}", EagerScorer(graphs, reference.rows)
        has_weights = Bundle(bundle).manifest.variants[precision].weights
    else:
        unfused = frozenset({"svfr"} if graphs.svfr is not None else {})
        options = EngineOptions(Backend.ONNXRUNTIME, Device.CPU, precision, unfused)
        recognizer = Recognizer(bundle, options=options, cache_dir=reference.cache)
        backend, tested = recognizer.engine.description, _engine_scorer(recognizer)
        has_weights = recognizer.bundle.manifest.variants[precision].weights
    cases = [
        _compare(expected, tested(reference.pixels[:batch], labels), graphs.config.arch)
        for (batch, labels), expected in reference.scores.items()
    ]
    drift = None
    if has_weights:
        on_device = DevicePreprocess(reference.preprocess, torch.device("cpu"))
        others = np.stack([on_device(picture) for picture in reference.pictures])
        drift = _drift(tested, reference.pixels, others, list(reference.scores)[-1][1])
    return Parity(backend, tolerance, max(case.largest_error for case in cases), cases, drift)


def _drift(tested: Scorer, pixels: FloatArray, others: FloatArray, labels: Sequence[str]) -> float:
    """The largest score difference between pictures prepared in two ways."""
    if np.array_equal(pixels, others):
        return 0.0
    return float(np.abs(tested(pixels, labels) - tested(others, labels)).max())


def _engine_scorer(recognizer: Recognizer) -> Scorer:
    """Scores as the engine gives them, finite or not."""

    def score(pixels: FloatArray, labels: Sequence[str]) -> FloatArray:
        (scores,) = recognizer.score_batches([pixels], recognizer.vocabulary(labels))
        return scores

    return score


def _compare(expected: FloatArray, got: FloatArray, arch: Arch) -> Case:
    exact, found = (compared(scores, arch.gives_probabilities) for scores in (expected, got))
    errors, unit = score_errors(exact, found), unit_of(exact)
    batch, labels = expected.shape
    return Case(
        batch, labels, errors.largest / unit, errors.mean / unit, agreement(expected, got, 1), overlap(expected, got, 5)
    )
