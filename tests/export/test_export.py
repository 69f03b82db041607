"""Export: the files, the manifest, and that a failure leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
import pytest
import torch

from benchmarks.random_weights import VARIANTS, save, sigrl_shapes, tensors
from sigrl_deploy import Recognizer
from sigrl_deploy.architectures import Contract
from sigrl_deploy.config import Arch, Precision
from sigrl_deploy.errors import CheckpointError, ExportError, SigRLError, UsageError
from sigrl_deploy.export.options import ExportOptions
from sigrl_deploy.export.out_folder import replaced_folder
from sigrl_deploy.export.run import export_bundle
from tests.support.paths import ROOT

FP32_OPS = {"Exp", "Softmax", "LayerNormalization", "ReduceL2", "ReduceSum", "Div", "Sqrt", "Pow", "ReduceMean"}


@pytest.fixture(scope="module")
def options(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportOptions:
    return ExportOptions(
        weights / "sigrl.pth", tmp_path_factory.mktemp("export") / "bundle", text_tower=str(weights / "text.pth")
    )


@pytest.fixture
def quick(options: ExportOptions, without_text: dict[str, Path]) -> ExportOptions:
    """Without the text tower, for what it does not matter to."""
    return replace(options, text_tower=None, **without_text)


@pytest.fixture(scope="module", params=["fp16", "bf16"])
def low_precision(
    request: pytest.FixtureRequest, export_tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder of the precision's name."""
    out = tmp_path_factory.mktemp("low") / request.param
    return Path(shutil.copytree(export_tiny(Precision(request.param)), out))


def manifest(bundle: Path) -> dict:
    return json.loads((bundle / "manifest.json").read_text())


def nodes(graph: onnx.GraphProto) -> Iterator[tuple[onnx.NodeProto, dict[str, int]]]:
    """Every node, subgraphs included, with the element types of the names it can see."""
    yield from _nodes(graph, {})


def _nodes(graph: onnx.GraphProto, outer: dict[str, int]) -> Iterator[tuple[onnx.NodeProto, dict[str, int]]]:
    types = dict(outer)
    types |= {value.name: value.type.tensor_type.elem_type for value in [*graph.value_info, *graph.input, *graph.output]}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    for node in graph.node:
        yield node, types
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _nodes(attribute.g, types)


def inlined(path: Path) -> onnx.ModelProto:
    return onnx.shape_inference.infer_shapes(onnx.inliner.inline_local_functions(onnx.load(path)), strict_mode=True)


def test_each_file_holds_one_op_with_a_body(bundle: Path) -> None:
    for name, op in (("visual.onnx", "SVFR"), ("text.onnx", "GMC")):
        model = onnx.load(bundle / name)
        assert [node.op_type for node in model.graph.node if node.domain == "sigrl"] == [op]
        assert [(function.domain, function.name) for function in model.functions] == [("sigrl", op)]
        assert {node.domain for node in model.graph.node} == {"", "sigrl"}


def test_interfaces_are_named_and_dynamic(bundle: Path) -> None:
    def interface(values: list[onnx.ValueInfoProto]) -> dict[str, list[object]]:
        return {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}

    visual, text = onnx.load(bundle / "visual.onnx").graph, onnx.load(bundle / "text.onnx").graph
    assert interface(visual.input) == {
        "pixels": ["batch", 3, 80, 80],
        "label_embedding": ["labels", 512],
        "graph_projection": ["labels", 512],
    }
    assert interface(visual.output) == {"local_feature": ["batch", 25, 512], "global_feature": ["batch", 512]}
    assert interface(text.input) == {"cached_embedding": ["cached", 512], "token_ids": ["labels", "tokens"]}
    assert [value.name for value in text.output] == ["label_embedding", "graph_projection"]


def test_norms_softmax_and_exp_are_fp32_in_every_file(low_precision: Path) -> None:
    element = {"fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}[low_precision.name]
    for name in ("visual.onnx", "text.onnx"):
        seen, products = set(), set()
        for node, types in nodes(inlined(low_precision / name).graph):
            inputs = {types[i] for i in node.input if i in types} - {onnx.TensorProto.INT64}
            if node.op_type in FP32_OPS and inputs:
                seen.add(node.op_type)
                assert inputs == {onnx.TensorProto.FLOAT}, node.op_type
            if node.op_type in ("MatMul", "Gemm", "Conv"):
                products |= inputs
        assert {"Softmax", "LayerNormalization"} <= seen
        assert element in products


def test_parity_is_in_the_manifest(bundle: Path, low_precision: Path) -> None:
    for folder, precision in ((bundle, "fp32"), (low_precision, low_precision.name)):
        parity = manifest(folder)["variants"][precision]["parity"]
        assert 0 < parity["largest_error"] <= Precision(precision).tolerance
        assert ("PyTorch" if precision == "bf16" else "ONNX Runtime") in parity["backend"]
        assert {(case["batch"], case["labels"]) for case in parity["cases"]} >= {(1, 1), (3, 1), (1, 7), (3, 33)}


def test_bf16_says_that_it_is_for_gpus(low_precision: Path) -> None:
    if low_precision.name == "bf16":
        with pytest.raises(SigRLError, match=r"holds only bf16, which ONNX Runtime does not run"):
            Recognizer(low_precision)
    else:
        assert Recognizer(low_precision, device="cpu").engine.precision is Precision.FP16


@pytest.mark.parametrize("arch", [Arch.MKT, Arch.CLIP_FT, Arch.CLIP])
def test_other_architectures_export_without_sigrl_ops(arch: Arch, export_tiny: Callable[..., Path], photos: list[Path]) -> None:
    out = export_tiny(checkpoint="mkt", arch=arch, weights=True)
    for graph in out.glob("*.onnx"):
        model = onnx.load(graph)
        assert not model.functions
        assert {node.domain for node in model.graph.node} == {""}
    assert [node.name for node in onnx.load(out / "visual.onnx").graph.input] == ["pixels"]
    written = manifest(out)
    assert written["arch"] == arch.value
    assert written["topk"] == (18 if arch is Arch.MKT else 16)
    assert written["preprocess"]["contract"] == ("clip" if arch is Arch.CLIP else "zero-shot")
    recognizer = Recognizer(out, cache_dir=False)
    vocabulary = recognizer.vocabulary(["cat", "cup", "rocket"])
    tags = recognizer.recognize(photos, vocabulary, top=2, evidence=arch.has_local)
    assert all(len(found) == 2 and (found[0].evidence is not None) == arch.has_local for found in tags)
    if not arch.has_local:
        with pytest.raises(UsageError, match="evidence"):
            recognizer.recognize(photos, vocabulary, evidence=True)


def test_label_embeddings_take_the_text_towers_place(weights: Path, tmp_path: Path, photos: list[Path], bundle: Path) -> None:
    labels = ["cat", "cup", "space suit", "rocket", "person"]
    exact = Recognizer(bundle, cache_dir=False)
    embedding = exact.vocabulary(labels).label_embedding
    torch.save(torch.from_numpy(embedding), tmp_path / "label_emb.pt")
    (tmp_path / "labels.txt").write_text("\n".join(labels))
    out = tmp_path / "bundle"
    export_bundle(
        ExportOptions(weights / "sigrl.pth", out, labels=tmp_path / "labels.txt", label_embeddings=tmp_path / "label_emb.pt")
    )
    assert [node.name for node in onnx.load(out / "text.onnx").graph.input] == ["cached_embedding"]
    assert not (out / "tokenizer.json").exists()
    recognizer = Recognizer(out, cache_dir=False)
    own = recognizer.vocabulary()
    assert own.labels == tuple(labels)
    expected = exact.scores(photos, exact.vocabulary(labels))
    assert np.abs(recognizer.scores(photos, own) - expected).max() < 1e-5  # two fp32 runs of one graph
    subset = ["rocket", "cat"]
    expected = exact.scores(photos, exact.vocabulary(subset))
    assert np.abs(recognizer.scores(photos, recognizer.vocabulary(subset)) - expected).max() < 1e-5
    with pytest.raises(SigRLError, match=r"zebra.*no text (encoder|tower).*`text_tower`"):
        recognizer.vocabulary(["cat", "zebra"])


def test_a_bundle_can_carry_a_vocabulary_beside_its_text_tower(options: ExportOptions, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("cat\ndog\nrocket\n")
    export_bundle(replace(options, out=tmp_path / "bundle", labels=tmp_path / "labels.txt"))
    recognizer = Recognizer(tmp_path / "bundle", cache_dir=False)
    assert recognizer.vocabulary().labels == ("cat", "dog", "rocket")
    own, encoded = recognizer.vocabulary(), recognizer.vocabulary(["cat", "dog", "rocket"])
    assert np.abs(own.label_embedding - encoded.label_embedding).max() < 1e-5
    assert len(recognizer.vocabulary(["zebra", "cat"])) == 2


def test_weights_beyond_exps_range_export_with_a_shift(without_text: dict[str, Path], tmp_path: Path) -> None:
    large = tensors(sigrl_shapes(VARIANTS["tiny"]))
    large["SemanticDecoupling.fc3.weight"] *= 4  # row norms of 250
    save(tmp_path / "large.pth", large)
    export_bundle(ExportOptions(tmp_path / "large.pth", tmp_path / "out", **without_text))
    ops = [node.op_type for node, _ in nodes(inlined(tmp_path / "out" / "visual.onnx").graph)]
    assert ops.count("ReduceMax") == 2


def test_weights_beyond_protobufs_limit_go_into_a_file_beside(
    options: ExportOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bundle: Path, photos: list[Path]
) -> None:
    monkeypatch.setattr("sigrl_deploy.export.onnx._PROTOBUF_LIMIT", 1 << 20)
    export_bundle(replace(options, out=tmp_path / "bundle"))
    assert (tmp_path / "bundle" / "visual.onnx").stat().st_size < 1 << 20
    assert {"visual.onnx.data", "text.onnx.data"} < set(manifest(tmp_path / "bundle")["files"])
    (tmp_path / "bundle").rename(tmp_path / "moved")
    large, whole = Recognizer(tmp_path / "moved", cache_dir=False), Recognizer(bundle, cache_dir=False)
    labels = ["cat", "cup"]
    difference = large.scores(photos, large.vocabulary(labels)) - whole.scores(photos, whole.vocabulary(labels))
    assert np.abs(difference).max() < 1e-5  # the same graph and weights


def test_what_the_exporter_chooses_is_in_the_manifest(quick: ExportOptions, tmp_path: Path) -> None:
    chosen = {"preprocess": Contract.SINGLE_POSITIVE, "topk": 3, "template": "a {label}"}
    export_bundle(replace(quick, out=tmp_path / "bundle", **chosen))
    written = manifest(tmp_path / "bundle")
    assert (written["preprocess"]["contract"], written["topk"], written["template"]) == ("single-positive", 3, "a {label}")


def test_past_the_tolerance_nothing_is_left(quick: ExportOptions, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="more than the tolerance of 0; nothing was written"):
        export_bundle(replace(quick, out=tmp_path / "new" / "deep" / "bundle", tolerance=0.0))
    assert list(tmp_path.iterdir()) == []


def test_a_failed_replacement_keeps_the_old_bundle(quick: ExportOptions, bundle: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    before = manifest(out)
    with pytest.raises(UsageError, match=r"^out=.*exists already.*`force`"):
        export_bundle(replace(quick, out=out))
    with pytest.raises(ExportError):
        export_bundle(replace(quick, out=out, tolerance=0.0, force=True))
    assert manifest(out) == before
    export_bundle(replace(quick, out=out, topk=3, force=True))
    assert manifest(out)["topk"] == 3
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_force_replaces_bundles_only(options: ExportOptions, tmp_path: Path, bundle: Path) -> None:
    """Such as another folder, one with another kind of manifest.json, or a file that somebody put into a bundle."""
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "manifest.json").write_text('{"name": "an app"}')
    shutil.copytree(bundle, tmp_path / "noted")
    (tmp_path / "noted" / "notes.txt").write_text("keep")
    (tmp_path / "file").write_text("keep")
    for name, stranger in (("web", "manifest.json"), ("noted", "notes.txt"), ("file", "file"), (".", "file")):
        with pytest.raises(UsageError, match=f"holds {stranger}, which is not part of a bundle"):
            export_bundle(replace(options, out=tmp_path / name, force=True))
    assert (tmp_path / "noted" / "notes.txt").read_text() == "keep"


def test_a_replacement_that_fails_at_the_last_step_keeps_the_old_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "bundle"
    out.mkdir()
    (out / "old").touch()
    rename = Path.replace

    def interrupted(source: Path, target: Path) -> Path:
        if source.name.endswith(".tmp"):
            raise KeyboardInterrupt
        return rename(source, target)

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt), replaced_folder(out) as folder:
        (folder / "new").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["bundle", "old"]


def test_embeddings_of_other_labels_or_towers_never_come_from_the_cache(
    weights: Path, tmp_path: Path, photos: list[Path]
) -> None:
    """The same embeddings in a different order of labels."""
    torch.save(torch.randn(3, 512, generator=torch.Generator().manual_seed(0)), tmp_path / "e.pt")
    found = []
    for name, labels in (("a", ["cat", "dog", "cup"]), ("b", ["dog", "cat", "cup"])):
        (tmp_path / f"{name}.txt").write_text("\n".join(labels))
        options = ExportOptions(
            weights / "sigrl.pth", tmp_path / name, labels=tmp_path / f"{name}.txt", label_embeddings=tmp_path / "e.pt"
        )
        export_bundle(options)
        recognizer = Recognizer(tmp_path / name, cache_dir=tmp_path / "cache")
        found.append(recognizer.scores(photos, recognizer.vocabulary(["cat", "cup", "dog"])))
        own = recognizer.scores(photos, recognizer.vocabulary())[:, np.argsort(labels)]
        assert np.abs(found[-1] - own).max() < 1e-5  # one fp32 graph, its labels in another order
    assert np.abs(found[0] - found[1]).max() > 1e-2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_tower": "missing.pt"}, "no such file"),
        ({"label_embeddings": Path("e.pt")}, "needs the labels .* `labels`"),
        ({"topk": 0}, "at least 1"),
        ({"topk": 26}, "25 patches"),
        ({"tolerance": float("nan")}, "0 or more"),
        ({"text_tower": "ViT-B-16"}, "no such file.*NAME:PRETRAINED"),
        ({"template": "no place"}, "{label}"),
        ({"precisions": (Precision.FP32, Precision.FP32)}, "twice"),
        ({"weights": True, "precisions": (Precision.INT8,)}, "no int8"),
    ],
)
def test_a_bad_option_is_named(options: ExportOptions, tmp_path: Path, change: dict, message: str) -> None:
    with pytest.raises(SigRLError, match=message) as caught:
        export_bundle(replace(options, out=tmp_path / "bundle", **change))
    name, value = next(iter(change.items()))
    assert caught.value.argument == name
    assert caught.value.value in (None, value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_tower": None}, r"sigrl\.pth: holds no text tower, and none of OpenAI's models has .*`text_tower`"),
        ({"checkpoint": Path("x" * 300)}, "no such file"),
        ({"checkpoint": Path("missing.pth")}, r"missing\.pth.*: no such file.*NAME:PRETRAINED"),
    ],
)
def test_a_checkpoint_that_cannot_be_used_is_named(options: ExportOptions, tmp_path: Path, change: dict, message: str) -> None:
    with pytest.raises(SigRLError, match=message) as caught:
        export_bundle(replace(options, out=tmp_path / "bundle", **change))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_text_tower_that_cannot_be_read_is_not_advised_again(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "page.pt").write_text("<!DOCTYPE html>")
    for tower in (tmp_path / "page.pt", weights / "sigrl.pth"):
        with pytest.raises(CheckpointError, match=re.escape(tower.name)) as caught:
            export_bundle(ExportOptions(weights / "sigrl.pth", tmp_path / "out", text_tower=str(tower)))
        assert "`text_tower`" not in str(caught.value)


def test_the_script_of_a_checkout_exports(weights: Path, without_text: dict[str, Path], tmp_path: Path) -> None:
    """`python export/to_onnx.py CKPT` works from anywhere and writes beside the file; no folder of this machine is named."""
    script = [sys.executable, ROOT / "export" / "to_onnx.py"]
    shown = subprocess.run([*script, "-h"], capture_output=True, text=True, check=True).stdout
    assert shown.startswith("Usage: to_onnx.py [OPTIONS] CHECKPOINT\n")
    (tmp_path / "here").mkdir()
    shutil.copy(weights / "sigrl.pth", tmp_path / "best.pth")
    command = [*script, "../best.pth", "--labels", without_text["labels"]]
    command += ["--label-embeddings", without_text["label_embeddings"]]
    done = subprocess.run(command, cwd=tmp_path / "here", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("../best-bundle: exported; largest score error")
    assert re.search(r"\nfp32: exported in \d+ s; measuring .*\nfp32: measured in \d+ s\n", done.stderr, re.DOTALL)
    for path in (tmp_path / "best-bundle").iterdir():
        content = path.read_bytes()
        assert os.fsencode(ROOT) not in content
        assert os.fsencode(weights) not in content
        assert os.fsencode(without_text["labels"].parent) not in content
        assert os.fsencode(tmp_path) not in content
    wrong = subprocess.run(command, cwd=tmp_path / "here", capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert wrong.stderr.count("\n") == 1
    assert "--out ../best-bundle: exists already" in wrong.stderr
    assert "--force" in wrong.stderr


def test_the_first_precision_is_the_default_and_the_finest_makes_the_vocabulary(options: ExportOptions, tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("cat\ncup\nrocket\n")
    out, precisions = tmp_path / "bundle", (Precision.FP16, Precision.FP32)
    export_bundle(replace(options, out=out, labels=labels, precisions=precisions))
    assert list(manifest(out)["variants"]) == ["fp16", "fp32"]
    assert Recognizer(out, device="cpu", cache_dir=False).engine.precision is Precision.FP16
    exact = Recognizer(out, device="cpu", precision="fp32", cache_dir=False)
    own, encoded = exact.vocabulary(), exact.vocabulary(["cat", "cup", "rocket"])
    assert np.abs(own.label_embedding - encoded.label_embedding).max() < 1e-5  # fp16 would be 1e-3 off
    with pytest.raises(SigRLError, match="expected one of fp32, fp16, bf16, int8, int8x3, int8-all"):
        Recognizer(out, precision="half")
