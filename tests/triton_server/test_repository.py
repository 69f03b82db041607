"""What `export triton` writes, and what it refuses."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import onnxruntime
import pytest

from sigrl_deploy.bundle.bundle import Bundle
from sigrl_deploy.bundle.engine_records import EngineKey, EngineRecord, Ops, Profile, Range
from sigrl_deploy.bundle.manifest import change_manifest
from sigrl_deploy.config import Arch, Backend, Precision
from sigrl_deploy.errors import BundleError, ExportError, UsageError
from sigrl_deploy.export.options import ExportOptions
from sigrl_deploy.export.run import export_bundle
from sigrl_deploy.triton_server.repository import RepositoryOptions, write_repository
from tests.support.refusals import assert_refused

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(bundle: Path, backend: Backend = Backend.ONNXRUNTIME, precision: Precision | None = None) -> Path:
        write_repository(RepositoryOptions(bundle, tmp_path / "repository", backend, precision))
        return tmp_path / "repository"

    return written


def config(repository: Path, model: str) -> str:
    return (repository / model / "config.pbtxt").read_text(encoding="utf-8")


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_it_holds_three_models_and_says_what_wrote_it(bundle: Path, write: Write) -> None:
    repository = write(bundle)
    front = {"config.pbtxt", "1/model.py", "1/bundle/manifest.json", "1/bundle/tokenizer.json", "warmup/picture"}
    assert files(repository / "sigrl") == front
    for model, graph in (("sigrl_visual", "visual.onnx"), ("sigrl_text", "text.onnx")):
        assert files(repository / model) == {"config.pbtxt", "1/model.onnx"}
        assert (repository / model / "1" / "model.onnx").read_bytes() == (bundle / graph).read_bytes()
        assert "Written by sigrl-deploy" in config(repository, model)
    about = json.loads((repository / "sigrl-deploy.json").read_text())
    assert about["tools"]["sigrl-deploy"]
    assert about["files"]["visual.onnx"] == hashlib.sha256((bundle / "visual.onnx").read_bytes()).hexdigest()


@pytest.fixture(scope="session")
def in_8_bits(export_tiny: Callable[..., Path]) -> Path:
    return export_tiny(Precision.INT8, Precision.INT8X3, Precision.INT8_ALL)  # which other tests need too


@pytest.fixture(params=["sigrl", "int8x3", "mkt"])
def exported(request: pytest.FixtureRequest, bundle: Path, in_8_bits: Path, export_tiny: Callable[..., Path]) -> Path:
    """A bundle whose graphs have the interface of its kind."""
    return {"sigrl": lambda: bundle, "int8x3": lambda: in_8_bits, "mkt": lambda: export_tiny(checkpoint="mkt", arch=Arch.MKT)}[
        request.param
    ]()


def test_tensors_are_those_of_the_graphs(exported: Path, in_8_bits: Path, write: Write) -> None:
    """Triton refuses to load a model whose graph has another interface than its config says."""
    repository = write(exported, precision=Precision.INT8X3 if exported == in_8_bits else None)
    for model in ("sigrl_visual", "sigrl_text"):
        session = onnxruntime.InferenceSession(repository / model / "1" / "model.onnx", providers=["CPUExecutionProvider"])
        for kind, nodes in (("input", session.get_inputs()), ("output", session.get_outputs())):
            lines = re.findall(
                rf'^{kind} {{ name: "(\w+)" data_type: TYPE_(\w+) dims: (\[.*?\])', config(repository, model), re.M
            )
            said = {name: (data_type, json.loads(dims)) for name, data_type, dims in lines}
            assert set(said) == {node.name for node in nodes}
            for node in nodes:
                data_type, dims = said[node.name]
                assert node.type == {"FP32": "tensor(float)", "INT64": "tensor(int64)"}[data_type]
                assert len(dims) == len(node.shape)
                # Triton's rule: a size that the graph fixes is the config's, one that it leaves open may be any.
                assert [d for d, size in zip(dims, node.shape, strict=True) if isinstance(size, int) and d != size] == []


def test_a_precision_for_cpus_only_stays_there(in_8_bits: Path, write: Write) -> None:
    text = config(write(in_8_bits, precision=Precision.INT8X3), "sigrl_visual")
    assert "KIND_CPU" in text
    assert "tf32" not in text


def test_a_bundle_without_a_text_tower_has_its_vocabulary_and_projects_it(
    weights: Path, without_text: dict[str, Path], write: Write, tmp_path: Path
) -> None:
    export_bundle(ExportOptions(weights / "sigrl.pth", tmp_path / "bundle", **without_text))
    repository = write(tmp_path / "bundle")
    assert "1/bundle/vocabulary.npz" in files(repository / "sigrl")
    assert "token_ids" not in config(repository, "sigrl_text")


def test_weights_beside_a_graph_come_along(bundle: Path, tmp_path: Path, write: Write) -> None:
    onnx = pytest.importorskip("onnx")
    changed = shutil.copytree(bundle, tmp_path / "large")
    onnx.save(
        onnx.load(bundle / "visual.onnx"), changed / "visual.onnx", save_as_external_data=True, location="visual.onnx.data"
    )
    names = ("visual.onnx", "visual.onnx.data")
    hashes = {name: hashlib.sha256((changed / name).read_bytes()).hexdigest() for name in names}
    change_manifest(changed, lambda manifest: msgspec.structs.replace(manifest, files={**manifest.files, **hashes}))
    graph = write(changed) / "sigrl_visual" / "1"
    assert files(graph) == {"model.onnx", "visual.onnx.data"}
    opened = onnxruntime.InferenceSession(graph / "model.onnx", providers=["CPUExecutionProvider"])
    assert len(opened.get_outputs()) == 2


def test_files_are_copied_where_they_cannot_be_linked(bundle: Path, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    def other_file_system(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", other_file_system)
    graph = write(bundle) / "sigrl_visual" / "1" / "model.onnx"
    assert graph.read_bytes() == (bundle / "visual.onnx").read_bytes()
    assert graph.stat().st_nlink == 1


def test_it_is_written_whole_or_not_at_all(bundle: Path, write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "link", full)
    monkeypatch.setattr(shutil, "copyfile", full)
    assert_refused(lambda: write(bundle), ExportError, "repository", "No space left")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_stays(bundle: Path, tmp_path: Path, write: Write) -> None:
    (tmp_path / "repository").mkdir()
    (tmp_path / "repository" / "mine").write_text("x")
    assert_refused(lambda: write(bundle), UsageError, "out", "repository", "choose another folder")
    assert files(tmp_path / "repository") == {"mine"}


def test_what_the_bundle_does_not_hold_is_refused(bundle: Path, write: Write) -> None:
    assert_refused(lambda: write(bundle, precision=Precision.FP16), UsageError, "precision", "fp32")
    assert_refused(lambda: write(bundle, backend=Backend.TENSORRT), UsageError, "backend", "visual engine", "--ops inlined")


def with_engines(bundle: Path, folder: Path, *profiles: tuple[str, Range], ops: Ops = Ops.INLINED) -> Path:
    """A copy of a bundle with records of engines for these compute capabilities and batches; their files are not engines."""
    copy = shutil.copytree(bundle, folder)
    manifest = Bundle(copy).manifest
    records = []
    for capability, batch in profiles:
        for graph in ("visual", "text"):
            sha256 = manifest.files[f"{graph}.onnx"]
            profile, library = Profile(batch if graph == "visual" else Range(1, 1, 1), Range(1, 9, 99)), "tensorrt 11.4.0"
            kind = ops if graph == "visual" else Ops.INLINED
            key = EngineKey(graph, sha256, library, Precision.FP32, kind, profile, (capability,), "GPU", "1.0")
            content = f"{graph} {capability}".encode()
            (copy / key.file_name).write_bytes(content)
            records.append(EngineRecord(key, key.file_name, hashlib.sha256(content).hexdigest(), len(content), 1.0))
    change_manifest(copy, lambda manifest: msgspec.structs.replace(manifest, engines=tuple(records)))
    return copy


def test_tensorrt_gets_a_plan_for_each_gpu(bundle: Path, tmp_path: Path, write: Write) -> None:
    copy = with_engines(bundle, tmp_path / "engines", ("8.9", Range(1, 2, 8)), ("9.0", Range(1, 4, 32)))
    repository = write(copy, Backend.TENSORRT)
    for model in ("sigrl_visual", "sigrl_text"):
        text = config(repository, model)
        assert 'backend: "tensorrt"' in text
        assert "KIND_GPU" in text
        plans = dict(re.findall(r'cc_model_filenames { key: "(.+?)" value: "(.+?)" }', text))
        assert set(plans) == {"8.9", "9.0"}
        for capability, file in plans.items():
            content = (repository / model / "1" / file).read_bytes()
            assert content == f"{model.removeprefix('sigrl_')} {capability}".encode()
    front = config(repository, "sigrl")
    assert "max_batch_size: 8" in front  # the least that the engines take
    assert 'string_value: "99"' in front


def test_engines_that_triton_cannot_run_are_refused(bundle: Path, tmp_path: Path, write: Write) -> None:
    fused = with_engines(bundle, tmp_path / "fused", ("9.0", Range(1, 4, 32)), ops=Ops.FUSED)
    assert_refused(lambda: write(fused, Backend.TENSORRT), UsageError, "backend", "standard ops")
    large = with_engines(bundle, tmp_path / "large", ("9.0", Range(4, 8, 32)))
    assert_refused(lambda: write(large, Backend.TENSORRT), UsageError, "backend", "4 pictures")


def test_a_damaged_bundle_is_refused(bundle: Path, tmp_path: Path, write: Write) -> None:
    damaged = shutil.copytree(bundle, tmp_path / "damaged")
    with (damaged / "visual.onnx").open("ab") as file:
        file.write(b"x")
    assert_refused(lambda: write(damaged), BundleError, "visual.onnx")
    assert not (tmp_path / "repository").exists()


def test_the_front_s_bundle_names_the_same_embeddings(bundle: Path, write: Write) -> None:
    """Keys of cached rows come from hashes; without its graphs a bundle must still differ from another one."""
    front = Bundle(write(bundle) / "sigrl" / "1" / "bundle", graphs=False)
    whole = Bundle(bundle)
    assert front.digests("text.onnx")[0] == whole.digests("text.onnx")[0]
    assert set(whole.digests("text.onnx")) <= set(front.digests("text.onnx"))
    with pytest.raises(BundleError):
        Bundle(front.path)
