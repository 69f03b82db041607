"""ONNX Runtime's CUDA provider for the tower, and the fused kernels behind it.

On a CPU it runs too, with its head in PyTorch, which is for tests. **It has not run on a GPU**: none was at hand that had
ONNX Runtime's CUDA provider, whose options are used as they are documented.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection
from pathlib import Path

import onnx
import onnxruntime as ort
import torch
from torch import Tensor

from sigrl_deploy.bundle import Bundle
from sigrl_deploy.config import Precision
from sigrl_deploy.cut import GLOBAL, PATCHES, tower
from sigrl_deploy.engines.captured import Resident
from sigrl_deploy.engines.graphs import TextGraphEngine
from sigrl_deploy.engines.onnxruntime import OpenSession, choose_precision, open_session, providers_of
from sigrl_deploy.engines.resident import ResidentEngine, cut_svfr
from sigrl_deploy.kernels.cases import Sizes

_ELEMENTS = {
    torch.float32: onnx.TensorProto.FLOAT,
    torch.float16: onnx.TensorProto.FLOAT16,
    torch.bfloat16: onnx.TensorProto.BFLOAT16,
}


class OnnxRuntimeFusedEngine(ResidentEngine, TextGraphEngine):
    """See `Engine`, for a model with SVFR. `device` is "cuda", the current GPU, or "cpu".

    The tower runs in ONNX Runtime, on this engine's stream, into buffers that the captured head reads: its launches cannot be
    part of the head's CUDA graph. Nothing between them waits for the host. `fused` are the ops of FUSED that run as kernels;
    the label graph runs in ONNX Runtime. `folder` keeps compiled kernels and what was measured of them.

    Raises UsageError where the CUDA provider does not start or the precision cannot be had, BundleError where a graph cannot be
    opened.
    """

    def __init__(
        self, bundle: Bundle, device: str, precision: Precision | None, fused: Collection[str], folder: Path | None
    ) -> None:
        self.precision = choose_precision(bundle, "cuda", precision)
        self._bundle, self._variant = bundle, bundle.manifest.variants[self.precision]
        manifest, dtype = bundle.manifest, getattr(torch, self.precision.torch_name)
        on_gpu = device == "cuda"
        place = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
        sizes = Sizes(manifest.arch, manifest.grid[0] * manifest.grid[1], manifest.embed_dim, manifest.topk)
        super().__init__(bundle, sizes, dtype, place, frozenset(fused) - {"gmc"}, folder)
        graph = bundle.file(self._variant.visual)
        self._tower = self._open_tower(graph)
        self._features_of: dict[int, tuple[Tensor, Tensor]] = {}  # by batch: what the tower writes and the head reads
        with self._running():
            self._svfr = cut_svfr(graph, sizes.dim).to(place, dtype)
        name = torch.cuda.get_device_name() if on_gpu else "cpu"
        self.description = f"ONNX Runtime {ort.__version__} on {name}, {self.precision.value}, {self.kernels} behind it"

    def _open_tower(self, graph: Path) -> ort.InferenceSession:
        where = (
            {"device_id": str(self.place.index), "user_compute_stream": str(self._stream.cuda_stream)} if self._stream else {}
        )
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            cut = Path(folder) / graph.name
            onnx.save(tower(onnx.load(graph)), cut, save_as_external_data=True, location="weights")
            return open_session(cut, providers_of(self.device, **where))

    def _open(self, path: Path) -> OpenSession:
        return OpenSession(open_session(path, providers_of(self.device)))

    def _ahead(self, pixels: Tensor) -> None:
        """The tower, enqueued: pixels [B, 3, H, W] fp32 → X [B, P, D] in `dtype` and g [B, D] fp32, in the buffers of B."""
        batch, sizes = len(pixels), self.sizes
        if batch not in self._features_of:
            patches = torch.empty(batch, sizes.patches, sizes.dim, dtype=self.dtype, device=self.place)
            self._features_of[batch] = patches, torch.empty(batch, sizes.dim, device=self.place)
        patches, global_feature = self._features_of[batch]
        binding = self._tower.io_binding()
        for bind, name, tensor in (
            (binding.bind_input, "pixels", pixels),
            (binding.bind_output, PATCHES, patches),
            (binding.bind_output, GLOBAL, global_feature),
        ):
            index = self.place.index or 0
            bind(name, self.device, index, _ELEMENTS[tensor.dtype], tuple(tensor.shape), tensor.data_ptr())
        options = ort.RunOptions()
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        try:
            self._tower.run_with_iobinding(binding, options)
        except Exception as error:  # onnxruntime's exceptions have no common base
            if "allocate memory" in str(error):
                raise torch.OutOfMemoryError(str(error)) from None
            raise

    def _features(self, pixels: Tensor, vocabulary: Resident) -> tuple[Tensor, Tensor]:
        patches, global_feature = self._features_of[len(pixels)]
        return self._reconstructed(self._svfr, patches, vocabulary), global_feature.to(self.dtype)

    def _forget_passes(self) -> None:
        self._features_of.clear()
        super()._forget_passes()
