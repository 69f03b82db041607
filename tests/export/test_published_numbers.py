"""The other systems: what their published implementations compute, by the PyTorch model and by its graph in ONNX Runtime.

Each file in `tests/golden/` holds the numbers of one case, all of them with weights that `tests/support/` draws again. Cases of
the published sizes take a minute or two, and up to 3 GB: they run with SIGRL_LARGE_TESTS=1.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor

from sigrl_deploy.arrays import FloatArray
from sigrl_deploy.checkpoints import linear, scpnet
from sigrl_deploy.checkpoints.building import build_model
from sigrl_deploy.checkpoints.layouts import VGG19, Checkpoint, load_checkpoint
from sigrl_deploy.checkpoints.loading import load_model
from sigrl_deploy.checkpoints.options import CheckpointOptions, SCPNetOptions
from sigrl_deploy.checkpoints.vgg_models import vgg_model_config
from sigrl_deploy.checkpoints.weights import Stored
from sigrl_deploy.checkpoints.word_vectors import vector_rows
from sigrl_deploy.config import Precision
from sigrl_deploy.export.onnx import export_visual
from sigrl_deploy.model.matching import score
from sigrl_deploy.model.sigrl import SigRL
from tests.support import ml2p_files, scpnet_files, vgg_files
from tests.support.paths import ROOT

# Of the largest value: independent forward passes are 5.4e-6 off the published ones. The (ML)²P-Encoder in fp32 is 1e-5 off
# its value in fp64, see tests/checkpoints/test_ml2p.py.
TOLERANCE = {"scpnet": 1e-5, "linear": 1e-5, "biam": 1e-5, "ml2p": 5e-5}
GOLDEN = ROOT / "tests" / "golden"
LARGE = pytest.mark.skipif("SIGRL_LARGE_TESTS" not in os.environ, reason="takes a minute; set SIGRL_LARGE_TESTS=1")

Golden = dict[str, FloatArray]
Made = tuple[SigRL, dict[str, Tensor]]  # rows of labels by the name of their scores


def of_scpnet(golden: Golden, folder: Path) -> Made:
    scpnet_files.write(folder, scpnet_files.RN50, int(golden["seed"]), int(golden["relation_seed"]))
    loaded = load_model(CheckpointOptions(folder / "scpnet.ckpt"))
    settings = int(golden["sparse_topk"]), float(golden["reweight"]), str(golden["scale"])
    rows = scpnet.label_rows(loaded.checkpoint, SCPNetOptions(folder / "relation.npy", None, *settings))
    return loaded.model, {"logits": rows}


def on_vgg(checkpoint: Checkpoint, seed: int, heads: int | None) -> SigRL:
    """With a VGG19 of the real size, which stays in memory, since it would be a file of 0.6 GB."""
    state = {name: Stored.of(torch.from_numpy(a)) for name, a in vgg_files.vgg_state(vgg_files.VGG_REAL, seed).items()}
    backbone = Checkpoint("vgg19.pth", VGG19, "", state, openai=False)
    return build_model(checkpoint, vgg_model_config(checkpoint, backbone, CheckpointOptions("a", heads=heads)), backbone)


def of_linear(golden: Golden, folder: Path) -> Made:
    vgg, seed = vgg_files.VGG_REAL, int(golden["seed"])
    state = vgg_files.classifier_state(vgg, int(golden["labels"]), seed)
    checkpoint = load_checkpoint(vgg_files.save(folder / "linear.pth", state))
    np.savez(folder / "scaling.npz", **vgg_files.scaling(vgg, seed))
    return on_vgg(checkpoint, seed, None), {"logits": linear.label_rows(checkpoint, folder / "scaling.npz")}


def vectors(golden: Golden) -> Tensor:
    return torch.from_numpy(vgg_files.word_vectors(int(golden["labels"]), int(golden["label_seed"])))


def of_biam(golden: Golden, folder: Path) -> Made:
    seed = int(golden["seed"])
    state = vgg_files.biam_state(vgg_files.VGG_REAL, vgg_files.Biam(int(golden["channels"])), seed)
    checkpoint = load_checkpoint(vgg_files.save(folder / "biam.pth", state))
    return on_vgg(checkpoint, seed, int(golden["heads"])), {"scores": vector_rows(checkpoint, vectors(golden))}


def of_ml2p(golden: Golden, folder: Path) -> Made:
    state = ml2p_files.state(ml2p_files.real(int(golden["groups"])), int(golden["seed"]))
    loaded = load_model(CheckpointOptions(vgg_files.save(folder / "ml2p.pth", state)))
    names = {"score_raw": True, "score_normalised": False}
    return loaded.model, {name: vector_rows(loaded.checkpoint, vectors(golden), raw) for name, raw in names.items()}


CASES = {
    "ml2p_3groups": of_ml2p,
    "scpnet_rn50": of_scpnet,
    "linear_vgg19": of_linear,
    "biam_64": of_biam,
    "biam_256": of_biam,
    "ml2p_7groups": of_ml2p,
}


@pytest.mark.parametrize(
    ("name", "make"),
    [pytest.param(*case, marks=[] if case[0] == "ml2p_3groups" else LARGE, id=case[0]) for case in CASES.items()],
)
@torch.inference_mode()
def test_published_numbers(name: str, make: Callable[[Golden, Path], Made], tmp_path: Path) -> None:
    golden = dict(np.load(GOLDEN / f"{name}.npz"))
    model, rows = make(golden, tmp_path)
    config = model.config
    pixels = vgg_files.pixels(int(golden["batch"]), 224, int(golden["image_seed"]))
    eager = [features.numpy() for features in model.encode_image(torch.from_numpy(pixels), torch.empty(0), None)]
    with torch.inference_mode(False):
        export_visual(model, tmp_path / "visual.onnx", Precision.FP32)
    session = onnxruntime.InferenceSession(tmp_path / "visual.onnx", providers=["CPUExecutionProvider"])
    outputs = [output.name for output in session.get_outputs()]
    exported = dict(zip(outputs, session.run(outputs, {"pixels": pixels}), strict=True))
    of_graph = exported.get("local_feature", eager[0]), exported.get("global_feature", eager[1])
    assert len(exported) == 1
    for local, whole in (eager, of_graph):
        if "output" in golden:  # the network's own channel order, which is undone
            groups = golden["output"].reshape(len(pixels), 300, -1).transpose(0, 2, 1)
            assert np.abs(local - groups).max() < TOLERANCE["ml2p"] * np.abs(groups).max()
        for of_scores, label_rows in rows.items():
            found = np.stack([
                score(config.arch, patches, feature, label_rows.numpy(), config.topk)
                for patches, feature in zip(local, whole, strict=True)
            ])  # fmt: skip
            expected = golden[of_scores].astype(np.float64)
            if config.arch.gives_probabilities:  # of which those near 1 have few digits
                g = whole / np.linalg.norm(whole, axis=1, keepdims=True) if config.arch.unit_global else whole
                logits = g.astype(np.float64) @ label_rows.numpy().T
                assert np.abs(logits - expected).max() < TOLERANCE[config.arch.value] * np.abs(expected).max()
                expected = 1 / (1 + np.exp(-expected))
            assert np.abs(found - expected).max() < TOLERANCE[config.arch.value] * np.abs(expected).max()
