"""Bundles changed by somebody who also updates the hashes: no other bundle's scores change, and no unlisted file is read."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from sigrl_deploy import Recognizer
from sigrl_deploy.bundle.bundle import Bundle
from sigrl_deploy.bundle.external_data import external_files
from sigrl_deploy.errors import BundleError, ScoreError
from tests.support.changed_bundles import change_graph, mend_hashes, nan_for_dark_pictures
from tests.support.refusals import assert_refused

LABELS = ["cat", "cup", "rocket"]
COMMAND = [sys.executable, "-m", "sigrl_deploy"]


@pytest.fixture
def copied(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "copy"))


def reverse_token_embedding(model: onnx.ModelProto) -> None:
    tensor = max(model.graph.initializer, key=lambda tensor: tensor.dims[0] if tensor.dims else 0)
    assert tensor.dims[0] > 49_000
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[::-1].copy(), tensor.name))


def test_another_text_graph_cannot_poison_the_cache(bundle: Path, copied: Path, photos: list[Path], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    right = Recognizer(bundle, device="cpu", cache_dir=False)
    expected = right.scores(photos, right.vocabulary(LABELS))
    change_graph(copied, "text.onnx", reverse_token_embedding)
    poisonous = Recognizer(copied, device="cpu", cache_dir=cache)
    wrong = poisonous.scores(photos, poisonous.vocabulary(LABELS))
    assert np.abs(wrong - expected).max() > 0.01
    good = Recognizer(bundle, device="cpu", cache_dir=cache)
    assert np.array_equal(good.scores(photos, good.vocabulary(LABELS)), expected)


def other_tokens(folder: Path) -> None:
    path = folder / "tokenizer.json"
    values = json.loads(path.read_text())
    ids = values["model"]["vocab"]
    ids["cat</w>"], ids["dog</w>"] = ids["dog</w>"], ids["cat</w>"]
    path.write_text(json.dumps(values))
    mend_hashes(folder)


def another_template(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"template": "no {label} here"}))


@pytest.mark.parametrize("change", [other_tokens, another_template])
def test_rows_depend_on_tokenizer_and_template(
    bundle: Path, copied: Path, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    expected = Recognizer(bundle, device="cpu", cache_dir=False).vocabulary(LABELS).label_embedding
    change(copied)
    changed = Recognizer(copied, device="cpu", cache_dir=tmp_path / "cache").vocabulary(LABELS).label_embedding
    assert not np.array_equal(changed[0], expected[0])
    found = Recognizer(bundle, device="cpu", cache_dir=tmp_path / "cache").vocabulary(LABELS).label_embedding
    assert np.array_equal(found, expected)


def test_the_same_bundle_elsewhere_shares_the_cache(bundle: Path, copied: Path, tmp_path: Path) -> None:
    first = Recognizer(bundle, device="cpu", cache_dir=tmp_path / "cache")
    assert Recognizer(copied, device="cpu", cache_dir=tmp_path / "cache").vocabulary(LABELS).origin == (
        first.vocabulary(LABELS).origin
    )
    assert len(list((tmp_path / "cache").glob("*/labels-*"))) == 1


def in_a_file_beside_it(folder: Path, name: str, location: str) -> None:
    model = onnx.load(folder / name)
    onnx.save(model, folder / name, save_as_external_data=True, location="hidden.bin", size_threshold=10_000)
    if location != "hidden.bin":
        (folder / name).write_bytes((folder / name).read_bytes().replace(b"hidden.bin", location.encode()))


@pytest.mark.parametrize("name", ["visual.onnx", "text.onnx"])
def test_weights_in_a_file_that_is_not_listed(copied: Path, name: str) -> None:
    in_a_file_beside_it(copied, name, "hidden.bin")
    assert external_files(copied / name) == {"hidden.bin"}
    mend_hashes(copied)
    assert_refused(lambda: Recognizer(copied, cache_dir=False), BundleError, name, "hidden.bin")
    mend_hashes(copied, "hidden.bin")
    expected = Recognizer(copied, device="cpu", cache_dir=False).vocabulary(LABELS).label_embedding
    data = bytearray((copied / "hidden.bin").read_bytes())
    data[len(data) // 2] ^= 1
    (copied / "hidden.bin").write_bytes(data)
    assert np.isfinite(expected).all()
    assert_refused(lambda: Recognizer(copied, cache_dir=False), BundleError, "hidden.bin", "sha256")


def test_the_cache_key_holds_weights_beside_the_graph(copied: Path, tmp_path: Path) -> None:
    in_a_file_beside_it(copied, "text.onnx", "hidden.bin")
    mend_hashes(copied, "hidden.bin")
    origins = set()
    for byte in (0, 1):
        with (copied / "hidden.bin").open("r+b") as file:
            file.seek(2)  # low bits of a weight
            file.write(bytes([byte]))
        mend_hashes(copied)
        origins.add(Recognizer(copied, device="cpu", cache_dir=tmp_path / "cache").vocabulary(LABELS).origin)
    assert len(origins) == 2


@pytest.mark.parametrize("graph", ["visual", "text"])
def test_a_graph_by_another_name_is_looked_at_too(copied: Path, graph: str) -> None:
    in_a_file_beside_it(copied, f"{graph}.onnx", "hidden.bin")
    (copied / f"{graph}.onnx").rename(copied / f"{graph}.model")
    path = copied / "manifest.json"
    path.write_text(path.read_text().replace(f"{graph}.onnx", f"{graph}.model"))
    mend_hashes(copied)
    assert_refused(lambda: Recognizer(copied, cache_dir=False), BundleError, f"{graph}.model", ".onnx")


def test_a_file_that_cannot_be_read(copied: Path) -> None:
    """Root can open any file, so this takes one that fails when it is read."""
    (copied / "text.onnx").unlink()
    (copied / "text.onnx").symlink_to("/proc/self/mem")
    assert_refused(lambda: Bundle(copied), BundleError, "text.onnx", "Input/output error")


@pytest.mark.parametrize("location", ["../hiden.b", "/etc/passw", "a/../hid.b"])
def test_weights_outside_the_bundle(copied: Path, location: str) -> None:
    in_a_file_beside_it(copied, "visual.onnx", location)
    mend_hashes(copied)
    assert_refused(lambda: Recognizer(copied, cache_dir=False), BundleError, "visual.onnx", location)


def hidden_tensor() -> TensorProto:
    tensor = TensorProto(name="t", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="found")
    return tensor


def in_attribute(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Constant", [], ["unused"], value=hidden_tensor()))


def in_list(model: onnx.ModelProto) -> None:
    attribute = onnx.AttributeProto(name="values", type=onnx.AttributeProto.TENSORS)
    attribute.tensors.append(hidden_tensor())
    model.graph.node.append(helper.make_node("Custom", [], ["unused"], domain="custom"))
    model.graph.node[-1].attribute.append(attribute)


def in_subgraph(model: onnx.ModelProto) -> None:
    inner = helper.make_graph([helper.make_node("Constant", [], ["u"], value=hidden_tensor())], "inner", [], [])
    model.graph.node.append(helper.make_node("If", ["c"], ["u"], then_branch=inner, else_branch=inner))


def in_function(model: onnx.ModelProto) -> None:
    nodes = [helper.make_node("Constant", [], ["u"], value=hidden_tensor())]
    model.functions.append(helper.make_function("d", "F", [], ["u"], nodes, [helper.make_opsetid("", 20)]))


def in_function_default(model: onnx.ModelProto) -> None:
    in_function(model)
    model.functions[0].node[0].attribute[0].t.CopyFrom(numpy_helper.from_array(np.zeros(1, np.float32)))
    model.functions[0].attribute_proto.append(helper.make_attribute("a", hidden_tensor()))


def in_sparse(model: onnx.ModelProto) -> None:
    model.graph.sparse_initializer.append(onnx.SparseTensorProto(values=hidden_tensor(), dims=[1]))


def in_training(model: onnx.ModelProto) -> None:
    model.training_info.add().algorithm.initializer.append(hidden_tensor())


@pytest.mark.parametrize(
    "place",
    [in_attribute, in_list, in_subgraph, in_function, in_function_default, in_sparse, in_training],
    ids=lambda f: f.__name__,
)
def test_every_place_of_a_tensor_is_looked_at(tmp_path: Path, place: Callable[[onnx.ModelProto], None]) -> None:
    model = helper.make_model(helper.make_graph([], "g", [], []))
    model.graph.initializer.append(numpy_helper.from_array(np.arange(1000, dtype=np.float32), "w"))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    assert external_files(tmp_path / "m.onnx") == set()
    place(model)
    content = model.SerializeToString()
    (tmp_path / "m.onnx").write_bytes(content)
    assert external_files(tmp_path / "m.onnx") == {"found"}
    (tmp_path / "m.onnx").write_bytes(content[:-3])
    with pytest.raises(ValueError, match="byte"):
        external_files(tmp_path / "m.onnx")


def test_compiled_code_in_a_graph(copied: Path) -> None:
    def add(model: onnx.ModelProto) -> None:
        model.graph.node.append(
            helper.make_node("EPContext", [], ["unused"], domain="com.microsoft", embed_mode=0, ep_cache_context="engine.bin")
        )

    change_graph(copied, "visual.onnx", add)
    assert_refused(lambda: Recognizer(copied, cache_dir=False), BundleError, "visual.onnx", "EPContext")


def test_a_graph_of_millions_of_fields_is_given_up(tmp_path: Path) -> None:
    """4 MB of empty nodes would take seconds to read, and 2 GB an hour."""
    nodes = bytes([0x0A, 0]) * 2_000_000
    length = len(nodes)
    varint = bytes((length >> 7 * i & 0x7F) | (0x80 if length >> 7 * (i + 1) else 0) for i in range(4))
    (tmp_path / "m.onnx").write_bytes(bytes([7 << 3 | 2]) + varint + nodes)
    with pytest.raises(ValueError, match="500000"):
        external_files(tmp_path / "m.onnx")


def test_no_bundle_names_what_it_does_not_list(bundle: Path) -> None:
    """The graphs that export writes, which have initializers, functions and loops."""
    for path in bundle.glob("*.onnx"):
        assert external_files(path) == set()


@pytest.mark.parametrize("evidence", [False, True], ids=["", "heat maps"])
def test_features_that_are_no_numbers_are_an_error_record(copied: Path, tmp_path: Path, evidence: bool) -> None:
    change_graph(copied, "visual.onnx", nan_for_dark_pictures)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name, brightness in (("a-bright", 255), ("b-dark", 0), ("c-bright", 200)):
        Image.new("RGB", (90, 90), (brightness, brightness, brightness)).save(pictures / f"{name}.png")
    (tmp_path / "labels.txt").write_text("\n".join(LABELS))
    out = tmp_path / "out.jsonl"
    command = [*COMMAND, "infer", pictures, "--bundle", copied, "--labels", tmp_path / "labels.txt", "--out", out]
    command += ["--device", "cpu", "--batch-size", "2", *(["--heatmaps", tmp_path / "maps"] if evidence else [])]
    run = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert run.returncode == 1, run.stderr
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert ["error" in record for record in records] == [False, True, False]
    assert "not finite in fp32" in records[1]["error"]
    recognizer = Recognizer(copied, device="cpu", cache_dir=False)
    vocabulary = recognizer.vocabulary(LABELS)
    assert np.isfinite(recognizer.scores([pictures / "a-bright.png"], vocabulary)).all()
    given = [pictures / "a-bright.png", pictures / "b-dark.png"]
    for use in (recognizer.scores, partial(recognizer.recognize, evidence=evidence)):
        with pytest.raises(ScoreError) as caught:
            use(given, vocabulary)
        assert caught.value.picture == 1


def infinite_weights(model: onnx.ModelProto) -> None:
    tensor = max(model.graph.initializer, key=lambda tensor: tensor.dims[0] if tensor.dims else 0)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(np.inf), tensor.name))


def narrower(model: onnx.ModelProto) -> None:
    (node,) = (node for node in model.graph.node if "global_feature" in node.output)
    node.output[list(node.output).index("global_feature")] = "before"
    for name, value in (("start", 0), ("end", 3), ("axis", 1)):
        model.graph.initializer.append(numpy_helper.from_array(np.array([value]), name))
    model.graph.node.append(helper.make_node("Slice", ["before", "start", "end", "axis"], ["global_feature"]))


def fewer_tokens(model: onnx.ModelProto) -> None:
    tensor = max(model.graph.initializer, key=lambda tensor: tensor.dims[0] if tensor.dims else 0)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[:100].copy(), tensor.name))


@pytest.mark.parametrize(
    ("name", "change", "facts"),
    [
        ("text.onnx", infinite_weights, ("text graph", "`precision`")),
        ("text.onnx", fewer_tokens, ("text.onnx", "ONNX Runtime")),
        ("visual.onnx", narrower, ("visual.onnx", "global_feature", "(1, 3)", "(1, 512)")),
    ],
    ids=["infinite weights", "token ids out of range", "narrower features"],
)
def test_a_graph_that_gives_something_else(
    copied: Path, photos: list[Path], name: str, change: Callable[[onnx.ModelProto], None], facts: tuple[str, ...]
) -> None:
    change_graph(copied, name, change)
    recognizer = Recognizer(copied, device="cpu", cache_dir=False)

    def score() -> None:
        recognizer.scores(photos[:1], recognizer.vocabulary(LABELS))

    assert_refused(score, BundleError, *facts)


def test_another_patch_size_is_found_at_the_first_picture(copied: Path, photos: list[Path]) -> None:
    path = copied / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"patch_size": 64}))
    recognizer = Recognizer(copied, device="cpu", cache_dir=False)
    vocabulary = recognizer.vocabulary(LABELS)
    recognizing = partial(recognizer.recognize, photos[:1], vocabulary, evidence=True)
    assert_refused(recognizing, BundleError, "visual.onnx", "local_feature", "(1, 25, 512)", "(1, 1, 512)")


@pytest.mark.parametrize("kind", ["pipe", "endless", "huge"])
def test_a_manifest_that_is_no_file_of_its_size(copied: Path, photos: list[Path], kind: str) -> None:
    path = copied / "manifest.json"
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "endless":
        path.symlink_to("/dev/zero")
    else:
        with path.open("wb") as file:
            file.truncate(1 << 40)
    command = [*COMMAND, "infer", str(photos[0]), "--bundle", str(copied)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert run.returncode == 3, run.stderr
    assert len(run.stderr.splitlines()) == 1
    assert "manifest.json: cannot be read" in run.stderr


def test_a_vocabulary_that_inflates(copied: Path) -> None:
    """A bundle's vocabulary is read before anything is known about it: 200 kB of compressed zeros would become 200 MB."""
    with (copied / "vocabulary.npz").open("wb") as file:
        np.savez_compressed(file, labels=np.array(["a"]), label_embedding=np.zeros((1, 50_000_000), np.float32))
    mend_hashes(copied, "vocabulary.npz")
    recognizer = Recognizer(copied, device="cpu", cache_dir=False)
    assert_refused(recognizer.vocabulary, BundleError, "vocabulary.npz", "labels.npy")
