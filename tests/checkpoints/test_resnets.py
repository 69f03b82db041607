"""CLIP with a ResNet as its image tower, against open_clip's own forward pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

from benchmarks.random_weights import images
from sigrl_deploy.checkpoints.open_clip_configs import clip_config
from sigrl_deploy.config import Arch
from sigrl_deploy.errors import CheckpointError
from sigrl_deploy.image_towers import ResNetConfig
from sigrl_deploy.model.sigrl import encode_image
from tests.support.checkpoints import TOLERANCE, archive, loaded, saved, token_ids
from tests.support.checkpoints import OpenAI as Archived
from tests.support.refusals import assert_refused

CONFIG = {
    "embed_dim": 48,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 96, "layers": [1, 2, 1, 2], "width": 8, "patch_size": None},
    "text_cfg": {"context_length": 77, "vocab_size": 50, "width": 64, "heads": 1, "layers": 1},
}


@pytest.fixture
def expected(no_gradients: None) -> open_clip.CLIP:
    """A CLIP whose norms are far from doing nothing."""
    model = open_clip.CLIP(**CONFIG).eval()
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
        elif name.endswith("running_mean"):
            tensor.normal_(std=0.2)
        elif tensor.ndim == 1 and name.startswith("visual"):
            tensor.add_(0.3 * torch.randn(tensor.shape))
    return model


def assert_same(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=TOLERANCE * float(wanted.abs().max()))


@pytest.mark.parametrize("of_openai", [True, False])
def test_features_are_open_clips(of_openai: bool, expected: open_clip.CLIP, tmp_path: Path) -> None:
    state: dict[str, Any] = expected.state_dict()
    if of_openai:
        state["input_resolution"] = torch.tensor(96)
    path = saved(tmp_path / "clip.pt", state)
    if not of_openai:
        assert_refused(lambda: loaded(path), CheckpointError, "clip.pt", "`clip_config`")  # whose activation it may be
        return
    model = loaded(path)
    assert model.config.arch is Arch.CLIP
    assert model.config.vision == ResNetConfig(image_size=96, width=8, blocks=(1, 2, 1, 2))
    pixels = torch.from_numpy(images(2, 96, seed=0))
    patches, features = encode_image(model.visual, pixels)
    assert patches.shape == (2, 0, 48)
    assert_same(features, expected.encode_image(pixels))
    assert_same(model.encode_text(token_ids()), expected.encode_text(token_ids()))


def test_openais_archive(expected: open_clip.CLIP, tmp_path: Path) -> None:
    """Its weights are fp16, so it is compared with a model of weights that were rounded so."""
    floats = {name: tensor for name, tensor in expected.state_dict().items() if tensor.is_floating_point()}
    path = archive(tmp_path / "RN.pt", Archived(floats))
    expected.load_state_dict({name: tensor.half().float() for name, tensor in floats.items()}, strict=False)
    pixels = torch.from_numpy(images(2, 96, seed=0))
    assert_same(encode_image(loaded(path).visual, pixels)[1], expected.encode_image(pixels))


def test_architectures_that_match_patches_are_refused(expected: open_clip.CLIP, tmp_path: Path) -> None:
    path = saved(tmp_path / "clip.pt", expected.state_dict() | {"input_resolution": torch.tensor(96)})
    assert loaded(path, Arch.CLIP_FT).config.arch is Arch.CLIP_FT
    assert_refused(lambda: loaded(path, Arch.MKT), CheckpointError, "clip.pt", "mkt", "`arch='clip'`")


@pytest.mark.parametrize(
    ("name", "size", "width", "blocks"),
    [("RN50", 224, 64, (3, 4, 6, 3)), ("RN101-quickgelu", 224, 64, (3, 4, 23, 3)), ("RN50x4", 288, 80, (4, 6, 10, 6))],
)
def test_configs_of_open_clips_resnets(name: str, size: int, width: int, blocks: tuple[int, int, int, int]) -> None:
    config = clip_config(name)
    assert config is not None
    assert config.vision == ResNetConfig(size, width, blocks)
