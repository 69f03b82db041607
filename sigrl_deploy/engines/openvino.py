"""OpenVINO on a CPU, where it also runs bf16 files."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import onnx
import openvino as ov
from numpy.typing import NDArray
from onnx.inliner import inline_local_functions

from sigrl_deploy.arrays import FloatArray
from sigrl_deploy.bundle.bundle import Bundle
from sigrl_deploy.config import Precision
from sigrl_deploy.engines.onnx_graphs import OnnxEngine, inputs_of
from sigrl_deploy.errors import BundleError

_VERSION = ov.__version__.split("-")[0]


class OpenVinoEngine(OnnxEngine):
    """The bundle's graphs in OpenVINO, on `threads` of the CPU, by default `cpus.threads()`.

    Raises BundleError where OpenVINO cannot open a graph.
    """

    device = "cpu"

    def __init__(self, bundle: Bundle, precision: Precision, threads: int | None = None) -> None:
        super().__init__(bundle, precision, threads)
        self.description = f"OpenVINO {_VERSION} on cpu, {self.precision.value}, floats computed in {self._floats}"

    def _open(self, path: Path) -> _Compiled:
        # Left to itself OpenVINO computes files of any precision in bf16 where the CPU has it. In fp16 exp would overflow.
        settings = {
            "INFERENCE_PRECISION_HINT": "bf16" if self.precision is Precision.BF16 else "f32",
            "INFERENCE_NUM_THREADS": self._threads,
            "NUM_STREAMS": 1,
        }
        try:
            # OpenVINO holds mapped files open, which Windows then does not delete.
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
                file, graph = _inlined(path, Path(folder))
                compiled = _core().compile_model(file, "CPU", settings)
        except Exception as error:  # protobuf, onnx and OpenVINO each raise their own
            reason = str(error).strip().splitlines()[-1]
            raise BundleError(f"{path}: OpenVINO {_VERSION} cannot open it ({reason}); export it again") from None
        # The setting is a hint, which a CPU without bf16 may not follow.
        self._floats = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        return _Compiled(compiled, graph, path)


@cache
def _core() -> ov.Core:
    """One for the process. Where the CPU has AMX, each core gives the thread another stack for signal handlers, and takes back
    the one that it found, which an earlier core may have freed: the next signal then ends the process (OpenVINO 2026.4).
    """
    return ov.Core()


class _Compiled:
    """See `OpenGraph`. Names are the file's: OpenVINO adds those of nodes that it has removed."""

    def __init__(self, compiled: ov.CompiledModel, graph: onnx.GraphProto, path: Path) -> None:
        self._compiled, self._path = compiled, path
        self.inputs = inputs_of(graph)
        self._outputs = [output.name for output in graph.output]

    def __call__(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, FloatArray]:
        request = self._compiled.create_infer_request()  # one cannot be shared between threads; it costs microseconds
        try:
            return dict(zip(self._outputs, request.infer(dict(feeds)).to_tuple(), strict=True))
        except Exception as error:  # OpenVINO's exceptions have no common base
            reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
            raise BundleError(
                f"{self._path}: OpenVINO {_VERSION} cannot run it ({reason}); export it again, or take a smaller `batch_size`"
            ) from None


def _inlined(path: Path, folder: Path) -> tuple[Path, onnx.GraphProto]:
    """A copy in `folder` without model-local functions, which OpenVINO does not know, and its graph without weights.

    Weights go into a file beside it: the inliner would copy them several times, and cannot take 2 GiB of them.
    """
    separate, inlined = folder / "separate.onnx", folder / path.name
    onnx.save(onnx.load(path), separate, save_as_external_data=True, location="weights")
    model = inline_local_functions(onnx.load(separate, load_external_data=False))
    onnx.save(model, inlined)
    return inlined, model.graph
