"""Bundles that are not what they should be are refused when they are opened."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from sigrl_deploy import Recognizer, SigRLError
from sigrl_deploy.errors import BundleError
from tests.support.changed_bundles import edit_manifest
from tests.support.refusals import assert_refused


@pytest.fixture
def copied(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "copy"))


@pytest.mark.parametrize("name", ["visual.onnx", "text.onnx", "tokenizer.json"])
def test_a_changed_or_missing_file_is_refused(copied: Path, name: str) -> None:
    content = bytearray((copied / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copied / name).write_bytes(content)
    assert_refused(lambda: Recognizer(copied), BundleError, name, "sha256")
    (copied / name).unlink()
    assert_refused(lambda: Recognizer(copied), BundleError, name, "missing")


@pytest.mark.parametrize(
    ("changes", "fact"),
    [
        ({"format_version": 99}, "version 99"),
        ({"files": {"../outside.onnx": "0" * 64}}, "files"),
        ({"files": {"/etc/hostname": "0" * 64}}, "files"),
        ({"arch": "resnet"}, "arch"),
        ({"preprocess": {"resize": 3}}, "preprocess"),
        ({"unknown": 1}, "unknown"),
        ({"variants": {}}, "variants"),
        ({"files": {"a\0b": "0" * 64}}, "files"),
        ({"files": ["visual.onnx"]}, "files"),
        ({"topk": 0}, "topk"),
        ({"topk": "16"}, "topk"),
        ({"patch_size": 0}, "patch_size"),
        ({"image_size": 160}, "image_size is 160"),
        ({"embed_dim": 256}, "visual.onnx"),
        ({"arch": "mkt"}, "visual.onnx"),
        ({"text_identity": "free text"}, "text_identity"),
        ({"files": {"x" * 300: "0" * 64}}, "files"),
        ({"context_length": -1}, "context_length"),
        ({"context_length": 10**6}, "context_length"),
        ({"context_length": 2**33}, "context_length"),
        ({"context_length": True}, "context_length"),
        ({"embed_dim": 2**33}, "embed_dim"),
        ({"context_length": None}, "vocabulary.npz"),
        ({"template": "x"}, "template is 'x'"),
        ({"variants": {"fp32": {"visual": "text.onnx", "text": "visual.onnx"}}}, "text.onnx"),
        ({"variants": {"fp32": {"visual": "other.onnx", "text": "text.onnx"}}}, "other.onnx"),
    ],
)
def test_a_manifest_that_means_nothing_is_refused(copied: Path, changes: dict[str, object], fact: str) -> None:
    (copied.parent / "outside.onnx").write_bytes(b"")
    edit_manifest(copied, **changes)
    assert_refused(lambda: Recognizer(copied, cache_dir=False), SigRLError, fact)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe"])
def test_a_damaged_manifest_is_refused(copied: Path, content: bytes) -> None:
    (copied / "manifest.json").write_bytes(content)
    assert_refused(lambda: Recognizer(copied), BundleError, "manifest.json")
