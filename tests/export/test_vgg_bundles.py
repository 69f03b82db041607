"""Bundles of BiAM and of a linear classifier, from export to tags."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sigrl_deploy import Recognizer
from sigrl_deploy.checkpoints.loading import load_model
from sigrl_deploy.checkpoints.options import CheckpointOptions
from sigrl_deploy.checkpoints.word_vectors import vector_rows
from sigrl_deploy.config import Arch, Backend, Precision
from sigrl_deploy.engines.options import EngineOptions
from sigrl_deploy.errors import CheckpointError, LabelError, UsageError
from sigrl_deploy.evaluation.verify import VerifyOptions, verify
from sigrl_deploy.export.options import ExportOptions
from sigrl_deploy.export.run import export_bundle
from tests.support import vgg_files
from tests.support.paths import ROOT
from tests.support.refusals import assert_refused, refused

TOLERANCE = 1e-5  # of the largest value, as in tests/checkpoints/test_vgg_models.py
BACKENDS = [Backend.ONNXRUNTIME, Backend.TORCH, Backend.OPENVINO]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("batch", [1, 3])
def test_published_numbers_of_a_linear_classifier(backend: Backend, batch: int, linear_bundle: Path) -> None:
    golden = np.load(ROOT / "tests" / "golden" / "linear_small.npz")
    pixels = vgg_files.pixels(int(golden["batch"]), 64, int(golden["image_seed"]))[:batch]
    with Recognizer(linear_bundle, cache_dir=False, options=EngineOptions(backend, "cpu", "fp32")) as recognizer:
        (scores,) = recognizer.score_batches([pixels], recognizer.vocabulary(list(vgg_files.LINEAR_LABELS)))
    logits = np.log(scores.astype(np.float64) / (1 - scores.astype(np.float64)))
    assert np.abs(logits - golden["logits"][:batch]).max() < TOLERANCE * np.abs(golden["logits"]).max()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("batch", "labels"), [(1, 1), (3, 5)])
@torch.inference_mode()
def test_biam_scores_as_the_pytorch_model(backend: Backend, batch: int, labels: int, biam_bundle: Path, vgg: Path) -> None:
    pixels, names = vgg_files.pixels(batch, 64, seed=1), list(vgg_files.BIAM_LABELS)[:labels]
    loaded = load_model(CheckpointOptions(vgg / "biam.pth", backbone=vgg / "vgg-tiny.pth", heads=3))
    rows = vector_rows(loaded.checkpoint, torch.from_numpy(vgg_files.word_vectors(5, seed=0)[:labels]))
    expected = loaded.model(torch.from_numpy(pixels), rows).numpy()
    with Recognizer(biam_bundle, cache_dir=False, options=EngineOptions(backend, "cpu", "fp32")) as recognizer:
        (scores,) = recognizer.score_batches([pixels], recognizer.vocabulary(names))
    assert np.abs(scores - expected).max() < TOLERANCE * np.abs(expected).max()


def test_biam_shows_where(biam_bundle: Path, photos: list[Path]) -> None:
    with Recognizer(biam_bundle, cache_dir=False, device="cpu") as recognizer:
        (best,) = recognizer.recognize(photos[:1], list(vgg_files.BIAM_LABELS), evidence=True, top=1)
        assert best[0].evidence is not None
        assert best[0].evidence.shape == (4, 4)
        assert best[0].score == pytest.approx(np.sort(best[0].evidence, axis=None)[-6:].mean(), rel=1e-6)
        assert best[0].probability is None
        assert_refused(lambda: recognizer.vocabulary(["zebra"]), LabelError, "zebra", "word vector")


@pytest.mark.parametrize("name", ["biam_bundle", "linear_bundle"])
def test_every_precision_is_near(name: str, photos: list[Path], tmp_path: Path, request: pytest.FixtureRequest) -> None:
    pictures = [str(path) for path in photos]
    found = verify(VerifyOptions(request.getfixturevalue(name), pictures, device="cpu", cache_dir=tmp_path))
    assert {comparison.precision for comparison in found.comparisons} >= {"fp32", "fp16", "int8x3"}
    assert all(comparison.within for comparison in found.comparisons)


def test_own_vectors_in_place_of_gloves(vgg: Path, biam_bundle: Path, tmp_path: Path) -> None:
    """For labels of several words; the same numbers give the same rows."""
    np.save(tmp_path / "vectors.npy", vgg_files.word_vectors(5, seed=0))
    (tmp_path / "labels.txt").write_text("big cat\nhot dog\nrocket\nCoffee\ntree\n")
    own = {"labels": tmp_path / "labels.txt", "label_embeddings": tmp_path / "vectors.npy"}
    export_bundle(ExportOptions(vgg / "biam.pth", tmp_path / "own", backbone=vgg / "vgg-tiny.pth", heads=3, **own))
    rows = [np.load(folder / "vocabulary.npz")["label_embedding"] for folder in (tmp_path / "own", biam_bundle)]
    np.testing.assert_array_equal(*rows)


def test_exports_that_are_refused(vgg: Path, without_text: dict[str, Path], tmp_path: Path) -> None:
    biam = {"backbone": vgg / "vgg-tiny.pth", "heads": 3}
    words = {"labels": vgg / "words.txt", "word_vectors": vgg / "glove.txt"}
    classifier = {"backbone": vgg / "vgg-small.pth", "labels": vgg / "labels.txt", "scaling": vgg / "scaling.npz"}
    out = tmp_path / "out"

    def argument(checkpoint: str, **options: object) -> str:
        return refused(lambda: export_bundle(ExportOptions(vgg / checkpoint, out, **options)), UsageError)[0]  # type: ignore[arg-type]

    assert argument("biam.pth", **biam) == "labels"
    assert argument("biam.pth", **biam, labels=vgg / "words.txt") == "word_vectors"
    assert argument("biam.pth", **biam, **words, label_embeddings=without_text["label_embeddings"]) == "word_vectors"
    (tmp_path / "a.npy").write_bytes(b"no array")
    np.save(tmp_path / "b.npy", np.zeros((4, 300)))
    for name, fact in (("a.npy", "cannot be read"), ("b.npy", "[4, 300]")):
        own = ExportOptions(vgg / "biam.pth", out, **biam, labels=words["labels"], label_embeddings=tmp_path / name)  # type: ignore[arg-type]
        assert_refused(lambda own=own: export_bundle(own), CheckpointError, name, fact)  # type: ignore[misc]
    assert argument("biam.pth", **biam, **words, scaling=vgg / "scaling.npz") == "scaling"
    assert argument("biam.pth", **biam, **words, template="a {label}") == "template"
    assert argument("biam.pth", **biam, **words, precisions=(Precision.INT8,)) == "precisions"
    assert argument("linear.pth", **classifier | {"labels": vgg / "words.txt"}) == "labels"
    assert argument("linear.pth", **classifier | {"scaling": None}) == "scaling"
    assert argument("linear.pth", **classifier, word_vectors=vgg / "glove.txt") == "word_vectors"
    wide = ExportOptions(vgg / "linear.pth", out, **classifier | {"backbone": vgg / "vgg-tiny.pth"})
    assert_refused(lambda: export_bundle(wide), CheckpointError, "linear.pth", "129", "25")  # with the bias
    torch.save(
        torch.load(vgg / "biam.pth") | {"W.weight": torch.zeros(7, 300), "W.bias": torch.zeros(7)}, out.with_suffix(".pth")
    )
    narrow = ExportOptions(out.with_suffix(".pth"), out, **biam, **words)  # type: ignore[arg-type]
    assert_refused(lambda: export_bundle(narrow), CheckpointError, "out.pth", "7", "20")
    assert not out.exists()


def test_weights_of_a_bundle_hold_no_labels(biam_bundle: Path, vgg: Path, tmp_path: Path) -> None:
    words = {"labels": vgg / "words.txt", "word_vectors": vgg / "glove.txt"}
    weights = ExportOptions(biam_bundle / "weights.safetensors", tmp_path / "out", **words)
    assert_refused(lambda: export_bundle(weights), CheckpointError, "weights.safetensors", "the bundle was made from")


def test_architectures(biam_bundle: Path, linear_bundle: Path) -> None:
    manifests = [Recognizer(path, cache_dir=False, device="cpu").bundle.manifest for path in (biam_bundle, linear_bundle)]
    assert [manifest.arch for manifest in manifests] == [Arch.BIAM, Arch.LINEAR]
    assert [manifest.preprocess.description for manifest in manifests] == ["squash", "squash"]
    assert [manifest.topk for manifest in manifests] == [6, 16]
