"""Every backend on a CPU in every precision that it runs there: what the README's table calls tested."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks.support import run_by_tests
from sigrl_deploy import Recognizer
from sigrl_deploy.config import Backend, Device, Precision

LABELS = ["cat", "cup", "person", "rocket", "sky", "tree", "boat"]


@pytest.fixture(scope="module")
def exported(export_tiny: Callable[..., Path]) -> Path:
    """A bundle in every precision, with weights for PyTorch."""
    return export_tiny(*Precision, weights=True)


@pytest.mark.parametrize(("backend", "device", "precision"), run_by_tests(), ids=lambda member: member.value)
def test_it_scores_as_onnx_runtime_in_fp32_does(
    backend: Backend, device: Device, precision: Precision, exported: Path, photos: list[Path]
) -> None:
    ours, reference = (
        Recognizer(exported, backend=b, device=device, precision=p, cache_dir=False)
        for b, p in ((backend, precision), (Backend.ONNXRUNTIME, Precision.FP32))
    )
    assert (ours.engine.precision, ours.engine.device) == (precision, device.value)
    scores, expected = (
        recognizer.score_pixels(np.stack([recognizer.pixels(path) for path in photos[:3]]), recognizer.vocabulary(LABELS))
        for recognizer in (ours, reference)
    )
    assert np.abs(scores - expected).max() < precision.tolerance
