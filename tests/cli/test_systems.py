"""The other systems by the command line: the bundles, which `export onnx` made, through the other verbs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from sigrl_deploy.cli.main import main
from tests.support import ml2p_files, scpnet_files, vgg_files

SYSTEMS = {
    "scpnet_bundle": scpnet_files.LABELS,
    "biam_bundle": vgg_files.BIAM_LABELS,
    "linear_bundle": vgg_files.LINEAR_LABELS,
    "ml2p_bundle": ml2p_files.LABELS,
}


def run(*arguments: object, status: int = 0) -> str:
    done = CliRunner().invoke(main, [*map(str, arguments)])
    assert done.exit_code == status, done.output
    assert done.exception is None or isinstance(done.exception, SystemExit)
    return done.output


@pytest.mark.parametrize("name", SYSTEMS)
def test_from_labels_to_tags(name: str, photos: list[Path], tmp_path: Path, request: pytest.FixtureRequest) -> None:
    bundle, names = request.getfixturevalue(name), SYSTEMS[name]
    some, out, thresholds = tmp_path / "some.txt", tmp_path / "tags.jsonl", tmp_path / "thresholds.json"
    some.write_text("\n".join(names[:3]))
    here = "--bundle", bundle, "--device", "cpu", "--cache-dir", tmp_path / "cache"
    assert "3 labels ready" in run("labels", "build", some, *here)
    run("calibrate", photos[0].parent, *here, "--tags-per-picture", 2, "--out", thresholds)  # for all labels
    run("infer", photos[0], *here, "--labels", some, "--thresholds", thresholds, "--top", 2, "--out", out)
    (record,) = [json.loads(line) for line in out.read_text().splitlines()]
    for tag in record["tags"]:
        assert tag["label"] in names[:3]
        limit = json.loads(thresholds.read_text())["thresholds"][tag["label"]]
        assert tag["score"] >= tag["threshold"] == pytest.approx(limit, rel=1e-6)  # which is fp32 here
        assert tag.get("probability") == (tag["score"] if name in ("scpnet_bundle", "linear_bundle") else None)
    compared = "--backend", "onnxruntime", "--precision", "fp32", "--precision", "fp16", "--device", "cpu"
    own = shutil.copytree(bundle, tmp_path / "own")  # which `verify` writes into
    assert "fp16" in run("verify", own, photos[0], *compared)
    run("infer", photos[0], *here, "--heatmaps", tmp_path / "maps", status=0 if name == "biam_bundle" else 2)


EXPORTS: dict[str, tuple[str, list[str], str]] = {
    "a preset of other labels": ("scpnet.ckpt", ["--preset", "coco"], "--preset coco"),
    "no settings": ("scpnet.ckpt", [], "--sparse-topk"),
    "a scale in words": ("scpnet.ckpt", ["--preset", "voc", "--scale", "large"], "--scale large"),
    "a top-k of nothing": ("scpnet.ckpt", ["--preset", "voc", "--topk", "3"], "--topk 3"),
    "raw vectors": ("scpnet.ckpt", ["--preset", "voc", "--raw-vectors"], "--raw-vectors"),
    "heads": ("scpnet.ckpt", ["--preset", "voc", "--heads", "8"], "--heads 8"),
    "an open_clip config": ("scpnet.ckpt", ["--preset", "voc", "--clip-config", "RN50"], "--clip-config RN50"),
}


@pytest.mark.parametrize(("checkpoint", "options", "named"), EXPORTS.values(), ids=EXPORTS)
def test_options_that_are_refused(checkpoint: str, options: list[str], named: str, scpnet: Path, tmp_path: Path) -> None:
    files = "--labels", scpnet / "labels.txt", "--relation", scpnet / "relation.npy", "--out", tmp_path / "out"
    line = run("export", "onnx", scpnet / checkpoint, *files, *options, status=2).splitlines()[-1]
    assert line.startswith(f"error: {named}: ")


def test_raw_vectors_are_as_long_as_they_are(ml2p: Path, tmp_path: Path) -> None:
    words = "--labels", ml2p / "words.txt", "--word-vectors", ml2p / "glove.txt"
    run("export", "onnx", ml2p / "ml2p.pth", *words, "--raw-vectors", "--out", tmp_path / "raw")
    assert json.loads((tmp_path / "raw" / "manifest.json").read_text())["source"]["settings"] == {"raw_vectors": True}
    np.testing.assert_array_equal(np.load(tmp_path / "raw" / "vocabulary.npz")["label_embedding"], ml2p_files.word_vectors())
