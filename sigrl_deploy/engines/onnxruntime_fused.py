"""ONNX Runtime's CUDA provider for the tower, and the fused kernels behind it.

It also runs on a CPU, with its head in plain PyTorch, for tests.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection
from pathlib import Path

import onnx
import onnxruntime as ort
import torch
from torch import Tensor

from sigrl_deploy.bundle.bundle import Bundle
from sigrl_deploy.config import Device, Precision
from sigrl_deploy.engines.cuda_graphs import GpuVocabulary
from sigrl_deploy.engines.gpu_engine import GpuEngine, cut_svfr
from sigrl_deploy.engines.onnx_graphs import OnnxTextEngine, check_interface, inputs_of
from sigrl_deploy.engines.onnxruntime import CUDA, NO_MEMORY, OpenSession, open_session, providers_of
from sigrl_deploy.engines.size_cache import SizeCache
from sigrl_deploy.graphs.cutting import GLOBAL, PATCHES, tower
from sigrl_deploy.kernels.cases import Sizes

_ELEMENTS = {
    torch.float32: onnx.TensorProto.FLOAT,
    torch.float16: onnx.TensorProto.FLOAT16,
    torch.bfloat16: onnx.TensorProto.BFLOAT16,
}
_IN_MEMORY = 2**31 - 2**26  # bytes of weights: what protobuf takes, less room for the graph
MOST_BATCHES = 32  # of sizes


class OnnxRuntimeFusedEngine(GpuEngine, OnnxTextEngine):
    """See `Engine`, for a model with SVFR, in a precision that is not in 8 bits. On CUDA it runs on the current GPU.

    The tower runs in ONNX Runtime, on this engine's stream, and writes into buffers that the captured head reads: its launches
    cannot be part of the head's CUDA graph. `fused` are the ops of FUSED that run as kernels. The label graph runs in ONNX
    Runtime. `folder` keeps compiled kernels and their tuning.

    Raises UnavailableError where the CUDA provider does not start, BundleError where a graph cannot be opened or is not the one
    that the manifest describes.
    """

    def __init__(
        self, bundle: Bundle, device: Device, precision: Precision, fused: Collection[str], folder: Path | None
    ) -> None:
        self.precision = precision
        self._bundle, self._variant = bundle, bundle.manifest.variants[self.precision]
        manifest, dtype = bundle.manifest, getattr(torch, self.precision.torch_name)
        on_gpu = device is Device.CUDA
        place = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
        sizes = Sizes(manifest.arch, manifest.local_features, manifest.embed_dim, manifest.topk)
        super().__init__(bundle, sizes, dtype, place, fused, folder)
        path = bundle.file(self._variant.visual)
        model = onnx.load(path)
        check_interface(inputs_of(model.graph), bundle, path.name)
        self._tower = self._open_tower(path, model)
        # By batch: what the tower writes and the head reads.
        self._buffers: SizeCache[tuple[Tensor, Tensor]] = self._new_cache(MOST_BATCHES)
        with self.running():
            self._set_svfr(cut_svfr(model, path.parent, sizes.dim).to(place, dtype))
        name = torch.cuda.get_device_name() if on_gpu else "cpu"
        self.description = f"ONNX Runtime {ort.__version__} on {name}, {self.precision.value}, {self.kernels} behind it"

    def _open_tower(self, path: Path, model: onnx.ModelProto) -> ort.InferenceSession:
        options = {"device_id": str(self.place.index or 0), "arena_extend_strategy": "kSameAsRequested"}
        if self._stream is not None:
            options["user_compute_stream"] = str(self._stream.cuda_stream)
        providers, cut = providers_of(self.device, **options), tower(model)
        if sum(len(tensor.raw_data) for tensor in cut.graph.initializer) < _IN_MEMORY:
            session = open_session(path, providers, cut.SerializeToString())
        else:
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
                file = Path(folder) / path.name
                onnx.save(cut, file, save_as_external_data=True, location="weights")
                session = open_session(path, providers, file)
        # A provider that does not accept a stream uses its own, which does not wait for this one.
        taken = session.get_provider_options().get(CUDA, {}).get("user_compute_stream")
        self._on_own_stream = taken == options.get("user_compute_stream")
        return session

    def _open(self, path: Path) -> OpenSession:
        return OpenSession(open_session(path, providers_of(self.device, device_id=str(self.place.index or 0))), path)

    def _before_graph(self, pixels: Tensor) -> None:
        """The tower, enqueued: pixels [B, 3, H, W] → X [B, P, D] in `dtype` and g [B, D] fp32, in the buffers of B."""
        patches, global_feature = self._buffers_of(len(pixels))
        pixels = self._normalised(pixels)
        binding, place = self._tower.io_binding(), (self.device, self.place.index or 0)
        for bind, name, tensor in (
            (binding.bind_input, "pixels", pixels),
            (binding.bind_output, PATCHES, patches),
            (binding.bind_output, GLOBAL, global_feature),
        ):
            bind(name, *place, _ELEMENTS[tensor.dtype], tuple(tensor.shape), tensor.data_ptr())
        options = ort.RunOptions()
        if self._on_own_stream:
            options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        elif self._stream is not None:
            self._stream.synchronize()
        self._run(binding, options)

    def _buffers_of(self, batch: int) -> tuple[Tensor, Tensor]:
        def make() -> tuple[Tensor, Tensor]:
            patches = torch.empty(batch, self.sizes.patches, self.sizes.dim, dtype=self.dtype, device=self.place)
            return patches, torch.empty(batch, self.sizes.dim, device=self.place)

        return self._buffers.get(batch, make, self._drop_passes)

    def _run(self, binding: ort.IOBinding, options: ort.RunOptions) -> None:
        """Raises torch.OutOfMemoryError where the GPU has no room, even after torch has emptied its cache."""
        for last in (False, True):
            try:
                self._tower.run_with_iobinding(binding, options)
                return
            except Exception as error:  # onnxruntime's exceptions have no common base
                if not NO_MEMORY.search(str(error)):
                    raise
                if last:
                    raise torch.OutOfMemoryError(str(error)) from None
            if self.device == "cuda":
                torch.cuda.empty_cache()

    def _features(self, pixels: Tensor, vocabulary: GpuVocabulary) -> tuple[Tensor, Tensor]:
        patches, global_feature = self._buffers_of(len(pixels))
        return self._reconstruct(patches, vocabulary), global_feature.to(self.dtype)
