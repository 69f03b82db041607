"""The (ML)²P-Encoder: its bundles, and what is refused. tests/export/test_published_numbers.py has the published numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sigrl_deploy import Recognizer
from sigrl_deploy.checkpoints.loading import load_model
from sigrl_deploy.checkpoints.options import CheckpointOptions
from sigrl_deploy.checkpoints.word_vectors import vector_rows
from sigrl_deploy.config import Backend
from sigrl_deploy.engines.options import EngineOptions
from sigrl_deploy.errors import CheckpointError
from sigrl_deploy.evaluation.verify import VerifyOptions, verify
from sigrl_deploy.export.options import ExportOptions
from sigrl_deploy.export.run import export_bundle
from tests.support import ml2p_files, vgg_files
from tests.support.checkpoints import changed
from tests.support.refusals import assert_refused, refused

# Of the largest value. In fp32 this network is 1e-5 off its value in fp64, since sixteen norms and an unbounded product follow
# each other; leaving out the last shuffle moves scores by 0.7.
TOLERANCE = 5e-5


def error(found: Any, expected: Any) -> float:
    return float(np.abs(np.asarray(found) - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("backend", [Backend.ONNXRUNTIME, Backend.TORCH, Backend.OPENVINO])
@pytest.mark.parametrize(("batch", "labels"), [(1, 1), (3, 5)])
@torch.inference_mode()
def test_a_bundle_scores_as_the_pytorch_model(backend: Backend, batch: int, labels: int, ml2p: Path, ml2p_bundle: Path) -> None:
    pixels = vgg_files.pixels(batch, 64, seed=1)
    loaded = load_model(CheckpointOptions(ml2p / "ml2p.pth"))
    rows = vector_rows(loaded.checkpoint, torch.from_numpy(ml2p_files.word_vectors()[:labels]), raw=False)
    expected = loaded.model(torch.from_numpy(pixels), rows).numpy()
    with Recognizer(ml2p_bundle, cache_dir=False, options=EngineOptions(backend, "cpu", "fp32")) as recognizer:
        (scores,) = recognizer.score_batches([pixels], recognizer.vocabulary(list(ml2p_files.LABELS)[:labels]))
    assert error(scores, expected) < TOLERANCE


def test_every_precision_is_near(ml2p_bundle: Path, photos: list[Path], tmp_path: Path) -> None:
    found = verify(VerifyOptions(ml2p_bundle, [str(path) for path in photos], device="cpu", cache_dir=tmp_path))
    assert {comparison.precision for comparison in found.comparisons} >= {"fp32", "fp16", "int8x3"}
    assert all(comparison.within for comparison in found.comparisons)


def test_groups_are_no_places(ml2p_bundle: Path, photos: list[Path]) -> None:
    manifest = json.loads((ml2p_bundle / "manifest.json").read_text())
    assert (manifest["groups"], manifest["topk"], manifest["preprocess"]["contract"]) == (3, 1, "squash-cifar")
    with Recognizer(ml2p_bundle, cache_dir=False, device="cpu") as recognizer:
        asked = list(ml2p_files.LABELS)
        assert refused(lambda: recognizer.recognize(photos[:1], asked, evidence=True))[0] == "evidence"


DAMAGES: dict[str, tuple[str, Callable[[Tensor], Tensor | None], str]] = {
    "another backbone": ("vgg.features.0.weight", lambda tensor: None, "VGG19-BN"),
    "no third tap": ("ft_module.2.conv.weight", lambda tensor: None, "ft_module.2.conv.weight"),
    "a tap without its norm": ("ft_module.2.bn.running_var", lambda tensor: None, "ft_module.2.bn"),
    "a tap without statistics": ("ft_module.2.bn.running_*", lambda tensor: None, "ft_module.2.bn"),
    "a convolution without statistics": ("vgg.features.1.running_*", lambda tensor: None, "vgg.features.1.running_mean"),
    "a convolution without its norm": ("vgg.features.1.*", lambda tensor: None, "vgg.features.1.weight"),
    "a bias of another width": ("vgg.features.0.bias", lambda tensor: tensor[:1], "vgg.features.0.bias"),
    "a bias of another shape": ("vgg.features.0.bias", lambda tensor: tensor[:, None], "vgg.features.0.bias"),
    "a backbone beside": ("vgg.layer1.0.conv1.weight", lambda tensor: torch.zeros(3), "vgg.layer1.0.conv1.weight"),
    "one more weight": ("ft_module.0.extra", lambda tensor: torch.zeros(3), "ft_module.0.extra"),
    "positions in no square": (
        "Channel_MLP.channel_mlp.mlp_token.dense_1.weight",
        lambda tensor: torch.zeros(3, 5),
        "5 positions",
    ),
    "another embedding": ("conv_embedding.weight", lambda tensor: tensor[:-1], "conv_embedding.weight"),
}


@pytest.mark.parametrize(("name", "change", "fact"), DAMAGES.values(), ids=DAMAGES)
def test_other_checkpoints_are_refused(
    name: str, change: Callable[[Tensor], Tensor | None], fact: str, ml2p: Path, tmp_path: Path
) -> None:
    torch.save(changed(torch.load(ml2p / "ml2p.pth"), f"module.{name}", change), tmp_path / "a.pth")
    assert_refused(lambda: load_model(CheckpointOptions(tmp_path / "a.pth")), CheckpointError, "a.pth", fact)


def test_options_that_are_refused(ml2p: Path, vgg: Path, tmp_path: Path) -> None:
    assert refused(lambda: load_model(CheckpointOptions(ml2p / "ml2p.pth", heads=3)))[0] == "heads"
    words = {"labels": vgg / "words.txt", "word_vectors": vgg / "glove.txt"}
    other = ExportOptions(vgg / "biam.pth", tmp_path / "out", backbone=vgg / "vgg-tiny.pth", heads=3, raw_vectors=True, **words)
    assert refused(lambda: export_bundle(other))[0] == "raw_vectors"
    wide = ExportOptions(ml2p / "ml2p.pth", tmp_path / "out", labels=vgg / "words.txt", word_vectors=vgg / "glove.txt")
    assert refused(lambda: export_bundle(wide))[0] == "word_vectors"
