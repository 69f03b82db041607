"""Small random-weight checkpoints and bundles, made once a test run: real files, the real exporter, real ONNX Runtime."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported: kernels then run on the CPU

from random_weights import VARIANTS, save, sigrl_shapes, tensors, text_shapes  # noqa: E402

from sigrl_deploy.export.bundle import ExportOptions, export_bundle  # noqa: E402
from sigrl_deploy.export.parity import LABELS, PHOTOS  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes the user's cache."""
    os.environ["SIGRL_DEPLOY_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    del os.environ["SIGRL_DEPLOY_CACHE"]


@pytest.fixture(scope="session")
def photos() -> list[Path]:
    return sorted(PHOTOS.glob("*.jpg"))


@pytest.fixture(scope="session")
def label_file() -> Path:
    return LABELS


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `sigrl.pth` (80 px, 25 patches) and `text.pth`, the tiny random model."""
    folder = tmp_path_factory.mktemp("weights")
    save(folder / "sigrl.pth", tensors(sigrl_shapes(VARIANTS["tiny"])))
    save(folder / "text.pth", tensors(text_shapes(VARIANTS["tiny"])))
    return folder


@pytest.fixture(scope="session")
def bundle(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model exported in fp32. Shared by all tests: copy it before changing it."""
    out = tmp_path_factory.mktemp("bundles") / "tiny"
    export_bundle(ExportOptions(weights / "sigrl.pth", out, text_tower=str(weights / "text.pth")))
    return out
