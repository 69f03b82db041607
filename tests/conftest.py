"""Small random-weight checkpoints and bundles, made once a test run: real files, the real exporter, real ONNX Runtime."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

# Each process of `pytest -n` keeps to one core, before pools of threads are made: each pool would take all cores.
if "PYTEST_XDIST_WORKER" in os.environ and hasattr(os, "sched_setaffinity"):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw")) % len(cores)]})

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported: kernels then run on the CPU

from benchmarks.random_weights import VARIANTS, save, sigrl_shapes, tensors, text_shapes, vision_shapes
from sigrl_deploy.architectures import Contract
from sigrl_deploy.checkpoints.native import TrainedRecord, write_trained
from sigrl_deploy.cli.main import main
from sigrl_deploy.config import Precision
from sigrl_deploy.export import onnx as onnx_export
from sigrl_deploy.export.options import ExportOptions
from sigrl_deploy.export.parity import LABELS, PHOTOS
from sigrl_deploy.export.run import export_bundle
from sigrl_deploy.training.models import new_clip
from tests.support import ml2p_files, scpnet_files, vgg_files
from tests.support.exports import once
from tests.support.sharing import Shared
from tests.support.training_runs import LABELS as COLOURS
from tests.support.training_runs import TINY

# Files that take longest. They are started first, so that none is left to run alone at the end.
SLOWEST = (
    "bulk/test_cluster.py",
    "kernels/test_cpu_svfr.py",
    "training/test_training.py",
    "benchmarks/test_gpu_once.py",
    "export/test_export.py",
    "kernels/test_compile.py",
    "serve/test_chaos.py",
    "tensorrt/test_build.py",
    "tensorrt/test_sizes.py",
    "benchmarks/test_benchmarks.py",
    "cli/test_demo.py",
    "bulk/test_faults.py",
    "checkpoints/test_hostile_checkpoints.py",
    "kernels/test_kernels.py",
    "engines/test_torch.py",
)

_SEVERAL = (Precision.FP32, Precision.FP16, Precision.INT8X3)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {Path(__file__).parent / name: number for number, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: order.get(item.path, len(order)))


@pytest.fixture
def show(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Prints a text below the results, from whichever process ran the test."""
    return partial(record_property, "shown")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for status in ("passed", "failed") for report in terminalreporter.stats.get(status, [])]
    texts = [text for report in reports for name, text in report.user_properties if name == "shown"]
    if texts:
        terminalreporter.section("measured")
        terminalreporter.write_line("\n".join(texts))


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes the user's cache."""
    os.environ["SIGRL_DEPLOY_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    del os.environ["SIGRL_DEPLOY_CACHE"]


@pytest.fixture(scope="session", autouse=True)
def _translations_are_read_once() -> None:
    """torch reads the source of its 500 translations to ONNX again at every export, which takes half a second."""
    from torch.onnx._internal._lazy_import import onnxscript_apis

    onnxscript_apis.get_torchlib_ops = cache(onnxscript_apis.get_torchlib_ops)


@pytest.fixture(scope="session", autouse=True)
def _triton_s_interpreter_is_quick() -> None:
    from tests.support.triton_interpreter import quicken

    quicken()


@pytest.fixture(scope="session", autouse=True)
def _collections_are_rare() -> None:
    """Python would look again and again for what it could free among the million objects of the packages that are imported."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture
def no_gradients() -> Iterator[None]:
    """Inference, on numbers that are the same every time."""
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    yield
    torch.set_grad_enabled(True)


@pytest.fixture(scope="session")
def photos() -> list[Path]:
    return sorted(PHOTOS.glob("*.jpg"))


@pytest.fixture(scope="session")
def label_file() -> Path:
    return LABELS


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    """Folders that all processes of the run share."""
    return Shared(tmp_path_factory)


@pytest.fixture(scope="session", autouse=True)
def _graphs_are_exported_once(shared: Shared) -> None:
    onnx_export._export = once(onnx_export._export, shared)


@pytest.fixture(scope="session")
def weights(shared: Shared) -> Path:
    """A folder with `sigrl.pth` (80 px, 25 patches), `mkt.pth` and `text.pth`, the tiny random model."""

    def fill(folder: Path) -> None:
        save(folder / "sigrl.pth", tensors(sigrl_shapes(VARIANTS["tiny"])))
        save(folder / "mkt.pth", tensors(vision_shapes(VARIANTS["tiny"])))
        save(folder / "text.pth", tensors(text_shapes(VARIANTS["tiny"])))

    return shared.folder("weights", fill)


@pytest.fixture(scope="session")
def without_text(shared: Shared) -> dict[str, Path]:
    """Options that take the text tower's place, which takes as long to export as all else."""

    def fill(folder: Path) -> None:
        (folder / "labels.txt").write_text("cat\ncup\nrocket\n")
        torch.save(torch.randn(3, 512, generator=torch.Generator().manual_seed(0)), folder / "embeddings.pt")

    folder = shared.folder("without-text", fill)
    return {"labels": folder / "labels.txt", "label_embeddings": folder / "embeddings.pt"}


@pytest.fixture(scope="session")
def export_tiny(weights: Path, shared: Shared) -> Callable[..., Path]:
    """Exports the tiny model, once with the same options. All tests share the bundles: copy one before changing it."""

    def export(*precisions: Precision, checkpoint: str = "sigrl", **options: Any) -> Path:
        precisions = precisions or (Precision.FP32,)
        name = "-".join([checkpoint, *(p.value for p in precisions), *(f"{key}-{value}" for key, value in options.items())])

        def fill(folder: Path) -> None:
            source, text_tower = weights / f"{checkpoint}.pth", str(weights / "text.pth")
            export_bundle(ExportOptions(source, folder / "tiny", text_tower=text_tower, precisions=precisions, **options))

        return shared.folder(name, fill) / "tiny"

    return export


@pytest.fixture(scope="session")
def bundle(export_tiny: Callable[..., Path]) -> Path:
    """The tiny model exported in fp32. All tests share it: copy it before changing it."""
    return export_tiny()


def export_by_command(
    checkpoint: Path, out: Path, options: dict[str, object], precisions: tuple[Precision, ...] = _SEVERAL
) -> None:
    """`export onnx` in several precisions, with weights."""
    given = [str(part) for option in options.items() for part in option]
    several = [part for precision in precisions for part in ("--precision", precision.value)]
    done = CliRunner().invoke(main, ["export", "onnx", str(checkpoint), "--out", str(out), "--weights", *several, *given])
    assert done.exit_code == 0, done.output


@pytest.fixture(scope="session")
def scpnet(shared: Shared) -> Path:
    """A folder with `scpnet.ckpt`, `relation.npy` and `labels.txt`, a small SCPNet of random weights."""
    return shared.folder("scpnet", scpnet_files.write)


@pytest.fixture(scope="session")
def scpnet_bundle(scpnet: Path, shared: Shared) -> Path:
    """It exported in several precisions, with weights."""

    def fill(folder: Path) -> None:
        files = {"--labels": scpnet / "labels.txt", "--relation": scpnet / "relation.npy"}
        settings = {"--sparse-topk": 6, "--reweight": 0.2, "--scale": "10"}
        export_by_command(scpnet / "scpnet.ckpt", folder / "scpnet", files | settings, (*_SEVERAL, Precision.BF16))

    return shared.folder("scpnet-bundle", fill) / "scpnet"


@pytest.fixture(scope="session")
def vgg(shared: Shared) -> Path:
    """A folder with a small BiAM, a small linear classifier and all that belongs to them; see `vgg_files.write`."""
    return shared.folder("vgg", vgg_files.write)


@pytest.fixture(scope="session")
def biam_bundle(vgg: Path, shared: Shared) -> Path:
    """The small BiAM in several precisions, with weights."""

    def fill(folder: Path) -> None:
        words = {"--labels": vgg / "words.txt", "--word-vectors": vgg / "glove.txt"}
        tower = {"--backbone": vgg / "vgg-tiny.pth", "--heads": 3}
        export_by_command(vgg / "biam.pth", folder / "biam", words | tower)

    return shared.folder("biam-bundle", fill) / "biam"


@pytest.fixture(scope="session")
def linear_bundle(vgg: Path, shared: Shared) -> Path:
    """The small linear classifier in several precisions, with weights."""

    def fill(folder: Path) -> None:
        files = {"--backbone": vgg / "vgg-small.pth", "--labels": vgg / "labels.txt", "--scaling": vgg / "scaling.npz"}
        export_by_command(vgg / "linear.pth", folder / "linear", files)

    return shared.folder("linear-bundle", fill) / "linear"


@pytest.fixture(scope="session")
def ml2p(shared: Shared) -> Path:
    """A folder with a small (ML)²P-Encoder and its word vectors; see `ml2p_files.write`."""
    return shared.folder("ml2p", ml2p_files.write)


@pytest.fixture(scope="session")
def ml2p_bundle(ml2p: Path, shared: Shared) -> Path:
    """It exported in several precisions, with weights."""

    def fill(folder: Path) -> None:
        words = {"--labels": ml2p / "words.txt", "--word-vectors": ml2p / "glove.txt"}
        export_by_command(ml2p / "ml2p.pth", folder / "ml2p", words)

    return shared.folder("ml2p-bundle", fill) / "ml2p"


@pytest.fixture(scope="session")
def tiny_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.json"
    path.write_text(json.dumps(TINY))
    return path


@pytest.fixture(scope="session")
def tiny_clip(tiny_config: Path) -> Path:
    """An untrained CLIP, saved as a checkpoint."""
    torch.manual_seed(0)
    start = new_clip(str(tiny_config), None, Contract.CLIP)
    path = tiny_config.parent / "clip.safetensors"
    write_trained(path, TrainedRecord(start.model.config, start.template, start.preprocess), start.model.state_dict())
    return path


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    """A folder of 17 pictures of one colour each."""
    folder = tmp_path / "data"
    folder.mkdir()
    rng = np.random.default_rng(0)
    lines = ["path,labels"]
    for i in range(17):
        colour = rng.integers(0, 256, 3)
        Image.new("RGB", (50, 60), tuple(map(int, colour))).save(folder / f"{i}.png")
        lines.append(f"{i}.png,{COLOURS[int(colour.argmax())]};{'light' if colour.sum() > 380 else 'dark'}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("labels") / "labels.txt"
    path.write_text("cat\ndog\nrocket\ncup of coffee\nperson\ntree\nhouse\nboat\ntable\nbird\n", encoding="utf-8")
    return path


@pytest.fixture
def model(bundle: Path, labels: Path) -> list[str | Path]:
    return ["--bundle", bundle, "--labels", labels, "--device", "cpu"]


@pytest.fixture(scope="session")
def small(photos: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty different pictures, quick to decode; one of them is broken."""
    folder = tmp_path_factory.mktemp("small")
    with Image.open(photos[0]) as photo:
        for i in range(60):
            photo.crop((i, i, 160 + i, 140 + i)).save(folder / f"{i:02}.jpg")
    (folder / "05.jpg").write_bytes(b"")
    return folder
