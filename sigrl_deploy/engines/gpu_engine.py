"""What engines on a GPU share: vocabularies that stay there, one CUDA graph per size, and batches that fit its memory.

A forward pass is captured once per bucket of pictures and labels, and replayed for every batch that fits it. Labels are padded
with zero rows, which the kernels skip. A vocabulary stays on the GPU as long as its owner, or the pass that used it last,
holds it, so switching vocabularies costs one copy on the GPU. Nothing between pixels and scores waits for the host, and pixels
may be copied as uint8.
"""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from sigrl_deploy.arrays import FloatArray, Pixels
from sigrl_deploy.bundle.bundle import Bundle
from sigrl_deploy.engines.cuda_graphs import CapturedPass, GpuVocabulary, GraphPool, bucket
from sigrl_deploy.engines.gpu_memory import check_room, pass_bytes
from sigrl_deploy.engines.kernel_launches import Launches
from sigrl_deploy.engines.size_cache import SizeCache
from sigrl_deploy.errors import UsageError
from sigrl_deploy.kernels import match, svfr
from sigrl_deploy.kernels.cases import Shape, Sizes
from sigrl_deploy.model import sigrl
from sigrl_deploy.pictures.device_preprocess import DevicePreprocess, Normalise
from sigrl_deploy.vocabulary.vocabulary import Vocabulary

if TYPE_CHECKING:
    import onnx

log = logging.getLogger(__name__)

SMALLEST_LABELS = 64  # of the label buckets
MOST_GRAPHS = 64  # of sizes of batch and vocabulary; each holds buffers of its own

Result = TypeVar("Result")


def cut_svfr(model: onnx.ModelProto, folder: Path, dim: int) -> sigrl.SVFR:
    """SVFR of a visual graph, on the host in fp32. `folder` is the one that the graph's file is in.

    The half of `fuse` that multiplies G stays random and unused: a vocabulary already holds its product, G Wbᵀ.
    """
    from sigrl_deploy.graphs.cutting import svfr_weights

    weights = svfr_weights(model, folder)
    module = sigrl.SVFR(dim)
    module.decouple.weight.data = torch.from_numpy(weights["decouple"].T.copy())
    module.reconstruct.weight.data = torch.from_numpy(weights["reconstruct"].T.copy())
    module.fuse.weight.data[:, :dim] = torch.from_numpy(weights["fuse"].T.copy())
    return module.eval().requires_grad_(False)


class GpuEngine(ABC):
    """See `Engine`. Subclasses compute features; this class runs them on `place`, and matches them with labels.

    `dtype` is that of vocabularies on the device and of what the kernels get. `fused` are the ops of FUSED that run as kernels;
    the others run in plain PyTorch, tiled over labels. `folder` keeps compiled kernels and their tuning.
    """

    batches = range(1, 1 << 30)  # how many pictures one pass takes
    text_digests: tuple[str, ...]
    captures = True  # whether a pass can be captured in a CUDA graph

    def __init__(
        self,
        bundle: Bundle,
        sizes: Sizes,
        dtype: torch.dtype,
        place: torch.device,
        fused: Collection[str],
        folder: Path | None,
    ) -> None:
        self.device = place.type
        self.place, self.sizes, self.dtype, self.fused = place, sizes, dtype, frozenset(fused)
        self._preprocess = bundle.manifest.preprocess
        self.takes_uint8 = self._preprocess.ends_in_uint8
        self._normalise = Normalise(self._preprocess, place)
        self._on_device: WeakKeyDictionary[Vocabulary, GpuVocabulary] = WeakKeyDictionary()
        self._caches: list[SizeCache[Any]] = []
        self._graphs: SizeCache[CapturedPass] = self._new_cache(MOST_GRAPHS)
        self._largest_batch: dict[int, int] = {}  # by label bucket, where memory ran out
        self._lock = threading.Lock()
        self._stream, self._pool = None, None
        if self.device == "cuda":
            # torch hands out 32 streams of each priority in turn. Few callers ask for this priority, so these are not shared.
            self._stream = torch.cuda.Stream(place, priority=-1)
            self._stream.wait_stream(torch.cuda.current_stream(place))  # weights may still be being copied
            with torch.cuda.device(place):
                self._pool = GraphPool()
        self._folder = folder
        self._svfr: sigrl.SVFR | svfr.FusedSVFR | None = None

    @abstractmethod
    def _features(self, pixels: Tensor, vocabulary: GpuVocabulary) -> tuple[Tensor, Tensor]:
        """pixels [B, 3, H, W] on the device, normalised fp32 or uint8 → local features [B, P, D] in `dtype`, global feature
        [B, D].
        """

    @cached_property
    def _launches(self) -> Launches:
        return Launches(self.sizes, self.dtype, self.place, self._folder)

    def _before_graph(self, pixels: Tensor) -> None:
        """The part of a pass that runs before `_features` because a CUDA graph cannot hold it; here nothing."""
        return

    def _normalised(self, pixels: Tensor) -> Tensor:
        """pixels [B, 3, H, W], uint8 or already normalised fp32 → normalised fp32."""
        return self._normalise(pixels) if pixels.dtype is torch.uint8 else pixels

    @property
    def kernels(self) -> str:
        """Which ops run as kernels, for the engine's description."""
        arch = self.sizes.arch
        run = self.fused - (set() if arch.has_match_kernel else {"match"}) - (set() if arch.has_graph else {"svfr", "gmc"})
        return f"fused {' '.join(sorted(run))}" if run else "nothing fused"

    @property
    def _can_pad(self) -> bool:
        """Whether labels can be padded with zero rows. SVFR's kernels skip them; its other forms would count them as labels."""
        return "svfr" in self.fused or not self.sizes.arch.has_graph

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run one thread at a time, without gradients, on this engine's GPU and stream, whatever the thread's own are."""
        place = torch.cuda.device(self.place) if self.device == "cuda" else nullcontext()
        with self._lock, torch.inference_mode(), place, torch.cuda.stream(self._stream):
            yield

    def preprocess(self) -> DevicePreprocess:
        """See `Engine.preprocess`."""
        return DevicePreprocess(self._preprocess, self.place)

    def encode(self, pixels: Pixels, vocabulary: Vocabulary) -> tuple[FloatArray | None, FloatArray]:
        """See `Engine.encode`. Memory as in `score`."""
        with self.running():
            on_device = self.on_device(vocabulary)
            parts = self._in_parts(partial(self._encode, vocabulary=on_device), pixels, on_device)
        local, global_feature = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return local if self.sizes.arch.has_local else None, global_feature

    def _encode(self, pixels: Pixels, vocabulary: GpuVocabulary) -> tuple[FloatArray, FloatArray]:
        count, filled = len(pixels), self._to_device(pixels)
        self.tune(len(filled), vocabulary)
        self._before_graph(filled)
        local, global_feature = self._features(filled, vocabulary)
        return local[:count].float().cpu().numpy(), global_feature[:count].float().cpu().numpy()

    def _bucket(self, count: int) -> int:
        return max(self.batches[0], min(bucket(count), self.batches[-1]))

    def _to_device(self, pixels: Pixels) -> Tensor:
        """Pixels on the device, contiguous, in uint8 or fp32; on a GPU padded to a bucket with black pictures."""
        missing = self._bucket(len(pixels)) - len(pixels) if self.device == "cuda" else 0
        filled = np.pad(pixels, [(0, missing), (0, 0), (0, 0), (0, 0)]) if missing else pixels
        return torch.from_numpy(np.ascontiguousarray(filled)).to(self.place, _dtype(pixels))

    def score(self, pixels: Pixels, vocabulary: Vocabulary) -> FloatArray:
        """See `Engine.score`. A batch too large for the GPU is halved. Raises UsageError where one picture does not fit."""
        with self.running():
            return _gather(self._start_parts(pixels, vocabulary))

    def score_batches(self, batches: Iterable[Pixels], vocabulary: Vocabulary) -> Iterator[FloatArray]:
        """See `Engine.score_batches`. Other threads may use the engine between two batches."""
        started: deque[list[Callable[[], FloatArray]]] = deque()
        under_way = 1 if self.device == "cuda" and self.captures else 0
        try:
            for pixels in batches:
                with self.running():
                    started.append(self._start_parts(pixels, vocabulary))
                yield from self._finish(started, under_way)
        except Exception:
            yield from self._finish(started, 0)  # a batch that fails loses only itself
            raise
        yield from self._finish(started, 0)

    def _finish(self, started: deque[list[Callable[[], FloatArray]]], under_way: int) -> Iterator[FloatArray]:
        """The scores of the oldest batches, until only `under_way` are in flight."""
        while len(started) > under_way:
            with self.running():
                scores = _gather(started.popleft())
            yield scores

    def _start_parts(self, pixels: Pixels, vocabulary: Vocabulary) -> list[Callable[[], FloatArray]]:
        """Start a batch, in parts that fit. Calling each result waits for the scores of its part."""
        on_device = self.on_device(vocabulary)
        return self._in_parts(partial(self._start, vocabulary=on_device), pixels, on_device)

    def _in_parts(self, run: Callable[[Pixels], Result], pixels: Pixels, vocabulary: GpuVocabulary) -> list[Result]:
        """`run` on the pictures, in parts that fit one pass and the GPU's memory."""
        rows = len(vocabulary.label_embedding)
        most = self._largest_batch.get(rows, self.batches[-1])
        if len(pixels) > most:
            parts = [pixels[i : i + most] for i in range(0, len(pixels), most)]
            return [result for part in parts for result in self._in_parts(run, part, vocabulary)]
        try:
            return [run(pixels)]
        except torch.OutOfMemoryError:
            if len(pixels) <= self.batches[0]:
                raise UsageError(
                    f"the GPU has no room for one picture with {vocabulary.labels} labels; use fewer labels, or `device='cpu'`"
                ) from None
        self._largest_batch[rows] = bucket(len(pixels)) // 2
        log.warning("the GPU has no room for %d pictures at once; from now on %d are", len(pixels), self._largest_batch[rows])
        self._drop_passes()
        return self._in_parts(run, pixels, vocabulary)

    def _new_cache(self, most: int) -> SizeCache[Any]:
        """A cache, by size, of something that captured passes may refer to."""
        self._caches.append(SizeCache(most))
        return self._caches[-1]

    def _drop_passes(self) -> None:
        """Free all captured passes, and everything that they refer to."""
        for captured in self._graphs.values():
            captured.wait()
        for prepared in self._caches:
            prepared.clear()
        if self._pool is not None:
            self._pool.renew()
            torch.cuda.empty_cache()

    def _start(self, pixels: Pixels, vocabulary: GpuVocabulary) -> Callable[[], FloatArray]:
        if self.device == "cpu" or not self.captures:
            filled = self._to_device(pixels)
            self.tune(len(filled), vocabulary)
            self._before_graph(filled)
            scores: FloatArray = self.forward(filled, vocabulary)[: len(pixels), : vocabulary.labels].cpu().numpy()
            return lambda: scores
        batch, dtype = self._bucket(len(pixels)), _dtype(pixels)
        size = batch, len(vocabulary.label_embedding), dtype

        def capture() -> CapturedPass:
            assert self._pool is not None
            self.tune(batch, vocabulary)
            start = time.perf_counter()
            buffer = torch.zeros(batch, *pixels.shape[1:], dtype=dtype, device=self.place)
            captured = CapturedPass(self._before_graph, self.forward, buffer, vocabulary, self._pool)
            log.info("prepared for %d pictures and %d labels at once in %.1f s", *size[:2], time.perf_counter() - start)
            return captured

        return self._graphs.get(size, capture, self._drop_passes).start(pixels, vocabulary)

    def tune(self, batch: int, vocabulary: GpuVocabulary) -> None:
        """Tune the kernels of a pass of `batch` pictures on this GPU, unless an earlier run has; `score` does this too."""
        shape = Shape(batch, len(vocabulary.label_embedding), vocabulary.labels)
        self._launches.tune(shape, self.fused - {"gmc"})

    def forward(self, pixels: Tensor, vocabulary: GpuVocabulary) -> Tensor:
        """pixels [B, 3, H, W] on the device → scores [B, bucket] fp32, 0 after the last label. A CUDA graph captures this."""
        return self._match(*self._features(pixels, vocabulary), vocabulary)

    def _match(self, local: Tensor, global_feature: Tensor, vocabulary: GpuVocabulary) -> Tensor:
        sizes, rows = self.sizes, vocabulary.label_embedding
        if "match" in self.fused and sizes.arch.has_match_kernel:
            how = self._launches.of(len(local), len(rows)).get("match")
            return match.match(local, global_feature, rows, sizes.topk, how=how)[0]
        return sigrl.match(sizes.arch, local.float(), global_feature.float(), rows.float(), sizes.topk)

    def _set_svfr(self, module: sigrl.SVFR) -> None:
        """Set SVFR's weights, which are on `place` in `dtype`."""
        if "svfr" not in self.fused:
            self._svfr = module
            return
        self._svfr = fused = svfr.FusedSVFR(module)
        self.sizes = replace(self.sizes, bounded=fused.bounded)

    def _reconstruct(self, patches: Tensor, vocabulary: GpuVocabulary) -> Tensor:
        """SVFR on the device: X [B, P, D] → Y [B, P, D]."""
        labels, projection = vocabulary.label_embedding, vocabulary.graph_projection
        assert projection is not None
        if isinstance(self._svfr, svfr.FusedSVFR):
            launches = self._launches.of(len(patches), len(labels))
            return self._svfr(patches, labels, projection, vocabulary.count, launches)
        assert self._svfr is not None
        return self._svfr(patches, labels, projection)

    def _check_room(self, labels: int, rows: int) -> None:
        sizes, parts = self.sizes, 1
        if "svfr" in self.fused and sizes.arch.has_graph:
            hows = svfr.candidates(sizes.patches, sizes.dim, self.dtype, accumulators=2, bounded=sizes.bounded[1])
            parts = max(svfr.parts_of(how, rows, 1, sizes.dim) for how in hows)
        needed = pass_bytes(rows, sizes.patches, sizes.dim, self.dtype.itemsize, parts=parts, graph=sizes.arch.has_graph)
        # What torch has reserved and does not use is free too.
        idle = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        check_room(labels, needed, torch.cuda.mem_get_info()[0] + idle)

    def _padded_count(self, labels: int) -> int:
        """How many rows `labels` labels take, with their padding."""
        return max(SMALLEST_LABELS, bucket(labels)) if self._can_pad else labels

    def on_device(self, vocabulary: Vocabulary) -> GpuVocabulary:
        """A vocabulary on the device, copied there once."""
        if vocabulary not in self._on_device:
            labels = len(vocabulary.label_embedding)
            rows = self._padded_count(labels)
            if self.device == "cuda":
                self._check_room(labels, rows)

            def padded(values: FloatArray) -> Tensor:
                out = torch.zeros(rows, values.shape[1], dtype=self.dtype, device=self.place)
                out[:labels] = torch.from_numpy(values).to(self.place)
                return out

            projection = None if vocabulary.graph_projection is None else padded(vocabulary.graph_projection)
            count = torch.tensor(labels, dtype=torch.int32, device=self.place)
            self._on_device[vocabulary] = GpuVocabulary(padded(vocabulary.label_embedding), projection, count, labels)
        return self._on_device[vocabulary]


def _dtype(pixels: Pixels) -> torch.dtype:
    """The dtype in which pixels are copied to the device."""
    return torch.uint8 if pixels.dtype == np.uint8 else torch.float32


def _gather(started: list[Callable[[], FloatArray]]) -> FloatArray:
    return np.concatenate([scores() for scores in started])
