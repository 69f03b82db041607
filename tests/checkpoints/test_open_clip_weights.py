"""open_clip's own weights by name, from its cache or without a network; and OpenAI's text tower as the default."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from click.testing import CliRunner
from open_clip.transform import PreprocessCfg, image_transform_v2
from safetensors.torch import save_file

from benchmarks.random_weights import VARIANTS, text_shapes, vision_shapes
from sigrl_deploy.checkpoints.layouts import load_checkpoint
from sigrl_deploy.checkpoints.open_clip_weights import default_bundle, listed_preprocess, load_pretrained, openai_name
from sigrl_deploy.cli.main import main
from sigrl_deploy.config import Precision
from sigrl_deploy.pictures.preprocess import CLIP_MEAN
from sigrl_deploy.pictures.reading import read_image
from tests.support.checkpoints import State, saved
from tests.support.paths import ROOT

HUB = "models--timm--vit_base_patch16_clip_224.openai"


def zeros(shapes: dict[str, tuple[int, ...]]) -> State:
    """Half-precision tensors that are quick to write and to read."""
    return {name: torch.zeros(shape, dtype=torch.float16) for name, shape in shapes.items()}


def offline(home: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command line with empty caches and a hub that does not answer."""
    environment = os.environ | {"HF_HOME": str(home), "HF_ENDPOINT": "http://127.0.0.1:9", "HOME": str(home)}
    environment.pop("HF_HUB_CACHE", None)
    command = [sys.executable, "-m", "sigrl_deploy", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


def cached(home: Path, file: str, tensors: State) -> None:
    """A file in the hub's cache, as a download leaves it."""
    folder = home / "hub" / HUB
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    save_file(tensors, snapshot / file)


@pytest.fixture(scope="module")
def full_size(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MKT checkpoint with the sizes of ViT-B/16."""
    return saved(tmp_path_factory.mktemp("full") / "mkt.pth", zeros(vision_shapes(VARIANTS["vit-b16"])))


LOAD = """
import logging, sys
logging.basicConfig(format="%(message)s"); logging.getLogger("sigrl_deploy").setLevel(logging.INFO)
from sigrl_deploy.checkpoints.loading import load_model
from sigrl_deploy.checkpoints.options import CheckpointOptions
loaded = load_model(CheckpointOptions(sys.argv[1]))
model = loaded.model
print(loaded.text.path, model.config.text.width, model.config.text.layers, model.config.text.quick_gelu)
"""


def test_a_checkpoint_without_a_text_tower_takes_openais_of_its_size(full_size: Path, tmp_path: Path) -> None:
    cached(tmp_path, "open_clip_model.safetensors", zeros(text_shapes(VARIANTS["vit-b16"])))
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9"}
    run = subprocess.run([sys.executable, "-c", LOAD, full_size], capture_output=True, text=True, env=environment, timeout=300)
    assert run.stdout == "ViT-B-16:openai 512 12 True\n", run.stderr
    assert run.stderr == f"{full_size}: holds no text tower; using that of ViT-B-16:openai, which its recipe freezes\n"


def test_where_openais_cannot_be_had_one_line_says_how_to_give_one(full_size: Path, tmp_path: Path) -> None:
    run = offline(tmp_path, "export", "onnx", full_size, "--out", tmp_path / "bundle")
    assert run.returncode == 2
    taken, error = run.stderr.splitlines()
    assert "using that of ViT-B-16:openai" in taken
    assert "127.0.0.1:9 cannot be reached" in error
    assert error.endswith("give it with --text-tower, or, to export, --labels with --label-embeddings")


ASK = """
import time
import open_clip
from sigrl_deploy.errors import CheckpointError
from sigrl_deploy.checkpoints.open_clip_weights import load_pretrained
began = time.monotonic()
try:
    load_pretrained("ViT-B-16:openai")
except CheckpointError as error:
    print(time.monotonic() - began, error)
"""


def test_a_hub_that_cannot_be_reached_is_asked_once(tmp_path: Path) -> None:
    """The hub's own client would sleep for 46 s between its attempts, and print thirty warnings."""
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9"}
    run = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, env=environment, timeout=300)
    seconds, _, said = run.stdout.partition(" ")
    assert "127.0.0.1:9 cannot be reached" in said
    assert float(seconds) < 20
    assert run.stderr == ""


def test_a_listed_name_is_not_taken_for_a_folder_beside_it(tmp_path: Path) -> None:
    (tmp_path / "openai").mkdir()
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", ASK]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=300)
    assert "127.0.0.1:9 cannot be reached" in run.stdout, run.stderr


def test_a_path_is_taken_where_no_such_name_is_listed(full_size: Path) -> None:
    checkpoint, clip = load_pretrained(f"ViT-B-16:{full_size}")
    assert (checkpoint.layout, clip.vision.width) == ("MKT", 768)


@pytest.mark.parametrize(
    ("patch", "width", "layers", "image_size", "embed", "name"),
    [
        (32, 768, 12, 224, 512, "ViT-B-32"),
        (16, 768, 12, 224, 512, "ViT-B-16"),
        (16, 768, 12, 448, 512, "ViT-B-16"),
        (14, 1024, 24, 224, 768, "ViT-L-14"),
        (14, 1024, 24, 336, 768, "ViT-L-14-336"),
        (16, 768, 12, 224, 768, None),
        (16, 768, 11, 224, 512, None),
        (16, 64, 12, 224, 512, None),
    ],
)
def test_the_tower_is_found_by_the_shapes(
    tmp_path: Path, patch: int, width: int, layers: int, image_size: int, embed: int, name: str | None
) -> None:
    variant = replace(VARIANTS["tiny"], patch=patch, width=width, layers=layers, image_size=image_size, embed=embed)
    shapes = {key: shape for key, shape in vision_shapes(variant).items() if "resblocks" not in key or "ln_1.bias" in key}
    save_file(zeros(shapes), tmp_path / "a.safetensors")
    found = openai_name(load_checkpoint(tmp_path / "a.safetensors"))
    assert found == (name and f"{name}:openai")


def test_a_ready_model_is_asked_for_by_its_name_alone(tmp_path: Path) -> None:
    assert default_bundle(Path("ViT-B-16:openai")) == Path("ViT-B-16-openai-bundle")
    assert default_bundle(tmp_path / "run.best.pth") == tmp_path / "run.best-bundle"
    run = offline(tmp_path, "export", "onnx", "ViT-B-16:openai")
    assert run.returncode == 3
    assert run.stderr.startswith(
        "error: ViT-B-16:openai: open_clip_model.safetensors or open_clip_pytorch_model.bin of https://huggingface.co/timm/"
        "vit_base_patch16_clip_224.openai cannot be downloaded: http://127.0.0.1:9 cannot be reached: "
    )
    assert run.stderr.endswith("give its path with --clip-config ViT-B-16:openai\n")
    assert run.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "mean", "resize"),
    [
        ("ViT-B-16:openai", CLIP_MEAN, "short-side"),
        ("ViT-L-14:laion2b_s32b_b82k", (0.5, 0.5, 0.5), "short-side"),
        ("ViT-H-14:dfn5b", CLIP_MEAN, "squash"),
    ],
)
def test_pictures_are_prepared_as_open_clip_lists_it(name: str, mean: tuple[float, ...], resize: str) -> None:
    found = listed_preprocess(name, 224)
    assert found is not None
    assert (found.mean, found.resize_mode) == (mean, resize)
    listed = open_clip.get_pretrained_cfg(*name.split(":"))
    config = PreprocessCfg(**{key: listed[key] for key in ("mean", "std", "interpolation", "resize_mode")}, size=224)
    picture = read_image(ROOT / "sigrl_deploy" / "data" / "photos" / "rocket.jpg")
    expected = image_transform_v2(config, is_train=False)(picture).numpy()
    assert np.abs(found(picture) - expected).max() < 1e-5


def test_open_clip_lists_no_preprocessing_for_what_it_does_not_know() -> None:
    assert listed_preprocess("ViT-B-16", 224) is None
    assert listed_preprocess("ViT-B-16:weights.pt", 224) is None


@pytest.mark.parametrize(
    ("command", "start"),
    [
        ("export onnx ViT-B-16:no-such", "ViT-B-16:no-such: "),
        ("export onnx ViT-B-16:openai --text-tower ViT-B-16:no-such", "--text-tower ViT-B-16:no-such: "),
        ("evaluate scenes --checkpoint no-such:openai", "--checkpoint no-such:openai: "),
        ("verify {bundle} {photo} --labels {labels} --checkpoint no-such:openai", "--checkpoint no-such:openai: "),
        ("train scenes --init no-such:openai --out {out}", "--init no-such:openai: "),
    ],
)
def test_weights_that_open_clip_does_not_know_are_a_wrong_argument_of_every_verb(
    command: str,
    start: str,
    full_size: Path,
    export_tiny: Callable[..., Path],
    photos: list[Path],
    label_file: Path,
    tmp_path: Path,
) -> None:
    places = {"bundle": export_tiny(Precision.FP32), "photo": photos[0], "labels": label_file, "out": tmp_path / "run"}
    known = command.replace("ViT-B-16:openai", str(full_size))
    done = CliRunner().invoke(main, known.format(**places).split())
    assert done.exit_code == 2, done.output
    assert done.output.splitlines()[-1].startswith(f"error: {start}")


@pytest.mark.parametrize(
    "command",
    [
        "export onnx missing.pth",
        "evaluate scenes --checkpoint missing.pth",
        "verify bundle picture.jpg --checkpoint missing.pth",
    ],
)
def test_a_missing_checkpoint_is_found_before_torch_is_imported(command: str, tmp_path: Path) -> None:
    script = """
import sys
from click.testing import CliRunner
from sigrl_deploy.cli.main import main
shown = CliRunner().invoke(main, sys.argv[1:])
print(shown.exit_code, "torch" in sys.modules, shown.output)
"""
    arguments = [sys.executable, "-c", script, *command.split()]
    run = subprocess.run(arguments, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert run.stdout.startswith("2 False error: ")
    assert "missing.pth: no such file; expected a .pth, .pt or .safetensors checkpoint, or " in run.stdout
    assert "NAME:PRETRAINED as open_clip lists them (ViT-B-16:openai)" in run.stdout
