"""ONNX Runtime on a CPU for the tower, and the native kernel for SVFR behind it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnxruntime as ort

from sigrl_deploy.arrays import FloatArray, Pixels
from sigrl_deploy.bundle.bundle import Bundle
from sigrl_deploy.config import Precision
from sigrl_deploy.engines.choosing import Choice
from sigrl_deploy.engines.onnx_graphs import OnnxEngine, OpenGraph
from sigrl_deploy.engines.onnxruntime import OnnxRuntimeEngine, OpenSession, open_session, providers_of
from sigrl_deploy.errors import BundleError, UsageError, printable
from sigrl_deploy.graphs.cut_file import GLOBAL, CutGraph, cut
from sigrl_deploy.kernels.cpu.library import Found, find, installed_library
from sigrl_deploy.kernels.cpu.svfr import CpuSvfr, Products
from sigrl_deploy.model import matching
from sigrl_deploy.vocabulary.vocabulary import Vocabulary

_WEIGHT_IN_THE_FILE = 63  # the largest in 8 bits, which every instruction set multiplies without overflow


class OnnxRuntimeCpuEngine(OnnxRuntimeEngine):
    """See `Engine`, for a model with SVFR. Where the kernel does not run here, ONNX Runtime runs SVFR as the graph's function.

    Raises BundleError where a graph cannot be opened, UsageError where the environment asks for an instruction set that is not
    there.
    """

    def __init__(self, bundle: Bundle, choice: Choice, threads: int | None = None) -> None:
        self._kernel = find()
        super().__init__(bundle, choice, threads=threads)
        self.description += f", SVFR {described(self._kernel)}"

    def _open(self, path: Path) -> OpenGraph:
        chosen = self._kernel.chosen
        if path.name != self._bundle.manifest.variants[self.precision].visual or chosen is None:
            return super()._open(path)
        try:
            graph = cut(path)
            session = open_session(path, providers_of(self.device), graph.tower, threads=self._threads, spins=True)
        except (OSError, ValueError, BundleError) as error:
            self._kernel = Found(None, f"{path.name} cannot be cut: {printable(str(error))}")
            return super()._open(path)
        products = Products(Precision.INT8, _WEIGHT_IN_THE_FILE) if graph.has_int8 else Products(Precision.FP32)
        try:
            svfr = CpuSvfr(graph.weights, installed_library(), chosen, products, self._threads)
        except MemoryError as error:
            raise UsageError(f"{error}; take fewer `threads`") from None
        return TowerAndSvfr(OpenSession(session, path), svfr, graph)

    def stages(self, pixels: Pixels, vocabulary: Vocabulary) -> dict[str, Callable[[], Any]] | None:
        """The stages of a batch, each on inputs that are there; None where ONNX Runtime runs the graph as a whole."""
        visual, rows, manifest = self._visual, self._rows(vocabulary), self._bundle.manifest
        if not isinstance(visual, TowerAndSvfr):
            return None
        batches = self.parts(pixels)
        made = [visual.run_tower(batch) for batch in batches]
        features = [pair for x, g in made for pair in zip(visual.run_svfr(x, rows), g, strict=True)]
        embedding = vocabulary.label_embedding
        return {
            "tower": lambda: [visual.run_tower(batch) for batch in batches],
            "svfr": lambda: [visual.run_svfr(x, rows) for x, _ in made],
            "match": lambda: [matching.score(manifest.arch, y, g, embedding, manifest.topk) for y, g in features],
        }

    def _rows(self, vocabulary: Vocabulary) -> dict[str, Any]:
        if isinstance(self._visual, TowerAndSvfr):  # which takes arrays as they are
            return OnnxEngine._rows(self, vocabulary)
        return super()._rows(vocabulary)


def described(kernel: Found) -> str:
    """How SVFR runs, and why so."""
    if kernel.chosen is None:
        return f"as an ONNX function (no native kernel: {kernel.reason})"
    return f"in a native kernel with {kernel.chosen.full_name} ({kernel.reason})"


class TowerAndSvfr:
    """See `OpenGraph`: a visual graph in its two halves."""

    def __init__(self, tower: OpenSession, svfr: CpuSvfr, graph: CutGraph) -> None:
        self.tower, self.svfr = tower, svfr
        self.inputs, self._patches = graph.inputs, graph.patches

    def __call__(self, feeds: Mapping[str, Any]) -> dict[str, FloatArray]:
        patches, global_feature = self.run_tower(feeds["pixels"])
        return {"local_feature": self.run_svfr(patches, feeds), GLOBAL: global_feature}

    def run_tower(self, pixels: FloatArray | ort.OrtValue) -> tuple[FloatArray, FloatArray]:
        """pixels [B, 3, H, W] → X [B, P, D] in the file's dtype, g [B, D]."""
        outputs = self.tower({"pixels": pixels})
        return outputs[self._patches], outputs[GLOBAL]

    def run_svfr(self, patches: FloatArray, rows: Mapping[str, FloatArray]) -> FloatArray:
        """X [B, P, D] and a vocabulary's rows → Y [B, P, D]. Raises UsageError where there is no memory."""
        label_embedding = rows["label_embedding"]
        try:
            return self.svfr(patches, label_embedding, rows["graph_projection"])
        except MemoryError as error:
            raise UsageError(f"{error}; take a smaller `batch_size`, or fewer labels") from None
