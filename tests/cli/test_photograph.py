"""A photograph tagged by a CLIP in a file of OpenAI's layout, with the commands of the README, against open_clip itself."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from tests.support.checkpoints import TINY, clip_of, mkt, saved, state, text_shapes
from tests.support.paths import ROOT
from tests.support.processes import infer, records

SIZES = replace(TINY, vocabulary=49408)
LABELS = ["cat", "cup of coffee", "rocket", "astronaut"]
PHOTO = ROOT / "sigrl_deploy" / "data" / "photos" / "cat.jpg"
CONFIG = {
    "embed_dim": SIZES.embed,
    "quick_gelu": True,
    "vision_cfg": {"image_size": SIZES.image_size, "layers": SIZES.layers, "width": SIZES.width, "patch_size": SIZES.patch},
    "text_cfg": {
        "context_length": SIZES.context,
        "vocab_size": SIZES.vocabulary,
        "width": SIZES.text_width,
        "heads": 1,
        "layers": SIZES.text_layers,
    },
}
WEIGHTS = clip_of(mkt(SIZES), state(text_shapes(SIZES)))


@torch.inference_mode()
def cosines() -> dict[str, float]:
    """What open_clip's own model, tokenizer and preprocessing give for the photograph."""
    model = open_clip.CLIP(**CONFIG).eval()
    model.load_state_dict(WEIGHTS)
    transform = image_transform_v2(PreprocessCfg(size=SIZES.image_size), is_train=False)
    pixels = transform(Image.open(PHOTO).convert("RGB"))[None]
    tokens = open_clip.get_tokenizer("ViT-B-16")([f"a photo of a {label}." for label in LABELS])
    values = model.encode_image(pixels, True) @ model.encode_text(tokens, True).T
    return dict(zip(LABELS, values[0].tolist(), strict=True))


def test_a_photograph_is_scored_as_plain_clip_scores_it(tmp_path: Path) -> None:
    saved(tmp_path / "clip.pt", WEIGHTS | {"input_resolution": torch.tensor(SIZES.image_size)})
    (tmp_path / "labels.txt").write_text("\n".join(LABELS))
    export = [sys.executable, "-m", "sigrl_deploy", "export", "onnx", "clip.pt"]
    run = subprocess.run(export, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("clip-bundle: exported; largest score error ")
    options = ["--bundle", "clip-bundle", "--labels", "labels.txt"]
    (found,) = records(infer(PHOTO, *options, "--scores", "all", "--format", "jsonl", cwd=tmp_path).stdout)
    assert found["scores"] == pytest.approx(cosines(), abs=1e-4)
    shown = infer(PHOTO, *options, cwd=tmp_path).stdout.decode()
    assert all(label in shown for label in LABELS)
