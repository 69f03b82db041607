"""SCPNet: the published numbers, and what its checkpoints and the files beside them are refused for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sigrl_deploy.arrays import FloatArray
from sigrl_deploy.checkpoints.eager import load_eager
from sigrl_deploy.checkpoints.layouts import load_checkpoint
from sigrl_deploy.checkpoints.loading import load_model
from sigrl_deploy.checkpoints.options import CheckpointOptions, SCPNetOptions
from sigrl_deploy.checkpoints.scpnet import label_rows, settings_of
from sigrl_deploy.config import Arch
from sigrl_deploy.errors import CheckpointError, UsageError
from sigrl_deploy.model.scpnet import label_graph
from tests.support import scpnet_files
from tests.support.checkpoints import changed
from tests.support.paths import ROOT
from tests.support.refusals import assert_refused, refused

# Of the largest value: the same fp32 arithmetic in another order, with batch norms folded into convolutions. An independent
# forward pass is 5.4e-6 off the published one; the smallest of the usual mistakes, a wrong sparse_topk, moves logits by 1e-2.
TOLERANCE = 1e-5
GOLDEN = np.load(ROOT / "tests" / "golden" / "scpnet_tiny.npz")
PUBLISHED = {"sparse_topk": int(GOLDEN["sparse_topk"]), "reweight": float(GOLDEN["reweight"]), "scale": str(GOLDEN["scale"])}


def error(found: FloatArray, name: str) -> float:
    return float(np.abs(found - GOLDEN[name]).max() / np.abs(GOLDEN[name]).max())


@pytest.fixture
def options(scpnet: Path) -> SCPNetOptions:
    return SCPNetOptions(scpnet / "relation.npy", **PUBLISHED)


@torch.inference_mode()
def test_published_numbers(scpnet: Path, options: SCPNetOptions) -> None:
    loaded = load_model(CheckpointOptions(scpnet / "scpnet.ckpt"))
    model, config = loaded.model, loaded.model.config
    assert (config.arch, config.embed_dim, config.vision.image_size) == (Arch.SCPNET, 1024, 224)
    relation = torch.from_numpy(np.load(scpnet / "relation.npy"))
    assert error(label_graph(relation, PUBLISHED["sparse_topk"], PUBLISHED["reweight"]).numpy(), "gcn_relation") < TOLERANCE
    rows = label_rows(loaded.checkpoint, options)
    assert error(rows.numpy()[:, :: scpnet_files.COLUMNS] / 10, "label_matrix") < TOLERANCE
    pixels = torch.from_numpy(scpnet_files.pixels(int(GOLDEN["batch"]), int(GOLDEN["image_seed"])))
    patches, features = model.encode_image(pixels, rows, None)
    assert patches.shape == (3, 0, 1024)
    assert error(features.numpy()[:, :: scpnet_files.COLUMNS], "image_features") < TOLERANCE
    scores = model(pixels, rows)
    assert error(scores.numpy(), "scores") < TOLERANCE
    assert error(torch.logit(scores.double()).numpy(), "logits") < TOLERANCE


def test_the_checkpoints_own_scale(scpnet: Path) -> None:
    checkpoint = load_checkpoint(scpnet / "scpnet.ckpt")
    ten, own = (label_rows(checkpoint, SCPNetOptions(scpnet / "relation.npy", None, 6, 0.2, scale)) for scale in (10.0, "clip"))
    factor = checkpoint.tensors["logit_scale"].read().exp()
    torch.testing.assert_close(own, ten / 10 * factor, rtol=1e-6, atol=0)


def test_presets_are_the_published_settings() -> None:
    assert settings_of(SCPNetOptions(preset="coco"), 80) == settings_of(SCPNetOptions(None, None, 62, 0.2, "10"), 80)
    assert settings_of(SCPNetOptions(preset="nus-wide"), 81).scale == "clip"
    assert settings_of(SCPNetOptions(preset="nus-wide", sparse_topk=2), 81).sparse_topk == 2


BAD_SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "none at all": ({}, "sparse_topk"),
    "no reweight": ({"sparse_topk": 6, "scale": 10.0}, "reweight"),
    "a preset of another data set": ({"preset": "coco"}, "preset"),
    "an unknown preset": ({"preset": "imagenet"}, "preset"),
    "no neighbour": ({"preset": "voc", "sparse_topk": 1}, "sparse_topk"),
    "more neighbours than labels": ({"preset": "voc", "sparse_topk": 21}, "sparse_topk"),
    "nothing but others": ({"preset": "voc", "reweight": 1.0}, "reweight"),
    "NaN": ({"preset": "voc", "reweight": float("nan")}, "reweight"),
    "no number": ({"preset": "voc", "scale": "large"}, "scale"),
    "no scale": ({"preset": "voc", "scale": "0"}, "scale"),
    "infinite": ({"preset": "voc", "scale": "inf"}, "scale"),
}


@pytest.mark.parametrize(("options", "argument"), BAD_SETTINGS.values(), ids=BAD_SETTINGS)
def test_settings_that_are_refused(options: dict[str, Any], argument: str) -> None:
    assert refused(lambda: settings_of(SCPNetOptions(**options), 20))[0] == argument


RELATIONS: dict[str, Callable[[], Any]] = {
    "of other labels": lambda: scpnet_files.relation(19, 0),
    "of whole numbers": lambda: np.eye(20, dtype=np.int64),
    "with NaN": lambda: np.where(np.eye(20) == 1, 1, np.nan),
    "with another diagonal": lambda: 0.9 * scpnet_files.relation(20, 0),
    "without neighbours": lambda: np.eye(20, dtype=np.float32),
    "pickled": lambda: np.array([{}], dtype=object),
}


@pytest.mark.parametrize("make", RELATIONS.values(), ids=RELATIONS)
def test_relation_files_that_are_refused(make: Callable[[], Any], scpnet: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "relation.npy", make())
    checkpoint = load_checkpoint(scpnet / "scpnet.ckpt")
    options = SCPNetOptions(tmp_path / "relation.npy", "voc")
    assert refused(lambda: label_rows(checkpoint, options)) == ("relation", tmp_path / "relation.npy")


@pytest.mark.parametrize("content", [b"", b"no array", b"\x93NUMPY\x01\x00"])
def test_relation_files_that_are_no_arrays(content: bytes, scpnet: Path, tmp_path: Path) -> None:
    (tmp_path / "relation.npy").write_bytes(content)
    checkpoint = load_checkpoint(scpnet / "scpnet.ckpt")
    assert refused(lambda: label_rows(checkpoint, SCPNetOptions(tmp_path / "relation.npy", "voc")))[0] == "relation"
    assert refused(lambda: label_rows(checkpoint, SCPNetOptions(tmp_path / "none.npy", "voc")))[0] == "relation"
    assert refused(lambda: label_rows(checkpoint, SCPNetOptions(None, "voc")))[0] == "relation"


DAMAGES: dict[str, tuple[str, Callable[[torch.Tensor], torch.Tensor | None]]] = {
    "a variance below 0": ("image_encoder.layer1.0.bn2.running_var", lambda tensor: -tensor),
    "a norm of another width": ("image_encoder.layer1.0.bn2.running_mean", lambda tensor: tensor[:3]),
    "a norm without statistics": ("image_encoder.bn1.running_*", lambda tensor: None),
    "one more stage": ("image_encoder.layer5.0.conv1.weight", lambda tensor: torch.zeros(3)),
    "a norm without its mean": ("image_encoder.layer4.0.downsample.1.running_mean", lambda tensor: None),
    "a convolution of another size": ("image_encoder.layer2.0.conv3.weight", lambda tensor: tensor[:, :5]),
    "no attention pool": ("image_encoder.attnpool.v_proj.weight", lambda tensor: None),
    "another number of positions": ("image_encoder.attnpool.positional_embedding", lambda tensor: tensor[:40]),
}


@pytest.mark.parametrize(("name", "change"), DAMAGES.values(), ids=DAMAGES)
def test_damaged_image_towers_are_refused(
    name: str, change: Callable[[torch.Tensor], torch.Tensor | None], scpnet: Path, tmp_path: Path
) -> None:
    torch.save(changed(torch.load(scpnet / "scpnet.ckpt"), name, change), tmp_path / "a.ckpt")
    assert_refused(lambda: load_model(CheckpointOptions(tmp_path / "a.ckpt")), CheckpointError, "a.ckpt", name.rstrip("*"))


@pytest.mark.parametrize("name", ["gc2.weight", "text_encoder.ln_final.bias", "prompt_learner.token_suffix"])
def test_damaged_text_sides_are_refused(name: str, scpnet: Path, options: SCPNetOptions, tmp_path: Path) -> None:
    tensors = torch.load(scpnet / "scpnet.ckpt")
    torch.save(tensors | {name: tensors[name][:-1]}, tmp_path / "a.ckpt")
    checkpoint = load_checkpoint(tmp_path / "a.ckpt")
    assert_refused(lambda: label_rows(checkpoint, options), CheckpointError, "a.ckpt", name)


@pytest.mark.parametrize("name", ["gc4.weight", "text_encoder.transformer.resblocks.0.ls_1.gamma", "prompt_learner.token_end"])
def test_unknown_tensors_of_text_sides_are_refused(name: str, scpnet: Path, options: SCPNetOptions, tmp_path: Path) -> None:
    torch.save(torch.load(scpnet / "scpnet.ckpt") | {name: torch.zeros(3)}, tmp_path / "a.ckpt")
    checkpoint = load_checkpoint(tmp_path / "a.ckpt")
    assert_refused(lambda: label_rows(checkpoint, options), CheckpointError, "a.ckpt", name)


@pytest.mark.parametrize("value", [None, torch.zeros(1), torch.tensor(3), torch.tensor(torch.nan)])
def test_scales_that_are_refused(value: torch.Tensor | None, scpnet: Path, tmp_path: Path) -> None:
    torch.save(changed(torch.load(scpnet / "scpnet.ckpt"), "logit_scale", lambda tensor: value), tmp_path / "a.ckpt")
    checkpoint = load_checkpoint(tmp_path / "a.ckpt")
    own = SCPNetOptions(scpnet / "relation.npy", None, 6, 0.2, "clip")
    assert_refused(lambda: label_rows(checkpoint, own), CheckpointError, "a.ckpt", "logit_scale")


def test_what_it_cannot_be_used_as(scpnet: Path, weights: Path) -> None:
    path = scpnet / "scpnet.ckpt"
    assert_refused(lambda: load_model(CheckpointOptions(path, arch=Arch.CLIP)), CheckpointError, "scpnet.ckpt", "clip")
    own = weights / "mkt.pth"
    assert_refused(lambda: load_model(CheckpointOptions(own, arch=Arch.SCPNET)), CheckpointError, "mkt.pth", "scpnet")
    assert refused(lambda: load_model(CheckpointOptions(path, text_tower="a.pth"))) == ("text_tower", "a.pth")
    assert_refused(lambda: load_eager(CheckpointOptions(path)), UsageError, "scpnet.ckpt", "export")
