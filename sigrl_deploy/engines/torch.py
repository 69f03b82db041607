"""The model in PyTorch, with the fused kernels on a GPU, where each size of batch and vocabulary has one CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sigrl_deploy.arrays import FloatArray
from sigrl_deploy.bundle.bundle import Bundle
from sigrl_deploy.checkpoints.loading import load_model
from sigrl_deploy.checkpoints.options import CheckpointOptions
from sigrl_deploy.config import Device, Precision
from sigrl_deploy.engines.cuda_graphs import GpuVocabulary
from sigrl_deploy.engines.gpu_engine import GpuEngine
from sigrl_deploy.image_towers import VisionConfig, local_features
from sigrl_deploy.kernels import gmc, vit
from sigrl_deploy.kernels.cases import Shape, Sizes
from sigrl_deploy.model.sigrl import GMC, encode_image
from sigrl_deploy.model.towers import typed


class TorchEngine(GpuEngine):
    """See `Engine`. On CUDA it runs on the current GPU.

    `precision` is one that the bundle holds weights in. `fused` are the ops of FUSED that run as kernels; the others run in
    plain PyTorch, tiled over labels. On a CPU kernels run in Triton's interpreter only, which is for tests. `folder` keeps
    compiled kernels and their tuning. On a CPU `threads`, where given, is set for PyTorch in the whole process.
    """

    def __init__(
        self,
        bundle: Bundle,
        device: Device,
        precision: Precision,
        fused: Collection[str] = (),
        folder: Path | None = None,
        threads: int | None = None,
    ) -> None:
        weights = bundle.manifest.variants[precision].weights
        assert weights is not None
        self.precision, on_gpu = precision, device is Device.CUDA
        if threads and not on_gpu:
            torch.set_num_threads(threads)
        # Threads may differ in their current GPU, so its index is kept.
        place = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
        self.text_digests = bundle.digests(weights)
        options = CheckpointOptions(bundle.file(weights))
        model = load_model(options, with_text=bundle.manifest.context_length is not None).model
        self.model = typed(model, self.precision).to(place).eval().requires_grad_(False)
        config = self.model.config
        vision = config.vision
        width = vision.width if isinstance(vision, VisionConfig) else 0
        fused = fused if width else frozenset(fused) - {"tower"}  # whose kernels are a ViT's
        sizes = Sizes(config.arch, local_features(vision), config.embed_dim, config.topk, config.graph, width)
        super().__init__(bundle, sizes, self.model.dtype, place, fused, folder)
        if self.model.svfr is not None:
            with self.running():
                self._set_svfr(self.model.svfr)
        name = torch.cuda.get_device_name() if on_gpu else "cpu"
        self.description = f"PyTorch {torch.__version__} on {name}, {self.precision.value}, {self.kernels}"

    def _features(self, pixels: Tensor, vocabulary: GpuVocabulary) -> tuple[Tensor, Tensor]:
        patches, global_feature = self._tower(pixels, vocabulary)
        return self._local(patches, vocabulary), global_feature

    def _tower(self, pixels: Tensor, vocabulary: GpuVocabulary) -> tuple[Tensor, Tensor]:
        """pixels [B, 3, H, W], uint8 or normalised fp32 → X [B, P, D], g [B, D]."""
        if "tower" not in self.fused:
            return encode_image(self.model.visual, self._normalised(pixels).to(self.dtype))
        how = self._launches.of(len(pixels), len(vocabulary.label_embedding)).get("tower")
        statistics = self._normalise.statistics if pixels.dtype is torch.uint8 else None
        return vit.encode_image(self.model.visual, pixels, statistics, how)

    def _local(self, patches: Tensor, vocabulary: GpuVocabulary) -> Tensor:
        """The features that labels are matched with: X [B, P, D] → Y [B, P, D], or X itself in a model without SVFR."""
        return patches if vocabulary.graph_projection is None else self._reconstruct(patches, vocabulary)

    def stages(self, pixels: Tensor, vocabulary: GpuVocabulary) -> dict[str, Callable[[], object]]:
        """The stages of `forward` in order. Each can be run, or captured, alone and repeatedly, on what those before it made.

        Call this, and the stages, within `running`.
        """
        patches, global_feature = self._tower(pixels, vocabulary)
        local = self._local(patches, vocabulary)
        return {
            "tower": partial(self._tower, pixels, vocabulary),
            "svfr": partial(self._local, patches, vocabulary),
            "match": partial(self._match, local, global_feature, vocabulary),
        }

    def encode_labels(self, token_ids: NDArray[np.int64]) -> FloatArray:
        """See `Engine.encode_labels`."""
        with self.running():
            rows: FloatArray = self.model.encode_text(torch.from_numpy(token_ids).to(self.place)).float().cpu().numpy()
        return rows

    def project_graph(self, label_embedding: FloatArray) -> FloatArray | None:
        """See `Engine.project_graph`."""
        module = self.model.gmc
        if module is None or self.model.svfr is None:
            return None
        with self.running():
            rows = torch.from_numpy(label_embedding).to(self.place, self.dtype)
            graph = self._graph(module, rows) if "gmc" in self.fused else module(rows)
            projection: FloatArray = self.model.svfr.graph_projection(graph).float().cpu().numpy()
        return projection

    def _graph(self, module: GMC, label_embedding: Tensor) -> Tensor:
        """GMC with its kernel: T [C, D] → G [C, D]."""
        labels = len(label_embedding)
        # With the launches of a pass of one picture, which most likely comes next.
        self._launches.tune(Shape(1, self._padded_count(labels), labels), self.fused)
        return gmc.gmc(module, label_embedding, self._launches.of(1, self._padded_count(labels)))
