"""A bundle's TensorRT engines: the tower, with the fused kernels after it, or everything up to the features."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Collection
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sigrl_deploy.arrays import FloatArray
from sigrl_deploy.bundle.bundle import Bundle
from sigrl_deploy.bundle.engine_records import EngineKey, EngineRecord, Ops, Range
from sigrl_deploy.config import Backend, Precision
from sigrl_deploy.engines.cuda_graphs import GpuVocabulary
from sigrl_deploy.engines.engine import UnavailableError
from sigrl_deploy.engines.gpu_engine import GpuEngine, cut_svfr
from sigrl_deploy.engines.size_cache import SizeCache
from sigrl_deploy.errors import UsageError
from sigrl_deploy.kernels.cases import Sizes
from sigrl_deploy.machine.gpu import Gpu
from sigrl_deploy.model.sigrl import SVFR
from sigrl_deploy.tensorrt.build import BuildOptions, build_engines, expected_time
from sigrl_deploy.tensorrt.find import Search, find_engine
from sigrl_deploy.tensorrt.library import Library
from sigrl_deploy.tensorrt.runtime import Context, LoadedEngine
from sigrl_deploy.vocabulary.vocabulary import Vocabulary

log = logging.getLogger(__name__)

MOST_CONTEXTS = 16  # of sizes of batch and vocabulary; each holds scratch memory


class TensorRtEngine(GpuEngine):
    """See `Engine`. Runs the bundle's engines in `precision` on the current GPU.

    An engine that is missing, damaged or built for something else is built again, which is logged first; UnavailableError is
    raised instead where `build` is False. `folder` keeps compiled kernels between runs.
    """

    def __init__(
        self,
        bundle: Bundle,
        library: Library,
        gpu: Gpu,
        precision: Precision,
        fused: Collection[str] = (),
        folder: Path | None = None,
        build: bool = True,
    ) -> None:
        self.precision, self._library = precision, library
        found = [find_engine(bundle, graph, self.precision, library.full_name, gpu) for graph in self._graphs_of(bundle)]
        if any(search.fits is None for search in found):
            found = _built(bundle, library, gpu, self.precision, found, build)
            bundle = Bundle(bundle.path)
        self.bundle, manifest = bundle, bundle.manifest
        self._records = {search.fits.key.graph: search.fits for search in found if search.fits is not None}
        self.key = self._records["visual"].key
        self.text_digests = (self._records["text"].sha256,) if "text" in self._records else ()
        self.batches = range(self.key.profile.batch.least, self.key.profile.batch.most + 1)
        # SVFR in standard ops holds a Loop, which waits for the host and so cannot be captured.
        self.captures = self.key.ops is not Ops.INLINED or not manifest.arch.has_graph
        place = torch.device("cuda", torch.cuda.current_device())
        fused = frozenset(fused) - (frozenset() if self.key.ops is Ops.FUSED else {"svfr"})
        # Where SVFR is inside the engine, its inputs and outputs are fp32.
        dtype = getattr(torch, self.precision.torch_name) if self.key.ops is Ops.FUSED else torch.float32
        sizes = Sizes(manifest.arch, manifest.local_features, manifest.embed_dim, manifest.topk)
        super().__init__(bundle, sizes, dtype, place, fused, folder)
        self._visual = self._load(self._records["visual"])
        self._contexts: SizeCache[Context] = self._new_cache(MOST_CONTEXTS)
        with self.running():
            if self.key.ops is Ops.FUSED:
                self._set_svfr(self._cut_svfr())
        self.description = (
            f"{library.full_name} on {gpu.name}, {self.precision.value}, SVFR {self.key.ops.value}, {self.kernels}"
        )

    @staticmethod
    def _graphs_of(bundle: Bundle) -> list[str]:
        return ["visual", "text"] if bundle.manifest.context_length or bundle.manifest.arch.has_graph else ["visual"]

    def _load(self, record: EngineRecord) -> LoadedEngine:
        path, host_code = self.bundle.engine_path(record), record.key.version_compatible
        return LoadedEngine(self._library, path, self._folder, host_code)

    def _cut_svfr(self) -> SVFR:
        import onnx

        path = self.bundle.file(self.bundle.manifest.variants[self.precision].visual)
        module = cut_svfr(onnx.load(path, load_external_data=False), path.parent, self.sizes.dim)
        return module.to(self.place, self.dtype)

    def _features(self, pixels: Tensor, vocabulary: GpuVocabulary) -> tuple[Tensor, Tensor]:
        rows = len(vocabulary.label_embedding)
        size = len(pixels), 0 if self.key.ops is Ops.FUSED else rows
        context = self._contexts.get(size, self._visual.context, self._drop_passes)
        inputs = {"pixels": self._normalised(pixels).contiguous(), "label_embedding": vocabulary.label_embedding}
        if vocabulary.graph_projection is not None:
            inputs["graph_projection"] = vocabulary.graph_projection
        outputs = context(inputs)
        if not self.sizes.arch.has_global:
            return outputs["local_feature"], outputs["local_feature"][:, 0, :0]
        global_feature = outputs["global_feature"].to(self.dtype)
        if self._svfr is not None:
            return self._reconstruct(outputs["patches"], vocabulary), global_feature
        return outputs.get("local_feature", global_feature[:, None]), global_feature

    def on_device(self, vocabulary: Vocabulary) -> GpuVocabulary:
        """See `GpuEngine.on_device`. Raises UsageError for more labels than the engine takes."""
        if self.sizes.arch.has_graph and self.key.ops is not Ops.FUSED:
            check_range(self.bundle.path, "labels", len(vocabulary.label_embedding), self.key)
        return super().on_device(vocabulary)

    @cached_property
    def _text(self) -> tuple[LoadedEngine, Context]:
        loaded = self._load(self._records["text"])
        return loaded, loaded.context()

    def encode_labels(self, token_ids: NDArray[np.int64]) -> FloatArray:
        """See `Engine.encode_labels`."""
        # The engine's profile needs at least one cached row, which is dropped from the result.
        rows = self._run_text(np.zeros((1, self.sizes.dim), np.float32), token_ids)["label_embedding"]
        return rows[-len(token_ids) :]

    def project_graph(self, label_embedding: FloatArray) -> FloatArray | None:
        """See `Engine.project_graph`. Raises UsageError for more labels than the engine takes."""
        if not self.sizes.arch.has_graph:
            return None
        text = msgspec.structs.replace(self._records["text"].key, ops=self.key.ops)
        check_range(self.bundle.path, "labels", len(label_embedding), text)
        shortest = np.zeros((0, self.bundle.manifest.context_length or 0), np.int64)
        return self._run_text(label_embedding, shortest)["graph_projection"]

    def _run_text(self, cached_embedding: FloatArray, token_ids: NDArray[np.int64]) -> dict[str, FloatArray]:
        given = {"cached_embedding": cached_embedding, "token_ids": token_ids}
        with self.running():
            loaded, context = self._text
            inputs = {name: torch.from_numpy(given[name]).to(self.place) for name in loaded.inputs}
            return {name: tensor.float().cpu().numpy() for name, tensor in context(inputs).items()}


def check_range(bundle: Path, what: str, size: int, key: EngineKey) -> None:
    """Raise UsageError where `size` is outside the range of `what`, "batch" or "labels", in an engine's profile."""
    allowed: Range = getattr(key.profile, what)
    if size not in allowed:
        wider = f"{min(size, allowed.least)} {allowed.best} {max(size, allowed.most)}"
        place = shlex.quote(str(bundle))
        command = f"sigrl-deploy export tensorrt {place} --precision {key.precision.value} --ops {key.ops.value}"
        raise UsageError(f"{size} {what}: the engine takes {allowed}; build one that takes them: {command} --{what} {wider}")


def _built(bundle: Bundle, library: Library, gpu: Gpu, precision: Precision, found: list[Search], build: bool) -> list[Search]:
    """Build the engines that do not fit, with the settings of the nearest ones that the bundle has."""
    reasons = "; ".join(reason for search in found for reason in search.reasons)
    if not build:
        raise _no_engine(bundle.path, f"the bundle has no TensorRT engine for this machine ({reasons})")
    log.warning("%s", reasons)
    log.info("building engines of %s for %s; %s", bundle.path, gpu.name, _time(bundle, found))
    build_engines(rebuild_options(bundle.path, library, precision, found[0]))
    after = Bundle(bundle.path)
    found = [find_engine(after, graph, precision, library.full_name, gpu) for graph in TensorRtEngine._graphs_of(after)]
    if any(search.fits is None for search in found):
        reasons = "; ".join(reason for search in found for reason in search.reasons)
        raise _no_engine(bundle.path, f"what was built does not fit this machine ({reasons})")
    return found


def _no_engine(bundle: Path, reason: str) -> UnavailableError:
    advice = f"build one with `sigrl-deploy export tensorrt {shlex.quote(str(bundle))}`, or use another `backend`"
    return UnavailableError(f"{bundle}: {reason}", advice, argument="backend", value=Backend.TENSORRT.value)


def rebuild_options(bundle: Path, library: Library, precision: Precision, visual: Search) -> BuildOptions:
    """What to build where no engine fits: for this GPU, with the settings of the nearest visual engine, or the defaults.

    A text engine cannot be the model for it: its profile says nothing about batches.
    """
    options = BuildOptions(bundle, precision, library=library.name)
    if visual.nearest is None:
        return options
    near = visual.nearest.key
    ops = None if near.ops is Ops.PLUGIN and library.is_rtx else near.ops
    return replace(options, ops=ops, batch=near.profile.batch, labels=near.profile.labels)


def _time(bundle: Bundle, found: list[Search]) -> str:
    known = [search.nearest.key for search in found if search.nearest]
    return "; ".join(dict.fromkeys(expected_time(bundle, key) for key in known)) or "no earlier build says how long that takes"
