"""What the engines of a GPU share: vocabularies that stay on it, one CUDA graph for each size, batches that fit its memory.

A forward pass is captured once for a bucket of pictures and labels and replayed for every batch that fits: labels are padded
with zero rows, which the kernels skip. Vocabularies stay on the GPU as long as their owner keeps them, so that another
vocabulary costs one copy on the GPU. Nothing between pixels and scores waits for the host.
"""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sigrl_deploy.bundle import Bundle
from sigrl_deploy.device_preprocess import DevicePreprocess
from sigrl_deploy.engines import FUSED, Array
from sigrl_deploy.engines.captured import CapturedPass, Resident, bucket
from sigrl_deploy.engines.memory import check_room, pass_bytes
from sigrl_deploy.errors import UsageError
from sigrl_deploy.gpu import OLDEST_FUSED
from sigrl_deploy.kernels import match, svfr, tuning
from sigrl_deploy.kernels.blocks import Launch
from sigrl_deploy.kernels.cases import Sizes, cases
from sigrl_deploy.model import sigrl
from sigrl_deploy.vocabulary import Vocabulary

if TYPE_CHECKING:
    import onnx

log = logging.getLogger(__name__)

SMALLEST_LABELS = 64  # of the label buckets

Result = TypeVar("Result")


def fused_on(device: str, unfused: Collection[str]) -> frozenset[str]:
    """The ops that run as kernels: on a GPU that can, those that are not switched off; on a CPU none."""
    if device == "cpu" or not torch.cuda.is_available():
        return frozenset()
    if torch.cuda.get_device_capability() < OLDEST_FUSED:
        log.warning("%s is too old for the fused kernels; none of them runs", torch.cuda.get_device_name())
        return frozenset()
    return frozenset(FUSED) - frozenset(unfused)


def cut_svfr(model: onnx.ModelProto, folder: Path, dim: int) -> sigrl.SVFR:
    """SVFR of a visual graph, on the host in fp32; `folder` is where its file lies.

    Of `fuse` the half that meets G is random: a vocabulary has its product.
    """
    from sigrl_deploy.cut import svfr_weights

    weights = svfr_weights(model, folder)
    module = sigrl.SVFR(dim)
    module.decouple.weight.data = torch.from_numpy(weights["decouple"].T.copy())
    module.reconstruct.weight.data = torch.from_numpy(weights["reconstruct"].T.copy())
    module.fuse.weight.data[:, :dim] = torch.from_numpy(weights["fuse"].T.copy())
    return module.eval().requires_grad_(False)


class ResidentEngine(ABC):
    """See `Engine`. A subclass says how features are computed; this runs them, on `place`, and matches.

    `dtype` is that of resident vocabularies and of what the kernels get. `fused` are the ops of FUSED that run as kernels; the
    others run in plain PyTorch, tiled over labels. `folder` keeps compiled kernels and what was measured of them.
    """

    batches = range(1, 1 << 30)  # of pictures, that one pass takes
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
        self._resident: WeakKeyDictionary[Vocabulary, Resident] = WeakKeyDictionary()
        self._graphs: dict[tuple[int, int], CapturedPass] = {}
        self._pool = torch.cuda.graph_pool_handle() if self.device == "cuda" else None
        self._largest_batch: dict[int, int] = {}  # by label bucket, where memory ran out
        self._lock = threading.Lock()
        self._stream = torch.cuda.Stream(place) if self.device == "cuda" else None
        if self._stream is not None:  # weights may still be on their way
            self._stream.wait_stream(torch.cuda.current_stream(place))
        self._folder = folder
        self._launches: dict[str, Launch] = {}

    @abstractmethod
    def _features(self, pixels: Tensor, vocabulary: Resident) -> tuple[Tensor, Tensor]:
        """pixels [B, 3, H, W] fp32 on the device → local features [B, P, D] in `dtype`, global feature [B, D]."""

    def _ahead(self, pixels: Tensor) -> None:
        """What a pass does before `_features` and no CUDA graph can hold; here nothing."""
        return

    @property
    def kernels(self) -> str:
        """What runs fused, for a description."""
        return f"fused {' '.join(sorted(self.fused))}" if self.fused else "nothing fused"

    @property
    def _pads(self) -> bool:
        """Whether zero rows may follow the labels: tiled in PyTorch, or inside another engine, SVFR would count them."""
        return "svfr" in self.fused or not self.sizes.arch.has_graph

    def _tune(self) -> None:
        """Measure how each kernel is best launched on this GPU, where no earlier run has.

        It may take minutes, so a subclass does it last, once all else is open.
        """
        if self.device == "cpu" or not self.fused:
            return
        folder, start = self._folder, time.perf_counter()
        tuning.keep_compiled(folder)
        with self._running():
            found = tuning.tune(
                cases(self.sizes, self.dtype, self.place, self.fused), folder, tuning.chip(), tuning.milliseconds
            )
        torch.cuda.empty_cache()
        seconds = time.perf_counter() - start
        if found.measured:
            kept = f"later runs take that from {folder}" if folder else "without a cache folder, so the next run does it again"
            log.info("first run on this GPU: %d kernels compiled and tuned in %.0f s; %s", found.measured, seconds, kept)
        elif folder:
            log.info("kernels: tuned by an earlier run, read from %s in %.1f s", folder, seconds)
        self._launches = found.launches

    @contextmanager
    def _running(self) -> Iterator[None]:
        """One thread at a time, on this engine's GPU and stream whatever the thread's are."""
        place = torch.cuda.device(self.place) if self.device == "cuda" else nullcontext()
        with self._lock, torch.inference_mode(), place, torch.cuda.stream(self._stream):
            yield

    def preprocess(self) -> DevicePreprocess:
        """See `Engine.preprocess`."""
        return DevicePreprocess(self._preprocess, self.place)

    def encode(self, pixels: Array, vocabulary: Vocabulary) -> tuple[Array | None, Array]:
        """See `Engine.encode`. Memory as in `score`."""
        with self._running():
            resident = self.resident(vocabulary)
            parts = self._in_parts(partial(self._encode, vocabulary=resident), pixels, resident)
        local, global_feature = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return local if self.sizes.arch.has_local else None, global_feature

    def _encode(self, pixels: Array, vocabulary: Resident) -> tuple[Array, Array]:
        count, filled = len(pixels), self._filled(pixels)
        self._ahead(filled)
        local, global_feature = self._features(filled, vocabulary)
        return local[:count].float().cpu().numpy(), global_feature[:count].float().cpu().numpy()

    def _bucket(self, count: int) -> int:
        return max(self.batches[0], min(bucket(count), self.batches[-1]))

    def _filled(self, pixels: Array) -> Tensor:
        """Pixels on the device, contiguous and in fp32.

        On a GPU black pictures fill the last bucket, since engines prepare for each size.
        """
        missing = self._bucket(len(pixels)) - len(pixels) if self.device == "cuda" else 0
        filled = np.pad(pixels, [(0, missing), (0, 0), (0, 0), (0, 0)]) if missing else pixels
        return torch.from_numpy(filled).to(self.place, torch.float32).contiguous()

    def score(self, pixels: Array, vocabulary: Vocabulary) -> Array:
        """See `Engine.score`. A batch that the GPU has no room for is halved; raises UsageError where it has none for one."""
        with self._running():
            resident = self.resident(vocabulary)
            return np.concatenate(self._in_parts(partial(self._score, vocabulary=resident), pixels, resident))

    def _in_parts(self, run: Callable[[Array], Result], pixels: Array, vocabulary: Resident) -> list[Result]:
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
                    f"the GPU has no room for one picture with {vocabulary.labels} labels; use fewer labels, or --device cpu"
                ) from None
        self._largest_batch[rows] = bucket(len(pixels)) // 2
        log.warning("the GPU has no room for %d pictures at once; from now on %d are", len(pixels), self._largest_batch[rows])
        self._forget_passes()
        return self._in_parts(run, pixels, vocabulary)

    def _forget_passes(self) -> None:
        """Give back the memory of all captured passes."""
        self._graphs.clear()
        if self.device == "cuda":
            self._pool = torch.cuda.graph_pool_handle()
            torch.cuda.empty_cache()

    def _score(self, pixels: Array, vocabulary: Resident) -> Array:
        if self.device == "cpu" or not self.captures:
            filled = self._filled(pixels)
            self._ahead(filled)
            return self.forward(filled, vocabulary)[: len(pixels), : vocabulary.labels].cpu().numpy()
        batch = self._bucket(len(pixels))
        size = batch, len(vocabulary.label_embedding)
        if size not in self._graphs:
            start = time.perf_counter()
            self._graphs[size] = CapturedPass(self._ahead, self.forward, pixels.shape[1:], batch, vocabulary, self._pool)
            log.info("prepared for %d pictures and %d labels at once in %.1f s", *size, time.perf_counter() - start)
        return self._graphs[size](pixels, vocabulary)

    def forward(self, pixels: Tensor, vocabulary: Resident) -> Tensor:
        """pixels [B, 3, H, W] on the device → scores [B, bucket] fp32; those behind the labels are 0. What a graph captures."""
        local, global_feature = self._features(pixels, vocabulary)
        sizes, rows = self.sizes, vocabulary.label_embedding
        if "match" in self.fused and sizes.arch.has_local:
            return match.match(local, global_feature, rows, sizes.topk, how=self._launches.get("match"))[0]
        return sigrl.match(sizes.arch, local.float(), global_feature.float(), rows.float(), sizes.topk)

    def _reconstructed(self, module: sigrl.SVFR, patches: Tensor, vocabulary: Resident) -> Tensor:
        """SVFR on the device: X [B, P, D] → Y [B, P, D]."""
        projection = vocabulary.graph_projection
        assert projection is not None
        if "svfr" not in self.fused:
            return module(patches, vocabulary.label_embedding, projection)
        stages = self._launches.get("svfr.decouple"), self._launches.get("svfr.reconstruct")
        return svfr.svfr(module, patches, vocabulary.label_embedding, projection, vocabulary.count, *stages)

    def _check_room(self, labels: int, rows: int) -> None:
        sizes, parts = self.sizes, 1
        if "svfr" in self.fused and sizes.arch.has_graph:
            how = self._launches.get("svfr.reconstruct") or svfr.launch(sizes.patches, sizes.dim, self.dtype, accumulators=2)
            parts = svfr.splits(rows, 1, -(-sizes.dim // how.constants["BLOCK_O"]))
        needed = pass_bytes(rows, sizes.patches, sizes.dim, self.dtype.itemsize, parts=parts, graph=sizes.arch.has_graph)
        # What torch has reserved and does not use is free too.
        idle = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        check_room(labels, needed, torch.cuda.mem_get_info()[0] + idle)

    def resident(self, vocabulary: Vocabulary) -> Resident:
        """A vocabulary on the device, copied there once."""
        if vocabulary not in self._resident:
            labels = len(vocabulary)
            rows = max(SMALLEST_LABELS, bucket(labels)) if self._pads else labels
            if self.device == "cuda":
                self._check_room(labels, rows)

            def padded(values: NDArray[np.float32]) -> Tensor:
                out = torch.zeros(rows, values.shape[1], dtype=self.dtype, device=self.place)
                out[:labels] = torch.from_numpy(values).to(self.place)
                return out

            projection = None if vocabulary.graph_projection is None else padded(vocabulary.graph_projection)
            count = torch.tensor(labels, dtype=torch.int32, device=self.place)
            self._resident[vocabulary] = Resident(padded(vocabulary.label_embedding), projection, count, labels)
        return self._resident[vocabulary]
