"""What the engines of a GPU share: vocabularies that stay on it, one CUDA graph for each size, batches that fit its memory.

A forward pass is captured once for a bucket of pictures and labels and replayed for every batch that fits: labels are padded
with zero rows, which the kernels skip. Vocabularies stay on the GPU as long as their owner, or the pass that had them last,
keeps them, so that another vocabulary costs one copy on the GPU. Nothing between pixels and scores waits for the host, and
pixels may travel as uint8.
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
from sigrl_deploy.engines.size_cache import Prepared
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
    """SVFR of a visual graph, on the host in fp32; `folder` is where its file lies.

    Of `fuse` the half that meets G is random: a vocabulary has its product.
    """
    from sigrl_deploy.graphs.cutting import svfr_weights

    weights = svfr_weights(model, folder)
    module = sigrl.SVFR(dim)
    module.decouple.weight.data = torch.from_numpy(weights["decouple"].T.copy())
    module.reconstruct.weight.data = torch.from_numpy(weights["reconstruct"].T.copy())
    module.fuse.weight.data[:, :dim] = torch.from_numpy(weights["fuse"].T.copy())
    return module.eval().requires_grad_(False)


class GpuEngine(ABC):
    """See `Engine`. A subclass says how features are computed; this runs them, on `place`, and matches.

    `dtype` is that of vocabularies on the device and of what the kernels get. `fused` are the ops of FUSED that run as kernels;
    the others run in plain PyTorch, tiled over labels. `folder` keeps compiled kernels and what was measured of them.
    """

    batches = range(1, 1 << 30)  # of pictures, that one pass takes
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
        self._prepared: list[Prepared[Any]] = []
        self._graphs: Prepared[CapturedPass] = self._keep(MOST_GRAPHS)
        self._largest_batch: dict[int, int] = {}  # by label bucket, where memory ran out
        self._lock = threading.Lock()
        self._stream, self._pool = None, None
        if self.device == "cuda":
            # torch deals 32 streams of each priority out in turn. Few others ask for this one, so that engines get their own.
            self._stream = torch.cuda.Stream(place, priority=-1)
            self._stream.wait_stream(torch.cuda.current_stream(place))  # weights may still be on their way
            with torch.cuda.device(place):
                self._pool = GraphPool()
        self._folder = folder
        self._svfr: sigrl.SVFR | svfr.FusedSVFR | None = None

    @abstractmethod
    def _features(self, pixels: Tensor, vocabulary: GpuVocabulary) -> tuple[Tensor, Tensor]:
        """pixels [B, 3, H, W] on the device, fp32 or what `_normalised` takes → local features [B, P, D] in `dtype`, global
        feature [B, D].
        """

    @cached_property
    def _launches(self) -> Launches:
        return Launches(self.sizes, self.dtype, self.place, self._folder)

    def _ahead(self, pixels: Tensor) -> None:
        """What a pass does before `_features` and no CUDA graph can hold; here nothing."""
        return

    def _normalised(self, pixels: Tensor) -> Tensor:
        """pixels [B, 3, H, W], uint8 as the contract's crop or normalised fp32 → fp32."""
        return self._normalise(pixels) if pixels.dtype is torch.uint8 else pixels

    @property
    def kernels(self) -> str:
        """What runs fused, for a description."""
        return f"fused {' '.join(sorted(self.fused))}" if self.fused else "nothing fused"

    @property
    def _pads(self) -> bool:
        """Whether zero rows may follow the labels: tiled in PyTorch, or inside another engine, SVFR would count them."""
        return "svfr" in self.fused or not self.sizes.arch.has_graph

    @contextmanager
    def running(self) -> Iterator[None]:
        """One thread at a time, on this engine's GPU and stream whatever the thread's are, without gradients."""
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
        count, filled = len(pixels), self._filled(pixels)
        self.tune(len(filled), vocabulary)
        self._ahead(filled)
        local, global_feature = self._features(filled, vocabulary)
        return local[:count].float().cpu().numpy(), global_feature[:count].float().cpu().numpy()

    def _bucket(self, count: int) -> int:
        return max(self.batches[0], min(bucket(count), self.batches[-1]))

    def _filled(self, pixels: Pixels) -> Tensor:
        """Pixels on the device, contiguous, in uint8 or fp32.

        On a GPU black pictures fill the last bucket, since engines prepare for each size.
        """
        missing = self._bucket(len(pixels)) - len(pixels) if self.device == "cuda" else 0
        filled = np.pad(pixels, [(0, missing), (0, 0), (0, 0), (0, 0)]) if missing else pixels
        return torch.from_numpy(np.ascontiguousarray(filled)).to(self.place, _dtype(pixels))

    def score(self, pixels: Pixels, vocabulary: Vocabulary) -> FloatArray:
        """See `Engine.score`. A batch that the GPU has no room for is halved; raises UsageError where it has none for one."""
        with self.running():
            return _gathered(self._started(pixels, vocabulary))

    def score_batches(self, batches: Iterable[Pixels], vocabulary: Vocabulary) -> Iterator[FloatArray]:
        """See `Engine.score_batches`. Others may use the engine between two batches."""
        started: deque[list[Callable[[], FloatArray]]] = deque()
        under_way = 1 if self.device == "cuda" and self.captures else 0
        try:
            for pixels in batches:
                with self.running():
                    started.append(self._started(pixels, vocabulary))
                yield from self._ended(started, under_way)
        except Exception:
            yield from self._ended(started, 0)  # a batch that fails loses only itself
            raise
        yield from self._ended(started, 0)

    def _ended(self, started: deque[list[Callable[[], FloatArray]]], under_way: int) -> Iterator[FloatArray]:
        """The scores of the oldest batches, until so many are left."""
        while len(started) > under_way:
            with self.running():
                scores = _gathered(started.popleft())
            yield scores

    def _started(self, pixels: Pixels, vocabulary: Vocabulary) -> list[Callable[[], FloatArray]]:
        """What gives the scores of each part of a batch, once the GPU has them."""
        on_device = self.on_device(vocabulary)
        return self._in_parts(partial(self._start, vocabulary=on_device), pixels, on_device)

    def _in_parts(self, run: Callable[[Pixels], Result], pixels: Pixels, vocabulary: GpuVocabulary) -> list[Result]:
        """What `run` makes of the pictures, in as many parts as a pass, and the GPU's memory, ask for."""
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
                    f"the GPU has no room for one picture with {vocabulary.labels} labels; use fewer labels, or `device=cpu`"
                ) from None
        self._largest_batch[rows] = bucket(len(pixels)) // 2
        log.warning("the GPU has no room for %d pictures at once; from now on %d are", len(pixels), self._largest_batch[rows])
        self._forget_passes()
        return self._in_parts(run, pixels, vocabulary)

    def _keep(self, most: int) -> Prepared[Any]:
        """For what is made for a size and captured passes may hold."""
        self._prepared.append(Prepared(most))
        return self._prepared[-1]

    def _forget_passes(self) -> None:
        """Give back the memory of all captured passes, and of all that they hold."""
        for captured in self._graphs.values():
            captured.wait()
        for prepared in self._prepared:
            prepared.clear()
        if self._pool is not None:
            self._pool.renew()
            torch.cuda.empty_cache()

    def _start(self, pixels: Pixels, vocabulary: GpuVocabulary) -> Callable[[], FloatArray]:
        if self.device == "cpu" or not self.captures:
            filled = self._filled(pixels)
            self.tune(len(filled), vocabulary)
            self._ahead(filled)
            scores: FloatArray = self.forward(filled, vocabulary)[: len(pixels), : vocabulary.labels].cpu().numpy()
            return lambda: scores
        batch, dtype = self._bucket(len(pixels)), _dtype(pixels)
        size = batch, len(vocabulary.label_embedding), dtype

        def capture() -> CapturedPass:
            assert self._pool is not None
            self.tune(batch, vocabulary)
            start = time.perf_counter()
            buffer = torch.zeros(batch, *pixels.shape[1:], dtype=dtype, device=self.place)
            captured = CapturedPass(self._ahead, self.forward, buffer, vocabulary, self._pool)
            log.info("prepared for %d pictures and %d labels at once in %.1f s", *size[:2], time.perf_counter() - start)
            return captured

        return self._graphs.get(size, capture, self._forget_passes).start(pixels, vocabulary)

    def tune(self, batch: int, vocabulary: GpuVocabulary) -> None:
        """Have what a pass of so many pictures launches measured on this GPU, where no earlier run has; as `score` does."""
        shape = Shape(batch, len(vocabulary.label_embedding), vocabulary.labels)
        self._launches.tune(shape, self.fused - {"gmc"})

    def forward(self, pixels: Tensor, vocabulary: GpuVocabulary) -> Tensor:
        """pixels [B, 3, H, W] on the device → scores [B, bucket] fp32; those behind the labels are 0. What a graph captures."""
        return self._matched(*self._features(pixels, vocabulary), vocabulary)

    def _matched(self, local: Tensor, global_feature: Tensor, vocabulary: GpuVocabulary) -> Tensor:
        sizes, rows = self.sizes, vocabulary.label_embedding
        if "match" in self.fused and sizes.arch.has_local:
            how = self._launches.of(len(local), len(rows)).get("match")
            return match.match(local, global_feature, rows, sizes.topk, how=how)[0]
        return sigrl.match(sizes.arch, local.float(), global_feature.float(), rows.float(), sizes.topk)

    def _keep_svfr(self, module: sigrl.SVFR) -> None:
        """Take SVFR's weights, on `place` in `dtype`, for `_reconstructed`."""
        if "svfr" not in self.fused:
            self._svfr = module
            return
        self._svfr = fused = svfr.FusedSVFR(module)
        self.sizes = replace(self.sizes, bounded=fused.bounded)

    def _reconstructed(self, patches: Tensor, vocabulary: GpuVocabulary) -> Tensor:
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

    def _rows(self, labels: int) -> int:
        """Labels with their padding."""
        return max(SMALLEST_LABELS, bucket(labels)) if self._pads else labels

    def on_device(self, vocabulary: Vocabulary) -> GpuVocabulary:
        """A vocabulary on the device, copied there once."""
        if vocabulary not in self._on_device:
            labels = len(vocabulary)
            rows = self._rows(labels)
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
    """What pixels travel in."""
    return torch.uint8 if pixels.dtype == np.uint8 else torch.float32


def _gathered(started: list[Callable[[], FloatArray]]) -> FloatArray:
    return np.concatenate([scores() for scores in started])
