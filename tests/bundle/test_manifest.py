"""Manifests that somebody has changed or damaged: one line says which field is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sigrl_deploy.bundle.bundle import Bundle
from sigrl_deploy.bundle.manifest import read_manifest
from sigrl_deploy.errors import BundleError
from tests.support.refusals import assert_refused


@pytest.fixture
def copied(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "copy"))


def refused(folder: Path, values: dict[str, Any]) -> str:
    (folder / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(BundleError) as caught:
        read_manifest(folder)
    line = str(caught.value)
    assert line.isprintable()
    assert len(line) < 1000
    assert "`" not in line, "the command line would take it for an argument"
    return line


def test_the_wrong_field_is_named_wherever_it_is(copied: Path) -> None:
    values = json.loads((copied / "manifest.json").read_text())
    assert "topk: expected int" in refused(copied, values | {"topk": 16.0})
    assert "preprocess.std[1]: expected" in refused(
        copied, values | {"preprocess": values["preprocess"] | {"std": [0.2, 0, 0.2]}}
    )
    assert "preprocess: " in refused(copied, values | {"preprocess": values["preprocess"] | {"finish": "tensor-bilinear"}})
    assert "gamma" in refused(copied, values | {"preprocess": values["preprocess"] | {"gamma": 2.2}})
    assert "created" in refused(copied, {name: value for name, value in values.items() if name != "created"})
    assert "files" in refused(copied, values | {"files": values["files"] | {"visual.onnx": "0"}})


@pytest.mark.parametrize("name", ["x" * 10**6, "\x1b[31m", "a\nb", "`force`", "\ud800"])
def test_what_a_manifest_says_of_itself_stays_one_short_line(copied: Path, name: str) -> None:
    values = json.loads((copied / "manifest.json").read_text())
    refused(copied, values | {name: 1})
    refused(copied, values | {"arch": name})
    refused(copied, values | {"template": name})


@pytest.mark.parametrize("content", ["[" * 10**6, '{"a":' * 10**6, "1" * 10**6], ids=["lists", "objects", "digits"])
def test_nesting_without_an_end_is_an_error(copied: Path, content: str) -> None:
    (copied / "manifest.json").write_text(content)
    assert_refused(lambda: Bundle(copied), BundleError, "manifest.json")


def test_infinite_errors_that_verify_measured_come_back(copied: Path) -> None:
    values = json.loads((copied / "manifest.json").read_text()) | {"verified": [{"largest_error": float("inf")}]}
    (copied / "manifest.json").write_text(json.dumps(values))
    manifest = read_manifest(copied)
    (copied / "manifest.json").write_text(manifest.to_json())
    assert read_manifest(copied) == manifest
    assert manifest.verified == ({"largest_error": float("inf")},)
