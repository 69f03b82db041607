"""Which other files an ONNX file reads tensors from. The runtime has no onnx package, so this reads the protobuf itself.

The schema is that of onnx.proto3. Only the path to the file names is decoded, so that weights cost no memory.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path

from sigrl_deploy.bundle.protobuf import BYTES, MOST_BYTES, MOST_FIELDS, fields
from sigrl_deploy.files import open_regular

# Message → field number → the message in that field. These lead to every tensor that a model may hold.
_SCHEMA: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Graph": {1: "Node", 5: "Tensor", 15: "Sparse"},
    "Function": {7: "Node", 11: "Attribute"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "Sparse", 23: "Sparse"},
    "Sparse": {1: "Tensor", 2: "Tensor"},
    "Tensor": {13: "External"},
    "External": {},
}
_DEEPEST = 100  # nested messages; protobuf's own limit
_OP_TYPE = 4  # field of a node
_KEY, _VALUE = 1, 2  # fields of an entry of a tensor's external data


def external_files(path: Path) -> set[str]:
    """The locations of external data that an ONNX file names, unchecked: relative to its folder, in an honest file.

    Raises OSError where the file cannot be read. Raises ValueError where it is not a whole ONNX file, or holds an EPContext
    node, which is compiled code, or names a file of it, that some execution providers would run.
    """
    with open_regular(path, MOST_BYTES) as file:
        if os.fstat(file.fileno()).st_size == 0:
            return set()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return set(_locations(content, 0, len(content), "Model", 0, iter(range(MOST_FIELDS))))


def _locations(content: mmap.mmap, start: int, end: int, message: str, depth: int, left: Iterator[int]) -> Iterator[str]:
    """`left` yields once for each field that may still be read."""
    if depth > _DEEPEST:
        raise ValueError(f"more than {_DEEPEST} nested messages")
    inner, entry = _SCHEMA[message], {}
    for number, kind, _, first, last in fields(content, start, end, left):
        if kind != BYTES:
            continue
        if message == "Node" and number == _OP_TYPE and content[first:last] == b"EPContext":
            raise ValueError("it holds an EPContext node, which is compiled code")
        if message == "External":
            entry[number] = content[first:last]
        elif number in inner:
            yield from _locations(content, first, last, inner[number], depth + 1, left)
    if entry.get(_KEY) == b"location":
        yield entry.get(_VALUE, b"").decode("utf-8")
