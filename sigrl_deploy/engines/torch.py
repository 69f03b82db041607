"""The model in PyTorch with the fused kernels; on a GPU one CUDA graph for each size of batch and vocabulary.

A forward pass is captured once for a bucket of pictures and labels and replayed for every batch that fits: labels are padded
with zero rows, which the kernels skip. Vocabularies stay on the GPU as long as their owner keeps them, so that another
vocabulary costs one copy on the GPU. Nothing between pixels and scores waits for the host.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sigrl_deploy.bundle import Bundle
from sigrl_deploy.config import Precision
from sigrl_deploy.device_preprocess import DevicePreprocess
from sigrl_deploy.eager import load_model
from sigrl_deploy.engines import FUSED, Array
from sigrl_deploy.engines.captured import CapturedPass, Resident, bucket
from sigrl_deploy.engines.memory import check_room, pass_bytes
from sigrl_deploy.errors import UsageError
from sigrl_deploy.kernels import gmc, match, svfr, tuning
from sigrl_deploy.kernels.blocks import Launch
from sigrl_deploy.kernels.cases import cases
from sigrl_deploy.model import sigrl
from sigrl_deploy.model.towers import typed
from sigrl_deploy.vocabulary import Vocabulary

log = logging.getLogger(__name__)

SMALLEST_LABELS = 64  # of the label buckets
OLDEST_CAPABILITY = (8, 0)  # of a GPU that the kernels' products run on

Result = TypeVar("Result")


def fused_on(device: str, unfused: Collection[str]) -> frozenset[str]:
    """The ops that run as kernels: on a GPU that can, those that are not switched off; on a CPU none."""
    if device == "cpu" or not torch.cuda.is_available():
        return frozenset()
    if torch.cuda.get_device_capability() < OLDEST_CAPABILITY:
        log.warning("%s is too old for the fused kernels; PyTorch's own run instead", torch.cuda.get_device_name())
        return frozenset()
    return frozenset(FUSED) - frozenset(unfused)


class TorchEngine:
    """See `Engine`. `device` is "auto" (a GPU where torch has one), "cpu" or "cuda", which means the current GPU.

    `fused` are the ops of FUSED that run as kernels; the others run in plain PyTorch, tiled over labels. On a CPU kernels run
    in Triton's interpreter only, which is for tests. `folder` keeps compiled kernels and what was measured of them.

    Raises UsageError where the device is not there, or the bundle was exported without weights.
    """

    def __init__(
        self,
        bundle: Bundle,
        device: str = "auto",
        precision: Precision | None = None,
        fused: Collection[str] = (),
        folder: Path | None = None,
    ) -> None:
        if device == "cuda" and not torch.cuda.is_available():
            raise UsageError("--device cuda: this torch finds no GPU; check its driver, or use --device cpu")
        if precision and precision.is_int8:
            raise UsageError(f"--precision {precision.value}: PyTorch runs no int8; take another one, or --backend onnxruntime")
        variants = bundle.manifest.variants
        found = [(p, w) for p in bundle.precisions(precision) if (w := variants[p].weights) and not p.is_int8]
        if not found:
            raise UsageError(f"{bundle.path}: holds no weights for PyTorch; export it with --weights, or use another --backend")
        self.precision, weights = found[0]
        self.device = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
        # The current GPU of another thread may be another one.
        self.place = torch.device("cuda", torch.cuda.current_device()) if self.device == "cuda" else torch.device("cpu")
        self.fused = frozenset(fused)
        _, _, model = load_model(bundle.file(weights), with_text=bundle.manifest.context_length is not None)
        self.model = typed(model, self.precision).to(self.place).eval().requires_grad_(False)
        self.dtype = self.model.visual.proj.dtype
        name = torch.cuda.get_device_name() if self.device == "cuda" else "cpu"
        kernels = f", fused {' '.join(sorted(self.fused))}" if self.fused else ", nothing fused"
        self.description = f"PyTorch {torch.__version__} on {name}, {self.precision.value}{kernels}"
        self._preprocess = bundle.manifest.preprocess
        self._resident: WeakKeyDictionary[Vocabulary, Resident] = WeakKeyDictionary()
        self._graphs: dict[tuple[int, int], CapturedPass] = {}
        self._pool = torch.cuda.graph_pool_handle() if self.device == "cuda" else None
        self._largest_batch: dict[int, int] = {}  # by label bucket, where memory ran out
        self._lock = threading.Lock()
        self._launches = self._tuned(folder) if self.device == "cuda" and self.fused else {}

    def _tuned(self, folder: Path | None) -> dict[str, Launch]:
        """How each kernel is launched on this GPU, measured where no earlier run has."""
        start = time.perf_counter()
        tuning.keep_compiled(folder)
        with self._running():
            found = tuning.tune(
                cases(self.model.config, self.dtype, self.place, self.fused), folder, tuning.chip(), tuning.milliseconds
            )
        torch.cuda.empty_cache()
        seconds = time.perf_counter() - start
        if found.measured:
            kept = f"later runs take that from {folder}" if folder else "without a cache folder, so the next run does it again"
            log.info("first run on this GPU: %d kernels compiled and tuned in %.0f s; %s", found.measured, seconds, kept)
        elif folder:
            log.info("kernels: tuned by an earlier run, read from %s in %.1f s", folder, seconds)
        return found.launches

    @contextmanager
    def _running(self) -> Iterator[None]:
        """One thread at a time, on this engine's GPU whatever the thread's is."""
        with self._lock, torch.inference_mode(), torch.cuda.device(self.place) if self.device == "cuda" else nullcontext():
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
        return local if self.model.config.arch.has_local else None, global_feature

    def _encode(self, pixels: Array, vocabulary: Resident) -> tuple[Array, Array]:
        local, global_feature = self._features(torch.from_numpy(pixels).to(self.place), vocabulary)
        return local.float().cpu().numpy(), global_feature.float().cpu().numpy()

    def score(self, pixels: Array, vocabulary: Vocabulary) -> Array:
        """See `Engine.score`. A batch that the GPU has no room for is halved; raises UsageError where it has none for one."""
        with self._running():
            resident = self.resident(vocabulary)
            return np.concatenate(self._in_parts(partial(self._score, vocabulary=resident), pixels, resident))

    def _in_parts(self, run: Callable[[Array], Result], pixels: Array, vocabulary: Resident) -> list[Result]:
        """What `run` makes of the pictures, in as many parts as the GPU's memory asks for."""
        rows = len(vocabulary.label_embedding)
        most = self._largest_batch.get(rows, len(pixels))
        if len(pixels) > most:
            parts = [pixels[i : i + most] for i in range(0, len(pixels), most)]
            return [result for part in parts for result in self._in_parts(run, part, vocabulary)]
        try:
            return [run(pixels)]
        except torch.OutOfMemoryError:
            if len(pixels) == 1:
                raise UsageError(
                    f"the GPU has no room for one picture with {vocabulary.labels} labels; use fewer labels, or --device cpu"
                ) from None
        self._largest_batch[rows] = bucket(len(pixels)) // 2
        log.warning("the GPU has no room for %d pictures at once; from now on %d are", len(pixels), self._largest_batch[rows])
        self._graphs.clear()
        if self.device == "cuda":
            self._pool = torch.cuda.graph_pool_handle()
            torch.cuda.empty_cache()
        return self._in_parts(run, pixels, vocabulary)

    def _score(self, pixels: Array, vocabulary: Resident) -> Array:
        if self.device == "cpu":
            return self.forward(torch.from_numpy(pixels), vocabulary)[:, : vocabulary.labels].numpy()
        size = bucket(len(pixels)), len(vocabulary.label_embedding)
        if size not in self._graphs:
            start = time.perf_counter()
            self._graphs[size] = CapturedPass(self.forward, pixels.shape[1:], size[0], vocabulary, self._pool)
            log.info("prepared for %d pictures and %d labels at once in %.1f s", *size, time.perf_counter() - start)
        return self._graphs[size](pixels, vocabulary)

    def forward(self, pixels: Tensor, vocabulary: Resident) -> Tensor:
        """pixels [B, 3, H, W] on the device → scores [B, bucket] fp32; those behind the labels are 0. What a graph captures."""
        local, global_feature = self._features(pixels, vocabulary)
        config, rows = self.model.config, vocabulary.label_embedding
        if "match" in self.fused and config.arch.has_local:
            return match.match(local, global_feature, rows, config.topk, how=self._launches.get("match"))[0]
        return sigrl.match(config.arch, local.float(), global_feature.float(), rows.float(), config.topk)

    def _features(self, pixels: Tensor, vocabulary: Resident) -> tuple[Tensor, Tensor]:
        patches, global_feature = sigrl.encode_image(self.model.visual, pixels.to(self.dtype))
        module, projection = self.model.svfr, vocabulary.graph_projection
        if module is None or projection is None:
            return patches, global_feature
        if "svfr" not in self.fused:
            return module(patches, vocabulary.label_embedding, projection), global_feature
        stages = self._launches.get("svfr.decouple"), self._launches.get("svfr.reconstruct")
        local = svfr.svfr(module, patches, vocabulary.label_embedding, projection, vocabulary.count, *stages)
        return local, global_feature

    def _check_room(self, labels: int, rows: int) -> None:
        patches, dim, parts = self.model.config.vision.grid**2, self.model.config.embed_dim, 1
        if "svfr" in self.fused and self.model.svfr is not None:
            how = self._launches.get("svfr.reconstruct") or svfr.launch(patches, dim, self.dtype, accumulators=2)
            parts = svfr.splits(rows, 1, -(-dim // how.constants["BLOCK_O"]))
        needed = pass_bytes(rows, patches, dim, self.dtype.itemsize, parts=parts, graph=self.model.svfr is not None)
        # What torch has reserved and does not use is free too.
        idle = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        check_room(labels, needed, torch.cuda.mem_get_info()[0] + idle)

    def resident(self, vocabulary: Vocabulary) -> Resident:
        """A vocabulary on the device, copied there once."""
        if vocabulary not in self._resident:
            labels = len(vocabulary)
            # Tiled in PyTorch, SVFR would count rows of padding.
            exact = self.model.svfr is not None and "svfr" not in self.fused
            rows = labels if exact else max(SMALLEST_LABELS, bucket(labels))
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

    def encode_labels(self, token_ids: NDArray[np.int64]) -> Array:
        """See `Engine.encode_labels`."""
        with self._running():
            rows: Array = self.model.encode_text(torch.from_numpy(token_ids).to(self.place)).float().cpu().numpy()
        return rows

    def project_graph(self, label_embedding: Array) -> Array | None:
        """See `Engine.project_graph`."""
        module = self.model.gmc
        if module is None or self.model.svfr is None:
            return None
        with self._running():
            rows = torch.from_numpy(label_embedding).to(self.place, self.dtype)
            graph = gmc.gmc(module, rows, self._launches) if "gmc" in self.fused else module(rows)
            projection: Array = self.model.svfr.graph_projection(graph).float().cpu().numpy()
        return projection
