"""A bundle of an SCPNet checkpoint, from export to tags."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sigrl_deploy import Recognizer
from sigrl_deploy.checkpoints.options import SCPNetOptions
from sigrl_deploy.config import Backend
from sigrl_deploy.engines.options import EngineOptions
from sigrl_deploy.errors import LabelError, UsageError
from sigrl_deploy.evaluation.verify import VerifyOptions, verify
from sigrl_deploy.export.options import ExportOptions
from sigrl_deploy.export.run import export_bundle
from tests.support import scpnet_files
from tests.support.paths import ROOT
from tests.support.refusals import assert_refused, refused

TOLERANCE = 1e-5  # of the largest value, as in tests/checkpoints/test_scpnet.py
GOLDEN = np.load(ROOT / "tests" / "golden" / "scpnet_tiny.npz")


def logits(scores: np.ndarray) -> np.ndarray:
    return np.log(scores.astype(np.float64) / (1 - scores.astype(np.float64)))


@pytest.mark.parametrize("backend", [Backend.ONNXRUNTIME, Backend.TORCH, Backend.OPENVINO])
@pytest.mark.parametrize("batch", [1, 3])
def test_published_numbers(backend: Backend, batch: int, scpnet_bundle: Path) -> None:
    options = EngineOptions(backend, "cpu", "fp32")
    with Recognizer(scpnet_bundle, cache_dir=False, options=options) as recognizer:
        vocabulary = recognizer.vocabulary(list(scpnet_files.LABELS))
        pixels = scpnet_files.pixels(int(GOLDEN["batch"]), int(GOLDEN["image_seed"]))[:batch]
        (scores,) = recognizer.score_batches([pixels], vocabulary)
    assert np.abs(scores - GOLDEN["scores"][:batch]).max() < TOLERANCE * GOLDEN["scores"].max()
    assert np.abs(logits(scores) - GOLDEN["logits"][:batch]).max() < TOLERANCE * np.abs(GOLDEN["logits"]).max()


def test_some_of_its_labels_have_the_same_scores(scpnet_bundle: Path, photos: list[Path]) -> None:
    with Recognizer(scpnet_bundle, cache_dir=False, device="cpu") as recognizer:
        chosen = ["person", "cat", "boat"]
        some, every = (recognizer.scores(photos, labels) for labels in (chosen, list(scpnet_files.LABELS)))
        columns = [scpnet_files.LABELS.index(label) for label in chosen]
        np.testing.assert_allclose(some, every[:, columns], rtol=1e-6)  # numpy's sums of another number of rows
        assert_refused(lambda: recognizer.vocabulary(["cat", "zebra"]), LabelError, "zebra", "scpnet", "20 labels")


def test_scores_are_probabilities(scpnet_bundle: Path, photos: list[Path]) -> None:
    with Recognizer(scpnet_bundle, cache_dir=False, device="cpu") as recognizer:
        (predictions,) = recognizer.recognize(photos[:1], ["cat"], threshold=0.0)
        assert 0 < predictions[0].score < 1
        assert predictions[0].probability == predictions[0].score
        refuse = lambda: recognizer.recognize(photos[:1], ["cat"], evidence=True)  # noqa: E731
        assert refused(refuse)[0] == "evidence"


def test_every_precision_is_near(scpnet_bundle: Path, photos: list[Path], tmp_path: Path) -> None:
    found = verify(VerifyOptions(scpnet_bundle, [str(path) for path in photos], device="cpu", cache_dir=tmp_path))
    assert {comparison.precision for comparison in found.comparisons} >= {"fp32", "fp16", "bf16", "int8x3"}
    assert all(comparison.within for comparison in found.comparisons)


def test_the_manifest_says_what_it_was_made_of(scpnet_bundle: Path) -> None:
    manifest = json.loads((scpnet_bundle / "manifest.json").read_text())
    assert manifest["arch"] == "scpnet"
    assert manifest["context_length"] is None
    assert (manifest["preprocess"]["resize_mode"], manifest["preprocess"]["interpolation"]) == ("short-side", "bilinear")
    source = manifest["source"]
    assert source["settings"] == {"sparse_topk": 6, "reweight": 0.2, "scale": 10.0}
    assert source["relation"]["file"] == "relation.npy"
    assert all(
        variant["parity"]["largest_error"] <= variant["parity"]["tolerance"] for variant in manifest["variants"].values()
    )


def test_exports_that_are_refused(scpnet: Path, weights: Path, without_text: dict[str, Path], tmp_path: Path) -> None:
    checkpoint, out, voc = scpnet / "scpnet.ckpt", tmp_path / "out", SCPNetOptions(scpnet / "relation.npy", "voc")
    labels = scpnet / "labels.txt"
    (tmp_path / "19.txt").write_text("\n".join(scpnet_files.LABELS[:19]))

    def argument(options: ExportOptions) -> str:
        return refused(lambda: export_bundle(options), UsageError)[0]

    assert argument(ExportOptions(checkpoint, out, scpnet=voc)) == "labels"
    assert argument(ExportOptions(checkpoint, out, labels=tmp_path / "19.txt", scpnet=voc)) == "labels"
    assert argument(ExportOptions(checkpoint, out, labels=labels)) == "sparse_topk"
    assert argument(ExportOptions(checkpoint, out, labels=labels, template="a {label}", scpnet=voc)) == "template"
    embedded = ExportOptions(checkpoint, out, labels=labels, label_embeddings=without_text["label_embeddings"], scpnet=voc)
    assert argument(embedded) == "label_embeddings"
    assert argument(ExportOptions(weights / "mkt.pth", out, scpnet=SCPNetOptions(preset="voc"), **without_text)) == "preset"
    assert not out.exists()
