"""The PyTorch engine against ONNX Runtime: plain, with each op as a kernel (in the interpreter), and on a GPU where one is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from random_weights import VARIANTS, save, tensors, vision_shapes

from sigrl_deploy import Recognizer
from sigrl_deploy.bundle import Bundle
from sigrl_deploy.cli import main
from sigrl_deploy.config import Arch, Precision
from sigrl_deploy.engines.torch import FUSED, TorchEngine, bucket
from sigrl_deploy.errors import UsageError
from sigrl_deploy.export.bundle import ExportOptions, export_bundle

LABELS = ["cat", "cup", "person", "rocket", "sky"]


@pytest.fixture(scope="module")
def options(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportOptions:
    out = tmp_path_factory.mktemp("torch") / "bundle"
    return ExportOptions(weights / "sigrl.pth", out, text_tower=str(weights / "text.pth"), weights=True)


@pytest.fixture(scope="module")
def with_weights(options: ExportOptions) -> Path:
    export_bundle(options)
    return options.out


def scores(recognizer: Recognizer, photos: list[Path], labels: list[str]) -> np.ndarray:
    pixels = np.stack([recognizer.pixels(path) for path in photos])
    return recognizer.score_pixels(pixels, recognizer.vocabulary(labels))


def test_it_scores_as_onnx_runtime_does(with_weights: Path, photos: list[Path], label_file: Path) -> None:
    """From its own text tower and label graph on; fp32 in another order of operations."""
    ours = Recognizer(with_weights, backend="torch", device="cpu", cache_dir=False)
    theirs = Recognizer(with_weights, backend="onnxruntime", device="cpu", cache_dir=False)
    assert ours.engine.description.startswith("PyTorch")
    for labels in (LABELS[:1], LABELS):
        assert np.abs(scores(ours, photos, labels) - scores(theirs, photos, labels)).max() < 1e-5
    (mine,), (other,) = (r.recognize(photos[:1], r.vocabulary(label_file), top=3, evidence=True) for r in (ours, theirs))
    assert [tag.label for tag in mine] == [tag.label for tag in other]
    assert mine[0].evidence is not None
    assert np.allclose(mine[0].evidence, other[0].evidence, atol=1e-4 * np.abs(other[0].evidence).max())


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels run on the GPU here, not in the interpreter")
@pytest.mark.parametrize("fused", [("svfr",), ("match",), ("gmc",), FUSED])
def test_each_kernel_takes_the_place_of_its_plain_form(with_weights: Path, photos: list[Path], fused: tuple[str, ...]) -> None:
    """The vocabulary is padded to a bucket of 64 then."""
    bundle = Bundle(with_weights)
    plain, engine = TorchEngine(bundle, "cpu"), TorchEngine(bundle, "cpu", fused)
    recognizer = Recognizer(with_weights, backend="torch", device="cpu", cache_dir=False)
    vocabulary = recognizer.vocabulary(LABELS[:3])
    pixels = recognizer.pixels(photos[0])[None]
    assert np.abs(engine.score(pixels, vocabulary) - plain.score(pixels, vocabulary)).max() < 1e-5
    projections = [e.project_graph(vocabulary.label_embedding) for e in (engine, plain)]
    assert np.allclose(*projections, rtol=0, atol=1e-5 * np.abs(projections[1]).max())


@pytest.mark.parametrize("arch", [Arch.MKT, Arch.CLIP_FT, Arch.CLIP])
def test_other_architectures(arch: Arch, weights: Path, tmp_path: Path, photos: list[Path]) -> None:
    save(tmp_path / "mkt.pth", tensors(vision_shapes(VARIANTS["tiny"])))
    text_tower = str(weights / "text.pth")
    export_bundle(ExportOptions(tmp_path / "mkt.pth", tmp_path / "out", arch=arch, text_tower=text_tower, weights=True))
    ours, theirs = (Recognizer(tmp_path / "out", backend=b, device="cpu", cache_dir=False) for b in ("torch", "onnxruntime"))
    assert np.abs(scores(ours, photos, LABELS) - scores(theirs, photos, LABELS)).max() < 1e-5


def test_infer_takes_a_backend_and_says_which(with_weights: Path, bundle: Path, photos: list[Path], tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("\n".join(LABELS))
    arguments = ["infer", str(photos[0]), "--labels", str(tmp_path / "labels.txt"), "--device", "cpu", "--format", "csv"]
    tables = {}
    for backend in ("torch", "onnxruntime"):
        done = CliRunner().invoke(main, [*arguments, "--bundle", str(with_weights), "--backend", backend])
        assert done.exit_code == 0, done.output
        tables[backend] = [line.split(",")[1] for line in done.stdout.splitlines()]
    assert tables["torch"] == tables["onnxruntime"]
    done = CliRunner().invoke(main, [*arguments, "--bundle", str(bundle), "--backend", "torch"])
    assert done.exit_code == 2
    assert "holds no weights for PyTorch; export it with --weights" in done.output
    with pytest.raises(UsageError, match="backend 'tensorrt': expected one of auto, onnxruntime, torch"):
        Recognizer(bundle, backend="tensorrt")


def test_buckets_are_powers_of_two() -> None:
    assert [bucket(n) for n in (1, 2, 3, 64, 65, 1006)] == [1, 2, 4, 64, 128, 1024]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16, Precision.BF16])
def test_captured_passes_on_a_gpu(
    options: ExportOptions, with_weights: Path, photos: list[Path], label_file: Path, precision: Precision
) -> None:
    """Several vocabularies and batches through the same captured passes, in turn, against the plain fp32 model on the CPU."""
    out = options.out.with_name(f"gpu-{precision.value}")
    export_bundle(replace(options, out=out, precisions=(precision,)))
    gpu = Recognizer(out, backend="torch", device="cuda", cache_dir=False)
    cpu = Recognizer(with_weights, backend="torch", device="cpu", cache_dir=False)
    assert all(op in gpu.engine.description for op in FUSED)
    every = label_file.read_text().split("\n")[:70]
    for labels in (LABELS, [label for label in every if label], LABELS[::-1], LABELS[:1]):
        for count in (1, 3, 2):
            difference = np.abs(scores(gpu, photos[:count], labels) - scores(cpu, photos[:count], labels)).max()
            assert difference < precision.tolerance
