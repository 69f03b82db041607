"""The PyTorch engine against ONNX Runtime: plain, and with each op as a kernel in the interpreter."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor

from sigrl_deploy import Recognizer
from sigrl_deploy.bundle.bundle import Bundle
from sigrl_deploy.cli.main import main
from sigrl_deploy.config import FUSED, Arch, Device, GraphConfig, ModelConfig, Precision, TextConfig
from sigrl_deploy.engines.cuda_graphs import GpuVocabulary, bucket
from sigrl_deploy.engines.gpu_memory import check_room, pass_bytes
from sigrl_deploy.engines.options import EngineOptions
from sigrl_deploy.engines.torch import TorchEngine
from sigrl_deploy.errors import UsageError
from sigrl_deploy.image_towers import VisionConfig
from sigrl_deploy.model.sigrl import SigRL
from tests.support.refusals import assert_refused, refused

LABELS = ["cat", "cup", "person", "rocket", "sky"]


@pytest.fixture(scope="module")
def with_weights(export_tiny: Callable[..., Path]) -> Path:
    return export_tiny(weights=True)


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
    plain, engine = (
        TorchEngine(bundle, Device.CPU, Precision.FP32),
        TorchEngine(bundle, Device.CPU, Precision.FP32, fused=fused),
    )
    recognizer = Recognizer(with_weights, backend="torch", device="cpu", cache_dir=False)
    vocabulary = recognizer.vocabulary(LABELS[:3])
    pixels = recognizer.pixels(photos[0])[None]
    assert np.abs(engine.score(pixels, vocabulary) - plain.score(pixels, vocabulary)).max() < 1e-5
    projections = [e.project_graph(vocabulary.label_embedding) for e in (engine, plain)]
    assert np.allclose(*projections, rtol=0, atol=1e-5 * np.abs(projections[1]).max())


@pytest.mark.parametrize("arch", [Arch.MKT, Arch.CLIP_FT, Arch.CLIP])
def test_other_architectures(arch: Arch, export_tiny: Callable[..., Path], photos: list[Path]) -> None:
    out = export_tiny(checkpoint="mkt", arch=arch, weights=True)
    ours, theirs = (Recognizer(out, backend=b, device="cpu", cache_dir=False) for b in ("torch", "onnxruntime"))
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
    assert "holds no weights for PyTorch; export it again with `weights`" in done.output
    assert refused(lambda: Recognizer(bundle, backend="trt")) == ("backend", "trt")


def test_threads_are_pytorchs_where_they_are_asked_for(with_weights: Path) -> None:
    before = torch.get_num_threads()
    try:
        Recognizer(with_weights, backend="torch", device="cpu", cache_dir=False)
        assert torch.get_num_threads() == before
        Recognizer(with_weights, backend="torch", device="cpu", cache_dir=False, threads=before + 1)
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_buckets_are_powers_of_two() -> None:
    assert [bucket(n) for n in (1, 2, 3, 64, 65, 1006)] == [1, 2, 4, 64, 128, 1024]


class SmallEngine(TorchEngine):
    """Runs out of memory at more than `room` pictures, as a GPU may."""

    room = 2

    def forward(self, pixels: Tensor, vocabulary: GpuVocabulary) -> Tensor:
        self.tried.append(len(pixels))
        if len(pixels) > self.room:
            raise torch.OutOfMemoryError("out of memory")
        return super().forward(pixels, vocabulary)


def test_a_batch_without_room_is_split_and_not_tried_again(
    with_weights: Path, photos: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    recognizer = Recognizer(with_weights, backend="torch", device="cpu", cache_dir=False)
    vocabulary = recognizer.vocabulary(LABELS)
    pixels = np.stack([recognizer.pixels(path) for path in [*photos, *photos][:7]])
    engine = SmallEngine(recognizer.bundle, Device.CPU, Precision.FP32)
    engine.tried = []
    for _ in range(2):
        assert np.allclose(engine.score(pixels, vocabulary), recognizer.score_pixels(pixels, vocabulary), atol=1e-6)
    assert engine.tried == [7, 4, 2, 2, 2, 1, 2, 2, 2, 1]
    assert "no room for 7 pictures at once; from now on 4 are" in caplog.text
    engine.room = 0
    assert_refused(lambda: engine.score(pixels, vocabulary), UsageError, "5 labels", "`device='cpu'`")


def test_a_vocabulary_of_thousands_fits_a_small_gpu() -> None:
    """ViT-B/16 in bf16 with the labels of Open Images, in a bucket of 8,192: with its model in 4 GB, of one picture or 16."""
    size = {"patches": 196, "dim": 512, "itemsize": 2, "parts": 16}
    with torch.device("meta"):
        vision, text = VisionConfig(224, 16, 768, 12, 12), TextConfig(512, 12, 8)
        config = ModelConfig(Arch.SIGRL, 512, 16, vision, text, (GraphConfig(512, 4, 32), GraphConfig(128, 1, 512)))
        model = sum(p.numel() for p in SigRL(config).parameters()) * 2
    one, many = (pass_bytes(8192, **size, batch=batch) for batch in (1, 16))
    assert 4 * 8192 * 512 * 2 < one < many < 4e9 - model  # T and G Wbᵀ are there twice at least
    assert pass_bytes(8192, **size, graph=False) < one
    check_room(7586, needed=300_000_000, free=300_000_000)
    small = partial(check_room, 7586, needed=300_000_000, free=200_000_000)
    assert_refused(small, UsageError, "7586 labels", "0.3 GB", "0.2 GB")


def test_switches_of_the_command_line(with_weights: Path, bundle: Path, photos: list[Path], tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("\n".join(LABELS))
    arguments = ["infer", *map(str, photos), "--labels", str(tmp_path / "labels.txt"), "--device", "cpu", "--format", "csv"]

    def run(*options: str) -> Result:
        return CliRunner().invoke(main, [*arguments, *options])

    plain = run("--bundle", str(with_weights), "--backend", "torch")
    resized = run("--bundle", str(with_weights), "--backend", "torch", "--device-preprocess")
    assert (resized.exit_code, resized.stdout) == (0, plain.stdout)
    for options, message in (
        (["--unfused", "gmc"], "--unfused gmc: nothing is fused here; leave it out, or use --backend torch on a GPU"),
        (["--device-preprocess"], "--device-preprocess: this backend does not resize pictures on its device; leave it out"),
    ):
        done = run("--bundle", str(bundle), *options)
        assert done.exit_code == 2
        assert message in done.output
    done = run("--bundle", str(with_weights), "--backend", "torch", "--unfused", "svfr")
    assert done.exit_code == 2
    assert "--unfused svfr: nothing is fused here" in done.output
    build = ["labels", "build", str(tmp_path / "labels.txt"), "--bundle", str(bundle), "--device", "cpu", "--unfused", "gmc"]
    assert "nothing is fused here" in CliRunner().invoke(main, build).output
    evaluate = ["evaluate", "scenes", "--checkpoint", __file__, "--unfused", "svfr"]
    assert "--unfused svfr: a checkpoint always runs unfused" in CliRunner().invoke(main, evaluate).output
    evaluate[-2:] = ["--precision", "int8"]
    assert "a checkpoint runs in fp32" in CliRunner().invoke(main, evaluate).output
    assert refused(lambda: Recognizer(with_weights, device="cpu", precision="int8")) == ("precision", "int8")
    assert refused(lambda: EngineOptions(unfused=frozenset({"svd"}))) == ("unfused", "svd")


def test_preprocessing_on_the_device_logs_its_drift(
    with_weights: Path, bundle: Path, photos: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        ours = Recognizer(
            with_weights, backend="torch", device="cpu", cache_dir=False, options=EngineOptions(device_preprocess=True)
        )
    (variant,) = ours.bundle.manifest.variants.values()
    drift = variant.parity["device_preprocess_drift"]
    assert f"within {drift:.1e} of those with Pillow" in caplog.text
    theirs = Recognizer(with_weights, backend="torch", device="cpu", cache_dir=False)
    assert np.abs(scores(ours, photos, LABELS) - scores(theirs, photos, LABELS)).max() <= drift
    assert Bundle(bundle).manifest.variants[Precision.FP32].parity["device_preprocess_drift"] is None
