"""A forward pass as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sigrl_deploy.arrays import FloatArray, Pixels


@dataclass(frozen=True)
class GpuVocabulary:
    """A vocabulary on the device: T and G Wbᵀ [bucket, D] in the model's dtype, zero after the first `labels` rows."""

    label_embedding: Tensor
    graph_projection: Tensor | None
    count: Tensor  # int32 [], `labels` on the device
    labels: int


class GraphPool:
    """What the captured passes of an engine share on the current GPU: memory for their graphs, and a stream that copies pixels.

    They can share memory because passes never run at the same time, and never read what another left behind. torch ties memory
    to the stream of a capture, so an engine captures on its own stream only, and nothing else is captured there.
    """

    def __init__(self) -> None:
        self.copies = torch.cuda.Stream()
        self.renew()

    def renew(self) -> None:
        """A new pool, once all graphs of the old one are dropped: its memory is freed with the last of them."""
        self.memory = torch.cuda.graph_pool_handle()


class CapturedPass:
    """A forward pass over its own buffers, captured on the current stream, which is not the default one.

    `before` runs before each replay. It does what cannot be captured, and leaves its results where `forward` reads them. Both
    read `pixels` [B, 3, H, W], uint8 or fp32 on the GPU. Raises torch.OutOfMemoryError where the GPU has no room.
    """

    def __init__(
        self,
        before: Callable[[Tensor], None],
        forward: Callable[[Tensor, GpuVocabulary], Tensor],
        pixels: Tensor,
        like: GpuVocabulary,
        pool: GraphPool,
    ) -> None:
        self._pixels, self._before, self._copies = pixels, before, pool.copies
        projection = None if like.graph_projection is None else torch.zeros_like(like.graph_projection)
        self._own = GpuVocabulary(torch.zeros_like(like.label_embedding), projection, torch.zeros_like(like.count), like.labels)
        self._holds: GpuVocabulary | None = None
        self._graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        before(pixels)
        try:
            scores = forward(pixels, self._own)  # compiles the kernels, which a capture cannot
            # Before the capture, so that nothing can fail after it: no graph may be dropped alone, see `SizeCache`.
            self._buffers = [_Buffers(pixels, scores.shape) for _ in range(2)]
            # Only what this thread does is captured, so that others may use the GPU meanwhile.
            with torch.cuda.graph(self._graph, pool.memory, stream=stream, capture_error_mode="thread_local"):
                self._scores = forward(pixels, self._own)
        except RuntimeError as error:
            # A capture that ran out of memory may fail once more where it ends.
            if isinstance(error.__context__, torch.OutOfMemoryError):
                raise error.__context__ from None
            raise
        self._copies.wait_stream(stream)  # whatever used this memory before may still be running

    def start(self, pixels: Pixels, vocabulary: GpuVocabulary) -> Callable[[], FloatArray]:
        """Enqueue pixels [b, 3, H, W], b at most the batch. Calling the result waits for their scores [b, C].

        The rest of the buffer keeps pictures of earlier batches, which changes no score. Two batches may be in flight: the
        second is copied while the first runs. A third waits for the first.
        """
        count = len(pixels)
        buffers, other = self._buffers
        self._buffers.reverse()
        buffers.wait()
        np.copyto(buffers.pixels[:count].numpy(), pixels)  # whatever their strides
        self._copy(buffers, count, beside=other.is_busy)
        self._take(vocabulary)
        self._before(self._pixels)
        self._graph.replay()
        buffers.scores.copy_(self._scores, non_blocking=True)
        return buffers.started(count, vocabulary.labels)

    def wait(self) -> None:
        """Wait until all scores are on the host."""
        for buffers in self._buffers:
            buffers.wait()

    def _copy(self, buffers: _Buffers, count: int, beside: bool) -> None:
        """Copy pixels to where the graph reads them, by way of another buffer where a pass is running `beside`."""
        if not beside:
            self._pixels[:count].copy_(buffers.pixels[:count], non_blocking=True)
            return
        with torch.cuda.stream(self._copies):
            buffers.staged[:count].copy_(buffers.pixels[:count], non_blocking=True)
            buffers.copied.record()
        buffers.copied.wait()
        self._pixels[:count].copy_(buffers.staged[:count])

    def _take(self, vocabulary: GpuVocabulary) -> None:
        if self._holds is vocabulary:
            return
        self._own.label_embedding.copy_(vocabulary.label_embedding, non_blocking=True)
        self._own.count.copy_(vocabulary.count, non_blocking=True)
        if self._own.graph_projection is not None and vocabulary.graph_projection is not None:
            self._own.graph_projection.copy_(vocabulary.graph_projection, non_blocking=True)
        self._holds = vocabulary


class _Buffers:
    """Buffers of one batch in flight: pinned pixels and scores on the host, pixels on the GPU, and events to wait for."""

    def __init__(self, pixels: Tensor, scores: torch.Size) -> None:
        self.pixels = torch.zeros(pixels.shape, dtype=pixels.dtype, pin_memory=True)
        self.scores = torch.zeros(scores, pin_memory=True)
        self.staged = torch.empty_like(pixels)
        self.copied, self._done = torch.cuda.Event(), torch.cuda.Event()
        self._batch: _Batch | None = None

    @property
    def is_busy(self) -> bool:
        return self._batch is not None

    def started(self, count: int, labels: int) -> Callable[[], FloatArray]:
        self._done.record()
        self._batch = _Batch(self, count, labels)
        return self._batch

    def wait(self) -> None:
        """Wait for the scores of its batch, where it has one."""
        if self._batch is not None:
            self._done.synchronize()
            self._batch.found = self.scores[: self._batch.count, : self._batch.labels].numpy().copy()
            self._batch = None


class _Batch:
    """A batch in flight. Calling it waits for its scores [count, labels]."""

    def __init__(self, buffers: _Buffers, count: int, labels: int) -> None:
        self._buffers, self.count, self.labels = buffers, count, labels
        self.found: FloatArray | None = None

    def __call__(self) -> FloatArray:
        if self.found is None:
            self._buffers.wait()
        assert self.found is not None
        return self.found


def bucket(count: int) -> int:
    """The smallest power of two that is at least `count`."""
    return 1 << (count - 1).bit_length()
