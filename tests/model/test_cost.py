"""The work that docs/systems.md gives for a picture, counted on models without weights."""

from __future__ import annotations

import re

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from sigrl_deploy.config import Arch, ModelConfig
from sigrl_deploy.image_towers import BiamConfig, Ml2pConfig, ResNetConfig, TowerConfig, VggConfig
from sigrl_deploy.model.sigrl import SigRL, encode_image
from tests.support.paths import ROOT

SYSTEMS: dict[str, tuple[Arch, int, TowerConfig]] = {
    "SCPNet": (Arch.SCPNET, 1024, ResNetConfig(224, 64, (3, 4, 6, 3))),
    "BiAM": (Arch.BIAM, 512, BiamConfig(VggConfig(224), 256, 8)),
    "(ML)²P-Encoder": (Arch.ML2P, 300, Ml2pConfig(224, 7, 64, (512, 512, 1024), 300, 9, 60)),
    "Gen-MLZSL": (Arch.LINEAR, 4097, VggConfig(224)),
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_page_has_the_work_of_a_picture(name: str) -> None:
    page = (ROOT / "docs" / "systems.md").read_text(encoding="utf-8")
    row = re.search(rf"^\| {re.escape(name)} \(.*?\| (\d+\.\d) \|", page, re.MULTILINE)
    assert row is not None
    arch, dim, tower = SYSTEMS[name]
    with torch.device("meta"):
        model = SigRL(ModelConfig(arch, dim, arch.default_topk, tower)).eval()
        pixels = torch.empty(1, 3, 224, 224)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        encode_image(model.visual, pixels)
    assert counter.get_total_flops() / 1e9 == pytest.approx(float(row[1]), abs=0.051)  # the page rounds to 0.1
