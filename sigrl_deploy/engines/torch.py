"""The model in PyTorch with the fused kernels; on a GPU one CUDA graph for each size of batch and vocabulary.

A forward pass is captured once for a bucket of pictures and labels and replayed for every batch that fits: labels are padded
with zero rows, which the kernels skip, pictures with zeros. Vocabularies stay on the GPU as long as their owner keeps them, so
that another vocabulary costs one copy on the GPU. Nothing between pixels and scores waits for the host.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sigrl_deploy.bundle import Bundle
from sigrl_deploy.config import Precision
from sigrl_deploy.eager import load_model
from sigrl_deploy.engines import Array
from sigrl_deploy.errors import UsageError
from sigrl_deploy.kernels import gmc, match, svfr
from sigrl_deploy.model import sigrl
from sigrl_deploy.model.towers import typed
from sigrl_deploy.vocabulary import Vocabulary

log = logging.getLogger(__name__)

FUSED = ("svfr", "match", "gmc")
SMALLEST_LABELS = 64  # of the label buckets


@dataclass(frozen=True)
class Resident:
    """A vocabulary on the device: T and G Wbᵀ [bucket, D] in the model's dtype, zero behind `labels` rows; their count."""

    label_embedding: Tensor
    graph_projection: Tensor | None
    count: Tensor  # int32 []
    labels: int


class TorchEngine:
    """See `Engine`. `device` is "auto" (a GPU where torch has one), "cpu" or "cuda".

    `fused` are the ops of FUSED that run as kernels, all of them on a GPU unless said otherwise; the others run in plain
    PyTorch, tiled over labels. On a CPU kernels run in Triton's interpreter only, which is for tests.

    Raises UsageError where the device is not there, or the bundle was exported without weights.
    """

    def __init__(
        self, bundle: Bundle, device: str = "auto", precision: Precision | None = None, fused: Collection[str] | None = None
    ) -> None:
        if device == "cuda" and not torch.cuda.is_available():
            raise UsageError("--device cuda: this torch finds no GPU; check its driver, or use --device cpu")
        variants = {precision: bundle.variant(precision)} if precision else bundle.manifest.variants
        found = [(p, v.weights) for p, v in variants.items() if v.weights and not p.is_int8]
        if not found:
            raise UsageError(f"{bundle.path}: holds no weights for PyTorch; export it with --weights, or use another --backend")
        self.precision, weights = found[0]
        self.device = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
        self.fused = frozenset(FUSED if fused is None and self.device == "cuda" else fused or ())
        _, _, model = load_model(bundle.file(weights), with_text=bundle.manifest.context_length is not None)
        self.model = typed(model, self.precision).to(self.device).eval().requires_grad_(False)
        self.dtype = self.model.visual.proj.dtype
        name = torch.cuda.get_device_name() if self.device == "cuda" else "cpu"
        kernels = f", fused {' '.join(sorted(self.fused))}" if self.fused else ""
        self.description = f"PyTorch {torch.__version__} on {name}, {self.precision.value}{kernels}"
        self._resident: WeakKeyDictionary[Vocabulary, Resident] = WeakKeyDictionary()
        self._graphs: dict[tuple[int, int], CapturedPass] = {}
        self._lock = threading.Lock()

    @torch.inference_mode()
    def encode(self, pixels: Array, vocabulary: Vocabulary) -> tuple[Array | None, Array]:
        """See `Engine.encode`."""
        local, global_feature = self._features(torch.from_numpy(pixels).to(self.device), self.resident(vocabulary))
        return local.float().cpu().numpy() if self.model.config.arch.has_local else None, global_feature.float().cpu().numpy()

    @torch.inference_mode()
    def score(self, pixels: Array, vocabulary: Vocabulary) -> Array:
        """See `Engine.score`. A batch that the GPU has no room for is halved; raises UsageError where it has none for one."""
        with self._lock:
            return self._in_parts(pixels, self.resident(vocabulary))

    def _in_parts(self, pixels: Array, vocabulary: Resident) -> Array:
        try:
            return self._score(pixels, vocabulary)
        except torch.OutOfMemoryError:
            if len(pixels) == 1:
                raise UsageError(
                    f"the GPU has no room for one picture with {vocabulary.labels} labels; use fewer labels, or --device cpu"
                ) from None
        log.warning("the GPU has no room for %d pictures at once; they are split", len(pixels))
        self._graphs.clear()
        torch.cuda.empty_cache()
        half = len(pixels) // 2
        return np.concatenate([self._in_parts(part, vocabulary) for part in (pixels[:half], pixels[half:])])

    def _score(self, pixels: Array, vocabulary: Resident) -> Array:
        if self.device == "cpu":
            return self._pass(torch.from_numpy(pixels), vocabulary)[:, : vocabulary.labels].numpy()
        size = bucket(len(pixels)), len(vocabulary.label_embedding)
        if size not in self._graphs:
            start = time.perf_counter()
            self._graphs[size] = CapturedPass(self._pass, pixels.shape[1:], size[0], vocabulary)
            log.info("prepared for %d pictures and %d labels at once in %.1f s", *size, time.perf_counter() - start)
        return self._graphs[size](pixels, vocabulary)

    def _pass(self, pixels: Tensor, vocabulary: Resident) -> Tensor:
        """pixels [B, 3, H, W] → scores [B, bucket] fp32; those behind the labels are 0."""
        local, global_feature = self._features(pixels, vocabulary)
        config, rows = self.model.config, vocabulary.label_embedding
        if "match" in self.fused and config.arch.has_local:
            return match.match(local, global_feature, rows, config.topk)[0]
        return sigrl.match(config.arch, local.float(), global_feature.float(), rows.float(), config.topk)

    def _features(self, pixels: Tensor, vocabulary: Resident) -> tuple[Tensor, Tensor]:
        patches, global_feature = sigrl.encode_image(self.model.visual, pixels.to(self.dtype))
        module, projection = self.model.svfr, vocabulary.graph_projection
        if module is None or projection is None:
            return patches, global_feature
        if "svfr" in self.fused:
            local = svfr.svfr(module, patches, vocabulary.label_embedding, projection, vocabulary.count)
        else:
            local = module(patches, vocabulary.label_embedding, projection)
        return local, global_feature

    def _check_room(self, labels: int, rows: int) -> None:
        """Say before the run what cannot fit: S, S R and V [C, D], Sᵀ T and R [D, D] in fp32, and the vocabulary itself."""
        if self.device != "cuda":
            return
        dim = self.model.config.embed_dim
        needed = 4 * (3 * rows * dim + 2 * dim * dim) if self.model.svfr is not None else 0
        needed += 2 * rows * dim * self.dtype.itemsize
        free = torch.cuda.mem_get_info()[0]
        if needed > free:
            raise UsageError(
                f"{labels} labels: one picture needs {needed / 1e9:.1f} GB beside the model, {free / 1e9:.1f} GB of the GPU "
                "are free; use fewer labels, or --device cpu"
            )

    def resident(self, vocabulary: Vocabulary) -> Resident:
        """A vocabulary on the device, copied there once."""
        if vocabulary not in self._resident:
            labels = len(vocabulary)
            # Tiled in PyTorch, SVFR would count rows of padding.
            exact = self.model.svfr is not None and "svfr" not in self.fused
            rows = labels if exact else max(SMALLEST_LABELS, bucket(labels))
            self._check_room(labels, rows)

            def padded(values: NDArray[np.float32]) -> Tensor:
                out = torch.zeros(rows, values.shape[1], dtype=self.dtype, device=self.device)
                out[:labels] = torch.from_numpy(values).to(self.device)
                return out

            projection = None if vocabulary.graph_projection is None else padded(vocabulary.graph_projection)
            count = torch.tensor(labels, dtype=torch.int32, device=self.device)
            self._resident[vocabulary] = Resident(padded(vocabulary.label_embedding), projection, count, labels)
        return self._resident[vocabulary]

    @torch.inference_mode()
    def encode_labels(self, token_ids: NDArray[np.int64]) -> Array:
        """See `Engine.encode_labels`."""
        rows: Array = self.model.encode_text(torch.from_numpy(token_ids).to(self.device)).float().cpu().numpy()
        return rows

    @torch.inference_mode()
    def project_graph(self, label_embedding: Array) -> Array | None:
        """See `Engine.project_graph`."""
        module = self.model.gmc
        if module is None or self.model.svfr is None:
            return None
        rows = torch.from_numpy(label_embedding).to(self.device, self.dtype)
        graph = gmc.gmc(module, rows) if "gmc" in self.fused else module(rows)
        projection: Array = self.model.svfr.graph_projection(graph).float().cpu().numpy()
        return projection


class CapturedPass:
    """A forward pass as a CUDA graph over its own buffers, with pinned ones on the host."""

    def __init__(
        self, forward: Callable[[Tensor, Resident], Tensor], shape: tuple[int, ...], batch: int, like: Resident
    ) -> None:
        self._pixels = torch.zeros(batch, *shape, device="cuda")
        self._host_pixels = torch.zeros(batch, *shape, pin_memory=True)
        projection = None if like.graph_projection is None else torch.zeros_like(like.graph_projection)
        self._own = Resident(torch.zeros_like(like.label_embedding), projection, torch.zeros_like(like.count), like.labels)
        self._holds: Resident | None = None
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # compiles the kernels, which a capture cannot
            forward(self._pixels, self._own)
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._scores = forward(self._pixels, self._own)
        self._host_scores = torch.zeros(self._scores.shape, pin_memory=True)

    def __call__(self, pixels: Array, vocabulary: Resident) -> Array:
        """pixels [b, 3, H, W], b at most the batch → scores [b, C]."""
        self._host_pixels[: len(pixels)].copy_(torch.from_numpy(pixels))
        self._pixels.copy_(self._host_pixels, non_blocking=True)
        if self._holds is not vocabulary:
            self._own.label_embedding.copy_(vocabulary.label_embedding, non_blocking=True)
            self._own.count.copy_(vocabulary.count, non_blocking=True)
            if self._own.graph_projection is not None and vocabulary.graph_projection is not None:
                self._own.graph_projection.copy_(vocabulary.graph_projection, non_blocking=True)
            self._holds = vocabulary
        self._graph.replay()
        self._host_scores.copy_(self._scores, non_blocking=True)
        torch.cuda.current_stream().synchronize()
        return self._host_scores[: len(pixels), : vocabulary.labels].numpy().copy()


def bucket(count: int) -> int:
    """The power of two that covers a count."""
    return 1 << (count - 1).bit_length()
