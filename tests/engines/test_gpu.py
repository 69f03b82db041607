"""What only a GPU shows: captured passes, vocabularies swapped under them, memory, tuning that processes share."""

from __future__ import annotations

import logging
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import triton

from benchmarks.random_weights import VARIANTS, save, sigrl_shapes, tensors, text_shapes
from sigrl_deploy import Recognizer
from sigrl_deploy.config import FUSED, Arch, Precision
from sigrl_deploy.engines import gpu_engine
from sigrl_deploy.engines.onnxruntime import CUDA, has_provider
from sigrl_deploy.engines.options import EngineOptions
from sigrl_deploy.export.options import ExportOptions
from sigrl_deploy.export.run import export_bundle
from sigrl_deploy.kernels import cases, tuning
from sigrl_deploy.kernels.match import match
from sigrl_deploy.kernels.svfr import decouple
from sigrl_deploy.model.sigrl import match as plain_match
from sigrl_deploy.pictures.reading import read_image
from sigrl_deploy.vocabulary.vocabulary import Vocabulary

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
LABELS = ["cat", "cup", "person", "rocket", "sky"]
OPEN_IMAGES = 7586


@pytest.fixture(scope="module", params=[Precision.FP32, Precision.FP16, Precision.BF16])
def exported(request: pytest.FixtureRequest, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Precision]:
    """The tiny model with its weights, in one precision."""
    out, text_tower = tmp_path_factory.mktemp("gpu") / "bundle", str(weights / "text.pth")
    export_bundle(ExportOptions(weights / "sigrl.pth", out, text_tower=text_tower, precisions=(request.param,), weights=True))
    return out, request.param


def scores(recognizer: Recognizer, photos: list[Path], labels: list[str]) -> np.ndarray:
    pixels = np.stack([recognizer.pixels(path) for path in photos])
    return recognizer.score_pixels(pixels, recognizer.vocabulary(labels))


def test_captured_passes_score_as_the_cpu_does(
    exported: tuple[Path, Precision], bundle: Path, photos: list[Path], label_file: Path
) -> None:
    """Several vocabularies and batches through the same captured passes, in turn, against the fp32 graphs on the CPU."""
    out, precision = exported
    gpu, cpu = Recognizer(out, backend="torch", device="cuda"), Recognizer(bundle, device="cpu", backend="onnxruntime")
    assert all(op in gpu.engine.description for op in FUSED)
    many = [label for label in label_file.read_text().split("\n") if label][:70]
    for labels in (LABELS, many, LABELS[::-1], LABELS[:1], many[::-1]):
        for count in (1, 3, 2):
            assert np.abs(scores(gpu, photos[:count], labels) - scores(cpu, photos[:count], labels)).max() < precision.tolerance


def test_a_replay_equals_the_plain_pass(exported: tuple[Path, Precision], photos: list[Path]) -> None:
    """The same kernels on the same numbers, whatever the buffers held before; cuBLAS may choose another order of sums."""
    recognizer = Recognizer(exported[0], backend="torch", device="cuda")
    engine = recognizer.engine
    for labels in (LABELS, LABELS[:2], LABELS):
        vocabulary = recognizer.vocabulary(labels)
        for count in (4, 2):
            pixels = np.stack([recognizer.pixels(path) for path in photos[:count]])
            with engine.running():
                plain = engine.forward(torch.from_numpy(pixels).cuda(), engine.on_device(vocabulary)).cpu().numpy()
            difference = engine.score(pixels, vocabulary) - plain[:, : len(labels)]
            assert np.abs(difference).max() < exported[1].tolerance / 10


def test_another_vocabulary_of_a_known_size_prepares_nothing(
    exported: tuple[Path, Precision], photos: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    recognizer = Recognizer(exported[0], backend="torch", device="cuda")
    with caplog.at_level(logging.INFO):
        for labels in (LABELS, LABELS[:3], [f"{label} {i}" for label in LABELS for i in range(12)]):
            scores(recognizer, photos[:2], labels)
    assert caplog.text.count("prepared for 2 pictures and 64 labels") == 1


def test_uint8_scores_as_fp32_does(exported: tuple[Path, Precision], photos: list[Path]) -> None:
    """Within 1e-6 in fp32, where cuBLAS may choose another order of sums for no other reason than another graph."""
    recognizer = Recognizer(exported[0], backend="torch", device="cuda")
    vocabulary, preprocess = recognizer.vocabulary(LABELS), recognizer.bundle.manifest.preprocess
    small = np.stack([recognizer.pixels(path) for path in photos[:3]])
    wide = np.stack([preprocess(read_image(path)) for path in photos[:3]])
    assert (small.dtype, wide.dtype) == (np.uint8, np.float32)
    tolerance = 1e-6 if exported[1] is Precision.FP32 else exported[1].tolerance / 10
    for count in (3, 1):
        difference = recognizer.score_pixels(small[:count], vocabulary) - recognizer.score_pixels(wide[:count], vocabulary)
        assert np.abs(difference).max() <= tolerance


def test_batches_in_a_row_score_as_one_by_one(exported: tuple[Path, Precision], photos: list[Path]) -> None:
    """Copied to the GPU while others run; from two threads with a vocabulary each; after a row that nobody ended."""
    recognizer = Recognizer(exported[0], backend="torch", device="cuda")
    pixels = np.stack([recognizer.pixels(path) for path in photos[:4]])
    parts = [pixels[np.random.default_rng(seed).permutation(4)[: 1 + seed % 4]] for seed in range(40)]
    vocabularies = [recognizer.vocabulary(labels) for labels in (LABELS, LABELS[::-1][:3])]
    expected = [[recognizer.score_pixels(part, vocabulary) for part in parts] for vocabulary in vocabularies]
    next(recognizer.score_batches(iter(parts), vocabularies[0]))

    def in_a_row(vocabulary: Vocabulary) -> list[np.ndarray]:
        return list(recognizer.score_batches(iter(parts), vocabulary))

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(in_a_row, vocabularies))
    for mine, others in zip(found, expected, strict=True):
        for scores, other in zip(mine, others, strict=True):
            assert np.abs(scores - other).max() < exported[1].tolerance / 10


def test_graphs_share_memory_and_go_together(
    exported: tuple[Path, Precision], photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All on one stream, without which torch shares nothing; more sizes than are kept, each again after the others went."""
    monkeypatch.setattr(gpu_engine, "MOST_GRAPHS", 3)
    recognizer = Recognizer(exported[0], backend="torch", device="cuda")
    vocabulary, pixels = recognizer.vocabulary(LABELS), np.stack([recognizer.pixels(path) for path in photos[:4]])
    sizes = [np.concatenate([pixels] * 4)[:count] for count in (16, 8, 4, 2, 1)]
    first = [recognizer.score_pixels(part, vocabulary) for part in sizes[:3]]
    memory = recognizer.engine._pool.memory
    segments = [part for part in torch.cuda.memory_snapshot() if tuple(part["segment_pool_id"]) == tuple(memory)]
    assert len({part["stream"] for part in segments}) == 1
    for _ in range(2):
        again = [recognizer.score_pixels(part, vocabulary) for part in sizes]
        for scores, other in zip(again, first, strict=False):
            assert np.abs(scores - other).max() < exported[1].tolerance / 10
    assert recognizer.engine._pool.memory != memory


@pytest.mark.skipif(not has_provider(CUDA), reason="this onnxruntime has no CUDA provider")
def test_onnx_runtimes_tower_with_the_kernels_behind_it_scores_as_the_cpu_does(
    exported: tuple[Path, Precision], bundle: Path, photos: list[Path]
) -> None:
    out, precision = exported
    if precision is Precision.BF16:
        pytest.skip("whether the CUDA provider has all operators in bf16 is not known")
    gpu, cpu = Recognizer(out, backend="onnxruntime", device="cuda"), Recognizer(bundle, device="cpu", backend="onnxruntime")
    assert "fused match svfr behind it" in gpu.engine.description
    vocabulary, pixels = cpu.vocabulary(LABELS), np.stack([cpu.pixels(path) for path in photos[:3]])
    strided = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    for mine, other in zip(gpu.engine.encode(strided, vocabulary), cpu.engine.encode(pixels, vocabulary), strict=True):
        assert mine is not None
        assert other is not None
        assert np.abs(mine - other).max() < 4 * precision.tolerance * np.abs(other).max()
    for labels in (LABELS, LABELS[:2], LABELS):
        for count in (1, 3, 2):
            assert np.abs(scores(gpu, photos[:count], labels) - scores(cpu, photos[:count], labels)).max() < precision.tolerance


@pytest.mark.parametrize("op", FUSED)
def test_an_op_that_is_switched_off(exported: tuple[Path, Precision], photos: list[Path], op: str) -> None:
    out, precision = exported
    fused, plain = (
        Recognizer(out, backend="torch", device="cuda", options=EngineOptions(unfused=frozenset(ops)), cache_dir=False)
        for ops in ((), (op,))
    )
    assert np.abs(scores(fused, photos[:3], LABELS) - scores(plain, photos[:3], LABELS)).max() < precision.tolerance


def test_labels_of_open_images_take_less_than_4_gb(tmp_path: Path) -> None:
    """ViT-B/16 in bf16, random weights: label graph, SVFR and matching at 7,586 labels, one picture and sixteen."""
    save(tmp_path / "sigrl.pth", tensors(sigrl_shapes(VARIANTS["vit-b16"])))
    save(tmp_path / "text.pth", tensors(text_shapes(VARIANTS["vit-b16"])))
    text_tower, out = str(tmp_path / "text.pth"), tmp_path / "bundle"
    export_bundle(ExportOptions(tmp_path / "sigrl.pth", out, text_tower=text_tower, precisions=(Precision.BF16,), weights=True))
    torch.cuda.reset_peak_memory_stats()
    recognizer = Recognizer(out, backend="torch", device="cuda")
    vocabulary = recognizer.vocabulary([f"label {i}" for i in range(OPEN_IMAGES)])
    for count in (1, 16):
        found = recognizer.score_pixels(np.zeros((count, 3, 224, 224), np.float32), vocabulary)
        assert found.shape == (count, OPEN_IMAGES)
        assert np.isfinite(found).all()
    assert torch.cuda.max_memory_reserved() < 4e9


def test_processes_share_what_was_tuned(exported: tuple[Path, Precision], photos: list[Path], tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("\n".join(LABELS))
    command = [
        sys.executable,
        "-m",
        "sigrl_deploy",
        "infer",
        str(photos[0]),
        "--bundle",
        str(exported[0]),
        "--backend",
        "torch",
    ]
    command += ["--device", "cuda", "--labels", str(tmp_path / "labels.txt"), "--cache-dir", str(tmp_path / "cache")]
    first, second = (subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(2))
    assert "first run on this GPU" in first.stderr
    assert "tuned by an earlier run" in second.stderr
    assert first.stdout == second.stdout


def test_what_was_compiled_ahead_is_compiled_no_more(tmp_path: Path) -> None:
    """By several threads, for the sizes that are then measured."""
    tuning.keep_compiled(tmp_path)
    shape, compiled = cases.Shape(1, 64, 5), []
    found = cases.cases(cases.Sizes(Arch.SIGRL, 25, 80, 4), torch.float16, torch.device("cuda"), FUSED, shape)
    runs = [partial(case.run, how) for case in found for how in case.candidates]
    tuning.compile_ahead(runs)
    triton.knobs.compilation.listener = lambda **values: compiled.append(values)
    try:
        with torch.cuda.stream(torch.cuda.Stream()):
            assert all(tuning.milliseconds(run) > 0 for run in runs)
    finally:
        triton.knobs.compilation.listener = None
    assert compiled == []


def test_more_labels_than_a_grid_s_second_axis_has() -> None:
    torch.manual_seed(0)
    labels = torch.randn(70_000, 16, device="cuda")
    patches, weight = torch.randn(1, 9, 16, device="cuda"), torch.randn(16, 16, device="cuda")
    assert torch.allclose(decouple(patches, labels, weight)[:, -5:], decouple(patches, labels[-5:], weight), atol=1e-5)
    exact = plain_match(Arch.MKT, patches.double(), patches[:, 0].double(), labels.double(), 4)
    assert (match(patches, patches[:, 0], labels, 4)[0].double() - exact).norm() <= 1e-6 * exact.norm()
