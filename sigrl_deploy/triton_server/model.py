"""The front model as Triton's Python backend runs it: tensors of requests to rows, answers to tensors.

Only that backend has the module `triton_python_backend_utils`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from sigrl_deploy.arrays import FloatArray
from sigrl_deploy.triton_server.engine import ModelError
from sigrl_deploy.triton_server.front import Answer, Front, Row
from sigrl_deploy.triton_server.names import (
    BUNDLE,
    ERROR,
    LABEL,
    LABELS,
    MOST_LABELS,
    PICTURE,
    SCORE,
    THRESHOLD,
    TOP,
    VERSION,
)


class TritonPythonModel:
    """See Triton's Python backend, which makes one in each process of the front model."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Open the bundle. The other models cannot be called before the server is ready, which it is when all have loaded."""
        logging.getLogger("sigrl_deploy").addHandler(_TritonLog())
        folder = Path(args["model_repository"]) / args["model_version"] / BUNDLE
        parameters = json.loads(args["model_config"])["parameters"]
        self._front = Front(folder, call, int(parameters[MOST_LABELS]["string_value"]))

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """A response to each request."""
        responses: dict[int, Any] = {}
        rows: dict[int, list[Row]] = {}
        for i, request in enumerate(requests):
            if request.is_cancelled():
                responses[i] = _failed("the client has left", pb_utils.TritonError.CANCELLED)
            else:
                rows[i] = rows_of(request)
        answers = iter(self._front.answer([row for each in rows.values() for row in each]))
        for i, each in rows.items():
            responses[i] = _response([next(answers) for _ in each])
        return [responses[i] for i in range(len(requests))]

    def finalize(self) -> None:
        """Release what `initialize` opened."""
        self._front.close()


class _TritonLog(logging.Handler):
    """Writes to the server's log."""

    def emit(self, record: logging.LogRecord) -> None:
        write = pb_utils.Logger.log_warn if record.levelno >= logging.WARNING else pb_utils.Logger.log_verbose
        write(self.format(record))


def call(model: str, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> dict[str, FloatArray]:
    """See `engine.Call`."""
    request = pb_utils.InferenceRequest(
        model_name=model,
        model_version=VERSION,
        requested_output_names=list(outputs),
        inputs=[pb_utils.Tensor(name, array) for name, array in inputs.items()],
        preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU),
    )
    response = request.exec()
    if response.has_error():
        raise ModelError(f"{model}: {response.error().message()}")
    # Copied, since the memory is the response's.
    return {name: np.array(pb_utils.get_output_tensor_by_name(response, name).as_numpy()) for name in outputs}


def rows_of(request: Any) -> list[Row]:
    """The pictures of a request, each with what it is asked for."""
    given: dict[str, NDArray[Any]] = {}
    for name in (PICTURE, LABELS, TOP, THRESHOLD):
        tensor = pb_utils.get_input_tensor_by_name(request, name)
        if tensor is not None:
            given[name] = tensor.as_numpy()
    return [
        Row(
            bytes(picture),
            tuple(map(bytes, given[LABELS][i])) if LABELS in given else None,
            int(given[TOP][i, 0]) if TOP in given else None,
            float(given[THRESHOLD][i, 0]) if THRESHOLD in given else None,
        )
        for i, picture in enumerate(given[PICTURE][:, 0])
    ]


def _response(answers: Sequence[Answer | ModelError]) -> Any:
    """LABEL and SCORE [B, K], filled up with "" and 0 where a picture has fewer than another, and ERROR [B, 1]."""
    found: list[Answer] = []
    for answer in answers:
        if isinstance(answer, ModelError):
            return _failed(str(answer), pb_utils.TritonError.INTERNAL)
        found.append(answer)
    most = max(len(answer.predictions) for answer in found)
    labels = np.full((len(found), most), b"", dtype=object)
    scores = np.zeros((len(found), most), np.float32)
    for i, answer in enumerate(found):
        for k, prediction in enumerate(answer.predictions):
            labels[i, k], scores[i, k] = prediction.label.encode(), prediction.score
    errors = np.array([[answer.error.encode()] for answer in found], dtype=object)
    tensors = [pb_utils.Tensor(LABEL, labels), pb_utils.Tensor(SCORE, scores), pb_utils.Tensor(ERROR, errors)]
    return pb_utils.InferenceResponse(output_tensors=tensors)


def _failed(problem: str, code: int) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(problem, code))
