"""Checkpoints of our own format: everything the exporter asks for is in the file, and damage is found."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from safetensors.torch import save_file

from sigrl_deploy import Recognizer
from sigrl_deploy.architectures import Contract
from sigrl_deploy.checkpoints.eager import load_eager
from sigrl_deploy.checkpoints.layouts import load_checkpoint
from sigrl_deploy.checkpoints.loading import load_model
from sigrl_deploy.checkpoints.model_config import model_config
from sigrl_deploy.checkpoints.native import HEADER, TrainedRecord, read_record, write_trained
from sigrl_deploy.checkpoints.options import CheckpointOptions
from sigrl_deploy.config import Arch, ModelConfig, TextConfig
from sigrl_deploy.errors import CheckpointError
from sigrl_deploy.export.options import ExportOptions
from sigrl_deploy.export.run import export_bundle
from sigrl_deploy.image_towers import VisionConfig
from sigrl_deploy.model.sigrl import SigRL
from sigrl_deploy.pictures.preprocess import Preprocess
from sigrl_deploy.training.models import as_arch
from tests.support.refusals import assert_refused, refused

# Heads of width 24, and GELU: the shapes of the tensors show neither.
VISION = VisionConfig(image_size=40, patch_size=8, width=48, layers=2, heads=2, quick_gelu=False)
TEXT = TextConfig(width=32, layers=1, heads=4, context_length=20, quick_gelu=False)
LABELS = ("red square", "cat", "blue moon", "a dog", "sea", "sky", "cup")


@pytest.fixture(scope="module")
def model() -> SigRL:
    torch.manual_seed(0)
    base = SigRL(ModelConfig(Arch.CLIP, 24, 16, VISION, TEXT))
    return as_arch(base, Arch.SIGRL, topk=3).eval()


@pytest.fixture(scope="module")
def record(model: SigRL) -> TrainedRecord:
    preprocess = Preprocess.for_contract(Contract.CLIP, 40)
    return TrainedRecord(model.config, "a {label} here", preprocess, LABELS, {"seed": 3, "settings": {"lr": 0.1}})


@pytest.fixture(scope="module")
def path(model: SigRL, record: TrainedRecord, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trained") / "model.safetensors"
    write_trained(path, record, model.state_dict())
    return path


def test_the_record_comes_back_as_it_was_written(path: Path, record: TrainedRecord) -> None:
    assert read_record(path) == record
    assert stat.S_IMODE(path.stat().st_mode) & 0o044, "only its owner could read it"


def test_the_model_comes_back_whole(path: Path, model: SigRL) -> None:
    found = load_model(CheckpointOptions(path))
    loaded = found.model
    assert found.text is not None
    assert loaded.config == model.config
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())


def test_export_needs_nothing_but_the_file(path: Path, record: TrainedRecord, photos: list[Path], tmp_path: Path) -> None:
    export_bundle(ExportOptions(path, tmp_path / "bundle"))
    recognizer, eager = Recognizer(tmp_path / "bundle", cache_dir=False), load_eager(CheckpointOptions(path), device="cpu")
    manifest = recognizer.bundle.manifest
    assert (manifest.arch, manifest.topk, manifest.template) == (Arch.SIGRL, 3, "a {label} here")
    assert manifest.preprocess == record.preprocess
    pixels = np.stack([eager.pixels(photo) for photo in photos])
    expected = eager.score_pixels(pixels, eager.vocabulary(LABELS))
    got = recognizer.score_pixels(pixels, recognizer.vocabulary(LABELS))
    assert np.abs(got - expected).max() < 1e-5  # fp32 in another order of operations, over two layers


@pytest.mark.parametrize(("arch", "topk"), [(Arch.MKT, 18), (Arch.CLIP_FT, 16), (Arch.CLIP, 16)])
def test_another_architecture_leaves_out_what_it_does_not_score_with(path: Path, arch: Arch, topk: int) -> None:
    loaded = load_model(CheckpointOptions(path, arch=arch)).model
    assert loaded.config.arch is arch
    assert loaded.config.topk == topk
    assert loaded.svfr is None
    assert loaded.gmc is None


def test_sigrl_cannot_be_had_from_a_checkpoint_without_its_parts(model: SigRL, record: TrainedRecord, tmp_path: Path) -> None:
    mkt = as_arch(model, Arch.MKT, topk=3)
    path = tmp_path / "mkt.safetensors"
    write_trained(path, replace(record, config=mkt.config), mkt.state_dict())
    assert_refused(lambda: load_model(CheckpointOptions(path, arch=Arch.SIGRL)), CheckpointError, "mkt.safetensors", "SVFR")


def test_a_config_beside_its_own_is_refused(path: Path) -> None:
    options = CheckpointOptions(path, clip_config="ViT-B-16:openai")
    assert refused(lambda: load_model(options)) == ("clip_config", "ViT-B-16:openai")


def test_half_precision_weights_are_read_as_fp32(model: SigRL, record: TrainedRecord, tmp_path: Path) -> None:
    path = tmp_path / "half.safetensors"
    write_trained(path, record, {name: value.half() for name, value in model.state_dict().items()})
    loaded = load_model(CheckpointOptions(path)).model
    assert {value.dtype for value in loaded.parameters()} == {torch.float32}
    assert torch.equal(loaded.visual.proj, model.visual.proj.half().float())


def _damaged(tmp_path: Path, model: SigRL, header: str) -> Path:
    path = tmp_path / "damaged.safetensors"
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path, {HEADER: header})
    return path


@pytest.mark.parametrize(
    "header",
    ["", "{", "[]", "null", '{"format_version": 1}', "[" * 100_000, '{"format_version": 1, "config": 3}'],
)
def test_a_damaged_header_is_one_clear_line(model: SigRL, tmp_path: Path, header: str) -> None:
    path = _damaged(tmp_path, model, header)
    assert_refused(lambda: load_checkpoint(path), CheckpointError, "damaged.safetensors", "header")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("config", {"arch": "other"}),
        ("config", {"topk": "3"}),
        ("config", {"topk": 0}),
        ("config", {"embed_dim": -1}),
        ("config", {"embed_dim": 10**12}),
        ("vision", {"width": 10**9}),
        ("vision", {"heads": 0}),
        ("vision", {"layers": 10**9}),
        ("vision", {"patch_size": 41}),
        ("text", {"heads": 5}),
        ("labels", "abc"),
        ("template", 3),
        ("template", "no place for it"),
    ],
)
def test_values_that_mean_nothing_are_refused_before_anything_is_built(
    model: SigRL, record: TrainedRecord, tmp_path: Path, key: str, value: object
) -> None:
    values = json.loads(record.to_json())
    if key == "config":
        values["config"] |= value
    elif key in ("vision", "text"):
        values["config"][key] |= value
    else:
        values[key] = value
    path = _damaged(tmp_path, model, json.dumps(values))
    assert_refused(lambda: load_model(CheckpointOptions(path)), CheckpointError, "damaged.safetensors")


def test_more_labels_than_a_header_holds_are_refused_before_they_are_written(record: TrainedRecord) -> None:
    with pytest.raises(ValueError, match="300000"):
        replace(record, labels=tuple(f"label {i:06}" for i in range(300_000)))


def test_another_format_version_says_what_to_do(model: SigRL, record: TrainedRecord, tmp_path: Path) -> None:
    values = json.loads(record.to_json()) | {"format_version": 2}
    path = _damaged(tmp_path, model, json.dumps(values))
    assert_refused(lambda: load_checkpoint(path), CheckpointError, "damaged.safetensors", "version 2", "version 1", "install")


def test_a_missing_tensor_is_named(model: SigRL, record: TrainedRecord, tmp_path: Path) -> None:
    tensors = {name: value for name, value in model.state_dict().items() if name != "svfr.fuse.weight"}
    path = tmp_path / "model.safetensors"
    write_trained(path, record, tensors)
    assert_refused(lambda: load_model(CheckpointOptions(path)), CheckpointError, "model.safetensors", "svfr.fuse.weight")


def test_a_full_disk_leaves_the_checkpoint_before(path: Path, model: SigRL, record: TrainedRecord, tmp_path: Path) -> None:
    import resource
    import signal

    kept = tmp_path / "model.safetensors"
    kept.write_bytes(b"the one before")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(OSError, match=r"File too large|os error"):
            write_trained(kept, record, model.state_dict())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert kept.read_bytes() == b"the one before"
    assert list(tmp_path.iterdir()) == [kept]


def test_the_config_of_a_run_cannot_be_overruled_by_topk_beyond_the_patches(path: Path) -> None:
    assert refused(lambda: load_model(CheckpointOptions(path, topk=26))) == ("topk", 26)
    checkpoint = load_checkpoint(path)
    assert model_config(checkpoint, topk=25).topk == 25
