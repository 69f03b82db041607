"""Bundles with one or two damaged files, with hashes updated or not: opened, labels encoded, a picture scored.

Its graphs are made by hand, of a few nodes: SVFR and GMC have tests of their own, and here thousands are opened.
"""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
import zipfile
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from sigrl_deploy import Recognizer, SigRLError
from sigrl_deploy.bundle.manifest import FORMAT_VERSION, MANIFEST, TOKENIZER, VOCABULARY
from sigrl_deploy.pictures.preprocess import Preprocess
from sigrl_deploy.vocabulary.tokenizer import write_clip_tokenizer
from sigrl_deploy.vocabulary.vocabulary import Vocabulary

from .mutate import damaged

WIDTH, SIDE, PATCH, TOKENS = 8, 16, 8, 49408
_ODD: list[Any] = [
    -1,
    0,
    1,
    3,
    10**6,
    2**33,
    1e400,
    float("nan"),
    True,
    None,
    "",
    "x" * 300,
    "\x1b[31m",
    [],
    {},
    [[[]]],
    "../x",
]
ort.set_default_logger_severity(4)  # the whole process's, so the package leaves it alone; sessions of its own are quiet
_FLOAT, _INT = TensorProto.FLOAT, TensorProto.INT64


def examine(data: bytes) -> bool:
    """Whether the bundle gave finite scores; anything but a SigRLError of one line is a finding."""
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            archive.extractall(folder)
        try:
            recognizer = Recognizer(folder, device="cpu", cache_dir=Path(folder) / "cache")
            for vocabulary in (recognizer.vocabulary(["cat", "a dog"]), recognizer.vocabulary()):
                picture = np.full((20, 30, 3), 130, np.uint8)
                (predictions,) = recognizer.recognize([picture], vocabulary, evidence=True)
                scores = recognizer.scores([picture], vocabulary)
        except SigRLError as error:
            if not str(error).isprintable():
                raise AssertionError(f"an error of more than a line: {error}") from error
            return False
        assert np.isfinite(scores).all()
        assert predictions
        return True


def mutate(data: bytes, others: list[bytes], rng: Random) -> bytes:
    """Damage one or two files, within their structure or as plain bytes, and update the hashes nine times in ten."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    contents = list(files.values())
    for _ in range(rng.choice([1, 1, 2])):
        name = rng.choice([*sorted(files), MANIFEST, "visual.onnx"])
        change = _STRUCTURES.get(Path(name).suffix)
        structured = change is not None and rng.random() < 0.7
        files[name] = change(files[name], rng) if structured and change else damaged(files[name], contents, rng)
    if rng.random() < 0.9:
        files[MANIFEST] = _mended(files)
    return packed(files)


def _mended(files: dict[str, bytes]) -> bytes:
    try:
        values = json.loads(files[MANIFEST])
        values["files"] |= {name: digest(files[name]) for name in values["files"] if name in files}
        return json.dumps(values).encode()
    except (ValueError, TypeError, KeyError, RecursionError):
        return files[MANIFEST]


def _changed_json(data: bytes, rng: Random) -> bytes:
    """Replace one value, anywhere, by an odd one, or remove it."""
    try:
        values = json.loads(data)
    except ValueError:
        return data
    place = values
    while isinstance(place, (dict, list)) and place:
        key = rng.choice(sorted(place) if isinstance(place, dict) else range(min(len(place), 1000)))
        if rng.random() < 0.5 or not isinstance(place[key], (dict, list)) or not place[key]:
            if rng.random() < 0.2:
                del place[key]
            else:
                place[key] = rng.choice(_ODD)
            break
        place = place[key]
    return json.dumps(values).encode()


def _changed_graph(data: bytes, rng: Random) -> bytes:
    try:
        model = onnx.load_from_string(data)
    except Exception:  # an earlier change may have damaged it
        return data
    graph = model.graph
    choice = rng.randrange(7)
    if choice == 0 and graph.node:
        del graph.node[rng.randrange(len(graph.node))]
    elif choice == 1 and graph.node:
        rng.choice(graph.node).op_type = rng.choice(["Exp", "Reshape", "ConstantOfShape", "Loop", "EPContext", "Cast", ""])
    elif choice == 2 and graph.initializer:
        tensor = rng.choice(graph.initializer)
        tensor.dims[:] = [rng.choice([0, 1, -1, 7, 2**31, 2**62]) for _ in tensor.dims]
    elif choice == 3 and graph.initializer:
        tensor = rng.choice(graph.initializer)
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=rng.choice(["../x", "/etc/passwd", MANIFEST, "visual.onnx", "x"]))
    elif choice == 4 and graph.initializer:
        tensor = rng.choice(graph.initializer)
        values = numpy_helper.to_array(tensor)
        odd = rng.choice([0, -1, np.inf, np.nan, 1e38]) if values.dtype.kind == "f" else rng.choice([0, -1, 2**31, 2**62])
        tensor.CopyFrom(numpy_helper.from_array(np.full(values.shape, odd, values.dtype), tensor.name))
    elif choice == 5:
        part = rng.choice([*graph.input, *graph.output])
        part.type.tensor_type.elem_type = rng.choice([_FLOAT, _INT, TensorProto.STRING, TensorProto.FLOAT16, 99])
    else:
        part = rng.choice([*graph.input, *graph.output, *graph.node])
        part.name = rng.choice(["", "pixels", "label_embedding", "x" * 1000, "\x1b"])
    return model.SerializeToString()


def _changed_arrays(data: bytes, rng: Random) -> bytes:
    rows = rng.choice([1, 2, 3])
    shape = (rows, rng.choice([WIDTH, WIDTH, 1, 0, 512]))
    arrays = {
        "labels": rng.choice([np.array(["cat", "dog", "cup"][:rows]), np.arange(rows), np.array([b"a"] * rows), np.array("x")]),
        "label_embedding": np.full(
            shape, *rng.choice([(0, "f4"), (1, "f4"), (np.nan, "f4"), (np.inf, "f4"), (1, "f8"), (1, "i1")])
        ),
        "graph_projection": np.ones(rng.choice([shape, shape, (1, 1), ()]), np.float32),
    }
    buffer = io.BytesIO()
    (np.savez if rng.random() < 0.8 else np.savez_compressed)(buffer, **arrays)
    return buffer.getvalue()


_STRUCTURES = {".json": _changed_json, ".onnx": _changed_graph, ".npz": _changed_arrays}


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def packed(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@cache
def corpus() -> dict[str, bytes]:
    """One whole bundle."""
    with tempfile.TemporaryDirectory() as folder:
        write_clip_tokenizer(Path(folder) / TOKENIZER)
        rows = np.eye(3, WIDTH, dtype=np.float32)
        Vocabulary(("cat", "cup", "dog"), rows, rows).write(Path(folder) / VOCABULARY)
        files = {name: (Path(folder) / name).read_bytes() for name in (TOKENIZER, VOCABULARY)}
    files |= {"visual.onnx": _visual().SerializeToString(), "text.onnx": _text().SerializeToString()}
    manifest = {
        "format_version": FORMAT_VERSION,
        "arch": "sigrl",
        "embed_dim": WIDTH,
        "image_size": SIDE,
        "patch_size": PATCH,
        "topk": 2,
        "template": "a {label}",
        "context_length": 77,
        "preprocess": Preprocess.for_contract("zero-shot", SIDE).to_plain(),
        "variants": {"fp32": {"visual": "visual.onnx", "text": "text.onnx", "weights": None, "parity": {}}},
        "files": {name: digest(content) for name, content in files.items()},
        "source": {},
        "tools": {},
        "created": "",
    }
    return {"bundle": packed({MANIFEST: json.dumps(manifest).encode(), **files})}


def _visual() -> onnx.ModelProto:
    """Patches by a convolution, moved by the mean of both of a vocabulary's inputs; their mean as the global feature."""
    nodes = [
        helper.make_node("Conv", ["pixels", "kernel"], ["maps"], strides=[PATCH, PATCH]),
        helper.make_node("Reshape", ["maps", "columns"], ["channels"]),
        helper.make_node("Transpose", ["channels"], ["patches"], perm=[0, 2, 1]),
        helper.make_node("Mul", ["label_embedding", "graph_projection"], ["products"]),
        helper.make_node("ReduceMean", ["products", "rows"], ["mean"], keepdims=0),
        helper.make_node("Add", ["patches", "mean"], ["local_feature"]),
        helper.make_node("ReduceMean", ["local_feature", "second"], ["global_feature"], keepdims=0),
    ]
    kernel = np.random.default_rng(0).standard_normal((WIDTH, 3, PATCH, PATCH)).astype(np.float32)
    constants = {"kernel": kernel, "columns": np.array([0, WIDTH, -1]), "rows": np.array([0]), "second": np.array([1])}
    inputs = {"pixels": ["batch", 3, SIDE, SIDE], "label_embedding": ["c", WIDTH], "graph_projection": ["c", WIDTH]}
    outputs = {"local_feature": ["batch", "p", WIDTH], "global_feature": ["batch", WIDTH]}
    return _model(nodes, constants, {name: (_FLOAT, shape) for name, shape in inputs.items()}, outputs)


def _text() -> onnx.ModelProto:
    """Cached rows, behind them the means of the tokens' rows; a square for the label graph."""
    nodes = [
        helper.make_node("Gather", ["table", "token_ids"], ["tokens"]),
        helper.make_node("ReduceMean", ["tokens", "second"], ["new"], keepdims=0),
        helper.make_node("Concat", ["cached_embedding", "new"], ["label_embedding"], axis=0),
        helper.make_node("Mul", ["label_embedding", "label_embedding"], ["graph_projection"]),
    ]
    table = np.random.default_rng(1).standard_normal((TOKENS, WIDTH)).astype(np.float32)
    inputs = {"cached_embedding": (_FLOAT, ["k", WIDTH]), "token_ids": (_INT, ["n", "t"])}
    outputs = {"label_embedding": ["c", WIDTH], "graph_projection": ["c", WIDTH]}
    return _model(nodes, {"table": table, "second": np.array([1])}, inputs, outputs)


def _model(
    nodes: list[onnx.NodeProto],
    constants: dict[str, np.ndarray],
    inputs: dict[str, tuple[int, list[Any]]],
    outputs: dict[str, list[Any]],
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, *value) for name, value in inputs.items()],
        [helper.make_tensor_value_info(name, _FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
