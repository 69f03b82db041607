"""Bundles of format version 2, which earlier releases wrote."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from sigrl_deploy import Recognizer
from sigrl_deploy.bundle.bundle import Bundle
from sigrl_deploy.bundle.manifest import change_manifest
from sigrl_deploy.errors import BundleError
from sigrl_deploy.files import sha256_file
from tests.support.refusals import assert_refused

LABELS = ["cat", "cup", "rocket"]


@pytest.fixture
def old(bundle: Path, tmp_path: Path) -> Path:
    """The tiny bundle as format 2 had it: with digests of the text tower's and the label graph's weights."""
    folder = Path(shutil.copytree(bundle, tmp_path / "old"))
    path = folder / "manifest.json"
    values = json.loads(path.read_text())
    order = list(values)
    values |= {"format_version": 2, "text_identity": "a" * 64, "graph_identity": "b" * 64}
    at = order.index("preprocess") + 1
    path.write_text(json.dumps({name: values[name] for name in (*order[:at], "text_identity", "graph_identity", *order[at:])}))
    return folder


def edit(folder: Path, **changes: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_it_scores_as_the_same_bundle_of_today(bundle: Path, old: Path, photos: list[Path], tmp_path: Path) -> None:
    new, before = (Recognizer(folder, device="cpu", cache_dir=tmp_path / "cache") for folder in (bundle, old))
    assert before.bundle.manifest == new.bundle.manifest
    expected = new.scores(photos, new.vocabulary(LABELS))
    # Keys come from the hashes of files, so that both share the cached labels.
    assert before.vocabulary(LABELS).origin == new.vocabulary(LABELS).origin
    assert np.array_equal(before.scores(photos, before.vocabulary(LABELS)), expected)


def test_its_files_are_checked_as_strictly(old: Path) -> None:
    with (old / "visual.onnx").open("ab") as file:
        file.write(b"\0")
    assert_refused(lambda: Bundle(old), BundleError, "visual.onnx")


@pytest.mark.parametrize(
    "changes",
    [
        {"variants": {"fp32": {"visual": "visual.model", "text": "text.onnx"}}},
        {"files": {"../visual.onnx": "0" * 64}},
        {"files": {}},
        {"another_identity": "c" * 64},
        {"embed_dim": 2**33},
    ],
)
def test_its_manifest_is_checked_as_strictly(old: Path, changes: dict[str, object]) -> None:
    Bundle(old)
    edit(old, **changes)
    assert_refused(lambda: Bundle(old), BundleError, "manifest.json")


def test_weights_outside_its_files_are_refused(old: Path) -> None:
    model = onnx.load(old / "visual.onnx")
    onnx.save(model, old / "visual.onnx", save_as_external_data=True, location="hidden.bin", size_threshold=10_000)
    values = json.loads((old / "manifest.json").read_text())
    edit(old, files=values["files"] | {"visual.onnx": sha256_file(old / "visual.onnx")})
    assert_refused(lambda: Bundle(old), BundleError, "hidden.bin")


def test_a_change_writes_it_in_todays_format(old: Path) -> None:
    before = Bundle(old).manifest
    change_manifest(old, lambda manifest: manifest)
    values = json.loads((old / "manifest.json").read_text())
    assert values["format_version"] == 3
    assert not {"text_identity", "graph_identity"} & set(values)
    assert Bundle(old).manifest == before


def test_format_1_is_refused(old: Path) -> None:
    edit(old, format_version=1)
    assert_refused(lambda: Bundle(old), BundleError, "manifest.json", "version 1")
