"""The pretrained CLIPs that docs/pretrained.md lists: open_clip has them, they can be exported, and their sizes are right."""

from __future__ import annotations

import open_clip
import pytest
import torch

from benchmarks.pretrained import sizes
from benchmarks.pretrained_table import LISTED, RESULT
from benchmarks.tables import read
from sigrl_deploy.checkpoints.open_clip_configs import clip_config
from sigrl_deploy.checkpoints.open_clip_weights import listed_preprocess

NAMES = [listed.name for listed in LISTED]


@pytest.mark.parametrize("name", NAMES)
def test_open_clip_has_it_and_export_takes_it(name: str) -> None:
    assert name in open_clip.list_pretrained(as_str=True)
    config = clip_config(name)
    assert config is not None
    assert listed_preprocess(name, config.vision.image_size) is not None


def test_the_recorded_sizes_are_those_of_the_models() -> None:
    assert read(RESULT)["sizes"] == {name: sizes(name) for name in NAMES}


@pytest.mark.parametrize("name", ["ViT-B-16:openai", "ViT-H-14:laion2b_s32b_b79k"])
def test_parameters_are_as_many_as_open_clip_s_own_model_has(name: str) -> None:
    with torch.device("meta"):
        model = open_clip.CLIP(**open_clip.get_model_config(name.partition(":")[0]))
    temperature = model.logit_scale.numel()
    assert sizes(name)["parameters"] == sum(tensor.numel() for tensor in model.parameters()) - temperature
