"""Cutting a visual graph's file at SVFR where there is no onnx package, for the CPU's kernel. `cutting.py` does it for GPUs.

The tower refers to the file for its weights, so that they are neither copied nor read twice.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sigrl_deploy.arrays import FloatArray
from sigrl_deploy.bundle.protobuf import BYTES, MOST_BYTES, MOST_FIELDS, Field, fields, varint, written
from sigrl_deploy.files import open_regular

GLOBAL = "global_feature"
WEIGHTS = ("decouple", "fuse", "reconstruct")  # W1ᵀ, Waᵀ and W2ᵀ [D, D], SVFR's inputs after X, T and G Wbᵀ
_DOMAIN = "sigrl"
_SCALED = ("decouple", "reconstruct")  # with weights in 8 bits two more inputs have their scales, divided by LARGEST_STEP
LARGEST_STEP = 127  # of tanh in 8 bits
_REFERRED = 1 << 12  # bytes from which on a tensor stays in the file

# Fields of onnx.proto3
_MODEL_GRAPH, _MODEL_FUNCTION = 7, 25
_FUNCTION_NAME = 1
_NODE, _INITIALIZER, _INPUT, _OUTPUT, _VALUE_INFO = 1, 5, 11, 12, 13
_NODE_INPUT, _NODE_OUTPUT, _NODE_OP, _NODE_ATTRIBUTE, _NODE_DOMAIN = 1, 2, 4, 5, 7
_ATTRIBUTE_GRAPHS = (6, 11)
_DIMS, _DATA_TYPE, _TENSOR_NAME, _RAW_DATA, _EXTERNAL_DATA, _DATA_LOCATION = 1, 2, 8, 9, 13, 14
_NAME = 1  # of a value, and of an entry of a tensor's external data
_TYPE, _TENSOR_TYPE, _ELEMENT_TYPE, _SHAPE, _DIM, _DIM_VALUE, _DIM_NAME = 2, 1, 1, 2, 1, 1, 2
_ELEMENTS = {1: np.float32, 3: np.int8, 10: np.float16}  # onnx.TensorProto.DataType


@dataclass(frozen=True)
class CutGraph:
    """The tower, an ONNX file whose weights lie in the whole graph's folder, and what SVFR needs behind it.

    The tower computes X [B, P, D], which is called `patches`, and GLOBAL [B, D] from pixels [B, 3, H, W]. `inputs` are those of
    the whole graph (see `OpenGraph.inputs`), `weights` SVFR's in fp32 by the names in WEIGHTS. `has_int8` says whether W1 and
    W2 are 8-bit numbers with one scale for each output channel.
    """

    tower: bytes
    patches: str
    inputs: Mapping[str, Sequence[int | str]]
    weights: Mapping[str, FloatArray]
    has_int8: bool


def cut(path: Path) -> CutGraph:
    """Cut a visual graph's file. Raises OSError where it cannot be read, ValueError where it is no file of this package."""
    with open_regular(path, MOST_BYTES) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return _Cutter(path, content).cut()


@dataclass
class _Node:
    place: Field
    op: str = ""
    domain: str = ""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    has_graphs: bool = False


@dataclass
class _Tensor:
    place: Field
    name: str = ""
    dims: list[int] = field(default_factory=list)
    data_type: int = 0
    raw: Field | None = None
    external: dict[str, str] = field(default_factory=dict)


class _Cutter:
    def __init__(self, path: Path, content: mmap.mmap) -> None:
        self._path, self._content = path, content
        self._left = iter(range(MOST_FIELDS))

    def cut(self) -> CutGraph:
        model = list(self._fields(0, len(self._content)))
        graphs = [place for place in model if place.number == _MODEL_GRAPH]
        if len(graphs) != 1:
            raise ValueError(f"it has {len(graphs)} graphs")
        graph = list(self._fields(graphs[0].first, graphs[0].last))
        nodes = [self._node(place) for place in graph if place.number == _NODE]
        tensors = {tensor.name: tensor for tensor in (self._tensor(place) for place in graph if place.number == _INITIALIZER)}
        heads = [node for node in nodes if (node.domain, node.op) == (_DOMAIN, "SVFR")]
        if len(heads) != 1 or len(heads[0].inputs) not in (6, 8):
            raise ValueError("it has no SVFR node as this package writes it")
        (head,) = heads
        weights = self._weights(head, tensors)
        element_type = tensors[head.inputs[4]].data_type  # Waᵀ has the dtype of the patches, also where the others have 8 bits
        tower = self._tower(graph, nodes, tensors, head.inputs[0], element_type)
        functions = [
            place for place in model if place.number == _MODEL_FUNCTION and self._text(place, _FUNCTION_NAME) != "SVFR"
        ]
        others = [place for place in model if place.number not in (_MODEL_GRAPH, _MODEL_FUNCTION)]
        parts = [*map(self._whole, others), written(_MODEL_GRAPH, tower), *map(self._whole, functions)]
        inputs = {self._text(place, _NAME): self._shape(place)[1:] for place in graph if place.number == _INPUT}
        return CutGraph(b"".join(parts), head.inputs[0], inputs, weights, len(head.inputs) == 8)

    def _tower(
        self, graph: list[Field], nodes: list[_Node], tensors: Mapping[str, _Tensor], patches: str, element_type: int
    ) -> bytes:
        """The graph up to `patches` and GLOBAL."""
        wanted, kept = {patches, GLOBAL}, []
        for node in reversed(nodes):  # ONNX keeps producers before consumers
            if wanted & set(node.outputs):
                kept.append(node)
                wanted.update(node.inputs)
        if any(node.has_graphs for node in kept):
            raise ValueError("its tower has nodes with graphs of their own")
        parts = [self._whole(node.place) for node in reversed(kept)]
        parts += [self._referring(tensor) for name, tensor in tensors.items() if name in wanted]
        for place in graph:
            if place.number in (_NODE, _INITIALIZER, _VALUE_INFO):
                continue
            if place.number not in (_INPUT, _OUTPUT) or self._text(place, _NAME) in wanted:
                parts.append(self._whole(place))
        tensor_type = written(_TENSOR_TYPE, written(_ELEMENT_TYPE, element_type))
        parts.append(written(_OUTPUT, written(_NAME, patches) + written(_TYPE, tensor_type)))
        return b"".join(parts)

    def _referring(self, tensor: _Tensor) -> bytes:
        """A tensor that says where in the file its numbers are; a small one as it is."""
        raw = tensor.raw
        if raw is None or raw.last - raw.first < _REFERRED:
            return self._whole(tensor.place)
        place = {"location": self._path.name, "offset": str(raw.first), "length": str(raw.last - raw.first)}
        parts = [self._whole(part) for part in self._inside(tensor.place) if part.number not in (_RAW_DATA, _DATA_LOCATION)]
        parts += [written(_EXTERNAL_DATA, written(1, key) + written(2, value)) for key, value in place.items()]
        return written(_INITIALIZER, b"".join([*parts, written(_DATA_LOCATION, 1)]))

    def _weights(self, head: _Node, tensors: Mapping[str, _Tensor]) -> dict[str, FloatArray]:
        names = [*WEIGHTS, *(f"{name}_scale" for name in _SCALED)]
        arrays = {name: self._array(tensors.get(key), key) for name, key in zip(names, head.inputs[3:], strict=False)}
        square = arrays["fuse"].shape[:1] * 2
        for name, array in arrays.items():
            if not square or array.shape != (square if name in WEIGHTS else square[1:]):
                raise ValueError(f"SVFR's {name} has shape {list(array.shape)}")
        for name in _SCALED:
            if f"{name}_scale" in arrays:
                arrays[name] = arrays[name] * (arrays[f"{name}_scale"] * LARGEST_STEP)
        return {name: arrays[name] for name in WEIGHTS}

    def _array(self, tensor: _Tensor | None, name: str) -> FloatArray:
        """A tensor's numbers in fp32."""
        if tensor is None or tensor.data_type not in _ELEMENTS:
            raise ValueError(f"{name} is no tensor of floats or 8-bit numbers")
        dtype = np.dtype(_ELEMENTS[tensor.data_type]).newbyteorder("<")
        size = math.prod(tensor.dims) * dtype.itemsize
        content = self._content[tensor.raw.first : tensor.raw.last] if tensor.raw else self._external(tensor, size)
        if len(content) != size:
            raise ValueError(f"{name} has {len(content)} bytes, expected {size}")
        return np.frombuffer(content, dtype).reshape(tensor.dims).astype(np.float32)

    def _external(self, tensor: _Tensor, size: int) -> bytes:
        """The bytes of a tensor in the file beside the graph that the bundle's manifest lists."""
        if "location" not in tensor.external:
            raise ValueError(f"{tensor.name} has no raw data")
        path = self._path.parent / tensor.external["location"]
        with open(path, "rb") as file:
            file.seek(int(tensor.external.get("offset", "0")))
            return file.read(min(size, path.stat().st_size))

    def _node(self, place: Field) -> _Node:
        node = _Node(place)
        for part in self._inside(place):
            if part.number == _NODE_INPUT:
                node.inputs.append(self._decoded(part))
            elif part.number == _NODE_OUTPUT:
                node.outputs.append(self._decoded(part))
            elif part.number == _NODE_OP:
                node.op = self._decoded(part)
            elif part.number == _NODE_DOMAIN:
                node.domain = self._decoded(part)
            elif part.number == _NODE_ATTRIBUTE:
                node.has_graphs |= any(inner.number in _ATTRIBUTE_GRAPHS for inner in self._inside(part))
        return node

    def _tensor(self, place: Field) -> _Tensor:
        tensor = _Tensor(place)
        for part in self._inside(place):
            if part.number == _DIMS:
                tensor.dims += self._numbers(part)
            elif part.number == _DATA_TYPE:
                (tensor.data_type,) = self._numbers(part)
            elif part.number == _TENSOR_NAME:
                tensor.name = self._decoded(part)
            elif part.number == _RAW_DATA:
                tensor.raw = part
            elif part.number == _EXTERNAL_DATA:
                key, value = (self._text(part, number) for number in (1, 2))
                tensor.external[key] = value
        return tensor

    def _shape(self, value: Field) -> list[int | str]:
        """The shape of a graph's input: a number where an axis is fixed, else its name."""
        places = [value]
        for number in (_TYPE, _TENSOR_TYPE, _SHAPE, _DIM):
            places = [part for place in places for part in self._inside(place) if part.number == number]
        shape: list[int | str] = []
        for dim in places:
            size: int | str = ""
            for part in self._inside(dim):
                if part.number == _DIM_VALUE:
                    (size,) = self._numbers(part)
                elif part.number == _DIM_NAME:
                    size = self._decoded(part)
            shape.append(size)
        return shape

    def _fields(self, start: int, end: int) -> Iterator[Field]:
        return fields(self._content, start, end, self._left)

    def _inside(self, place: Field) -> Iterator[Field]:
        if place.kind != BYTES:
            raise ValueError(f"expected a message at byte {place.begin}")
        return self._fields(place.first, place.last)

    def _whole(self, place: Field) -> bytes:
        return self._content[place.begin : place.last]

    def _decoded(self, place: Field) -> str:
        return self._content[place.first : place.last].decode("utf-8")

    def _text(self, message: Field, number: int) -> str:
        """A message's field of text; "" where it is not there."""
        return next((self._decoded(part) for part in self._inside(message) if part.number == number), "")

    def _numbers(self, place: Field) -> list[int]:
        """The numbers of a field, which may be packed into one."""
        numbers, position = [], place.first
        while position < place.last:
            number, position = varint(self._content, position, place.last)
            numbers.append(number)
        return numbers
