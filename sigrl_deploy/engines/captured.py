"""A forward pass as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sigrl_deploy.engines import Array


@dataclass(frozen=True)
class Resident:
    """A vocabulary on the device: T and G Wbᵀ [bucket, D] in the model's dtype, zero behind `labels` rows; their count."""

    label_embedding: Tensor
    graph_projection: Tensor | None
    count: Tensor  # int32 []
    labels: int


class CapturedPass:
    """A forward pass over its own buffers, with pinned ones on the host, on the current GPU.

    `ahead` runs on the pixels before each replay: what cannot be captured, and leaves its results where `forward` reads them.
    `pool` is the memory that graphs share: no two of them run at once, and what one leaves behind no other reads. Raises
    torch.OutOfMemoryError where the GPU has no room.
    """

    def __init__(
        self,
        ahead: Callable[[Tensor], None],
        forward: Callable[[Tensor, Resident], Tensor],
        shape: tuple[int, ...],
        batch: int,
        like: Resident,
        pool: Any,
    ) -> None:
        self._pixels = torch.zeros(batch, *shape, device="cuda")
        self._host_pixels = torch.zeros(batch, *shape, pin_memory=True)
        projection = None if like.graph_projection is None else torch.zeros_like(like.graph_projection)
        self._own = Resident(torch.zeros_like(like.label_embedding), projection, torch.zeros_like(like.count), like.labels)
        self._holds: Resident | None = None
        self._graph, self._ahead = torch.cuda.CUDAGraph(), ahead
        ahead(self._pixels)
        # Of this GPU: torch's own stream for captures belongs to the GPU that captured first.
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(side):
                forward(self._pixels, self._own)  # compiles the kernels, which a capture cannot
                # Only what this thread does is captured, so that others may use the GPU meanwhile.
                with torch.cuda.graph(self._graph, pool, stream=side, capture_error_mode="thread_local"):
                    self._scores = forward(self._pixels, self._own)
        except RuntimeError as error:
            # A capture that ran out of memory may fail once more where it ends.
            if isinstance(error.__context__, torch.OutOfMemoryError):
                raise error.__context__ from None
            raise
        torch.cuda.current_stream().wait_stream(side)
        self._host_scores = torch.zeros(self._scores.shape, pin_memory=True)

    def __call__(self, pixels: Array, vocabulary: Resident) -> Array:
        """pixels [b, 3, H, W], b at most the batch → scores [b, C].

        Behind b pictures of earlier batches remain, which cost nothing more and change no score.
        """
        count = len(pixels)
        self._host_pixels[:count].copy_(torch.from_numpy(pixels))
        self._pixels[:count].copy_(self._host_pixels[:count], non_blocking=True)
        if self._holds is not vocabulary:
            self._own.label_embedding.copy_(vocabulary.label_embedding, non_blocking=True)
            self._own.count.copy_(vocabulary.count, non_blocking=True)
            if self._own.graph_projection is not None and vocabulary.graph_projection is not None:
                self._own.graph_projection.copy_(vocabulary.graph_projection, non_blocking=True)
            self._holds = vocabulary
        self._ahead(self._pixels)
        self._graph.replay()
        self._host_scores.copy_(self._scores, non_blocking=True)
        torch.cuda.current_stream().synchronize()
        return self._host_scores[:count, : vocabulary.labels].numpy().copy()


def bucket(count: int) -> int:
    """The power of two that covers a count."""
    return 1 << (count - 1).bit_length()
