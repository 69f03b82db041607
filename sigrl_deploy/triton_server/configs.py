"""`config.pbtxt` of the three models, in protobuf's text format.

By hand, since tritonclient, which has the schema, brings grpc and aiohttp along. Tests parse these texts by that schema.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sigrl_deploy.bundle.manifest import Manifest
from sigrl_deploy.triton_server import names
from sigrl_deploy.version import __version__

PICTURE_FILE = "picture"  # of the front model's warm-up
_MOST_WAITING = 256  # requests; more are refused
_LONGEST_WAIT = 30_000_000  # microseconds that a request may wait before it is refused
_FOR_A_BATCH = 2_000  # microseconds that a request waits for others
_FRONTS = 2  # processes: one decodes while another waits for the visual model
_TYPES = {"token_ids": "TYPE_INT64"}  # all others are fp32
_WARM_SIZES: dict[str, int] = {"labels": 2, "tokens": 8}


@dataclass(frozen=True)
class Target:
    """What runs a graph: Triton's name of the backend, the kind of its instances, and for TensorRT the plan of each GPU.

    `plans` maps a compute capability to a file name; `default` is the file for all other GPUs.
    """

    backend: str
    kind: str
    default: str
    plans: Mapping[str, str]


def front_config(most_pictures: int, most_labels: int) -> str:
    """The front model, for so many pictures a batch, and labels a picture."""
    inputs = [
        _tensor("input", names.PICTURE, "TYPE_STRING", [1]),
        _tensor("input", names.LABELS, "TYPE_STRING", [-1], "allow_ragged_batch: true", "optional: true"),
        _tensor("input", names.TOP, "TYPE_INT32", [1], "optional: true"),
        _tensor("input", names.THRESHOLD, "TYPE_FP32", [1], "optional: true"),
    ]
    outputs = [
        _tensor("output", names.LABEL, "TYPE_STRING", [-1]),
        _tensor("output", names.SCORE, "TYPE_FP32", [-1]),
        _tensor("output", names.ERROR, "TYPE_STRING", [1]),
    ]
    # Decodes a picture for no labels: the other models cannot be called yet, and warm themselves up.
    warm = {
        names.PICTURE: f'data_type: TYPE_STRING dims: [1] input_data_file: "{PICTURE_FILE}"',
        names.LABELS: "data_type: TYPE_STRING dims: [1] zero_data: true",
    }
    return _config(
        f"A front model: pictures and labels in, tags out. It calls {names.VISUAL} and {names.TEXT}.",
        f'name: "{names.FRONT}"',
        'backend: "python"',
        f"max_batch_size: {most_pictures}",
        *inputs,
        *outputs,
        _instances("KIND_CPU", _FRONTS),
        _batching(),
        _warm_up(warm, batch=1),
        f'parameters {{ key: "{names.MOST_LABELS}" value {{ string_value: "{most_labels}" }} }}',
    )


def visual_config(manifest: Manifest, target: Target) -> str:
    """The visual graph."""
    (precision,) = manifest.variants
    batch = 1 if precision.takes_one_picture else -1
    shapes = names.visual_inputs(manifest), names.visual_outputs(manifest)
    about = "The visual graph: pixels and a vocabulary in, features out."
    return _graph_config(
        about, names.VISUAL, target, shapes, {"pixels": batch, "local_feature": batch, "global_feature": batch}
    )


def text_config(manifest: Manifest, target: Target) -> str:
    """The text graph."""
    about = "The text graph: token ids and cached rows in, label embeddings and their graph projection out."
    return _graph_config(about, names.TEXT, target, (names.text_inputs(manifest), names.text_outputs(manifest)), {})


_Shapes = Mapping[str, Sequence[int | str]]


def _graph_config(about: str, name: str, target: Target, shapes: tuple[_Shapes, _Shapes], first: Mapping[str, int]) -> str:
    """`shapes` are those of inputs and outputs after the first axis, `first` the first axis where it is not dynamic."""
    tensors = [
        _tensor(kind, tensor, _TYPES.get(tensor, "TYPE_FP32"), [first.get(tensor, -1), *map(_dynamic, shape)])
        for kind, each in zip(("input", "output"), shapes, strict=True)
        for tensor, shape in each.items()
    ]
    warm = {
        tensor: _made_up(_TYPES.get(tensor, "TYPE_FP32"), [_warm_rows(tensor), *map(_warm, shape)])
        for tensor, shape in shapes[0].items()
    }
    plans = [f'cc_model_filenames {{ key: "{gpu}" value: "{file}" }}' for gpu, file in target.plans.items()]
    return _config(
        about,
        f'name: "{name}"',
        f'backend: "{target.backend}"',
        f'default_model_filename: "{target.default}"',
        *plans,
        "max_batch_size: 0",
        *tensors,
        _instances(target.kind, 1),
        *([_without_tf32()] if target.backend == "onnxruntime" and target.kind != "KIND_CPU" else []),
        _warm_up(warm, batch=0),
    )


def _dynamic(size: int | str) -> int:
    return size if isinstance(size, int) else -1


def _warm(size: int | str) -> int:
    return size if isinstance(size, int) else _WARM_SIZES[size]


def _warm_rows(tensor: str) -> int:
    return 1 if tensor == "pixels" else _WARM_SIZES["labels"]


def _config(about: str, *parts: str) -> str:
    head = f"# Written by sigrl-deploy {__version__}. {about}"
    together = f"version_policy {{ specific {{ versions: [ {names.VERSION} ] }} }}"  # the models of one export
    return "\n".join([head, *parts, together]) + "\n"


def _tensor(kind: str, name: str, data_type: str, dims: Sequence[int], *more: str) -> str:
    extra = "".join(f" {each}" for each in more)
    return f'{kind} {{ name: "{name}" data_type: {data_type} dims: {json.dumps(list(dims))}{extra} }}'


def _instances(kind: str, count: int) -> str:
    return f"instance_group {{ kind: {kind} count: {count} }}"


def _batching() -> str:
    policy = f"max_queue_size: {_MOST_WAITING} default_timeout_microseconds: {_LONGEST_WAIT} timeout_action: REJECT"
    return (
        f"dynamic_batching {{\n  max_queue_delay_microseconds: {_FOR_A_BATCH}\n"
        f"  default_queue_policy {{ {policy} allow_timeout_override: true }}\n}}"
    )


def _without_tf32() -> str:
    # fp32 means fp32: TF32 keeps 10 bits of the mantissa.
    cuda = 'gpu_execution_accelerator { name: "cuda" parameters { key: "use_tf32" value: "0" } }'
    return f"optimization {{ execution_accelerators {{ {cuda} }} }}"


def _warm_up(inputs: Mapping[str, str], batch: int) -> str:
    lines = "".join(f'  inputs {{ key: "{name}" value {{ {value} }} }}\n' for name, value in inputs.items())
    return f'model_warmup {{\n  name: "one"\n  batch_size: {batch}\n{lines}}}'


def _made_up(data_type: str, dims: Sequence[int]) -> str:
    how = "random_data" if data_type == "TYPE_FP32" else "zero_data"  # a token id has bounds
    return f"data_type: {data_type} dims: {json.dumps(list(dims))} {how}: true"
