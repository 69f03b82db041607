"""What is measured: the model from seeded weights, label embeddings, pictures, and our engine, with no export on the way."""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu.cases import PRECISIONS
from benchmarks.random_weights import VARIANTS, draw, label_embeddings, sigrl_shapes
from benchmarks.workload import real_files
from sigrl_deploy.architectures import Contract
from sigrl_deploy.arrays import FloatArray, Pixels
from sigrl_deploy.bundle.bundle import Bundle
from sigrl_deploy.bundle.manifest import MANIFEST, VOCABULARY, Manifest, Variant
from sigrl_deploy.checkpoints.building import build_model
from sigrl_deploy.checkpoints.layouts import Checkpoint
from sigrl_deploy.checkpoints.model_config import model_config
from sigrl_deploy.checkpoints.native import TrainedRecord, write_trained
from sigrl_deploy.checkpoints.weights import Stored
from sigrl_deploy.config import FUSED, Device, ModelConfig, Precision
from sigrl_deploy.engines.torch import TorchEngine
from sigrl_deploy.files import sha256_file
from sigrl_deploy.model.sigrl import SigRL
from sigrl_deploy.model.towers import typed
from sigrl_deploy.pictures.device_preprocess import Normalise
from sigrl_deploy.pictures.preprocess import Preprocess
from sigrl_deploy.pictures.reading import read_image
from sigrl_deploy.vocabulary.vocabulary import Vocabulary

REHEARSED_WIDTH = 64  # D on a CPU, where the interpreter takes minutes for that of CLIP
WEIGHTS = "weights.safetensors"
GRAPHS = "visual.onnx", "text.onnx"
TEMPLATE = "{label}"


class Setup:
    """Everything is made when it is first asked for, and kept."""

    def __init__(self, device: str, variant: str) -> None:
        self.device, self.variant = device, variant
        self._folder = tempfile.TemporaryDirectory(prefix="sigrl-deploy-gpu-")

    @cached_property
    def eager(self) -> SigRL:
        """The eager model in fp32, on the device."""
        variant = VARIANTS[self.variant]
        shapes = sigrl_shapes(variant if self.device == "cuda" else replace(variant, embed=REHEARSED_WIDTH))
        with ThreadPoolExecutor() as pool:  # numpy draws without the interpreter's lock
            drawn = pool.map(lambda item: Stored.of(torch.from_numpy(draw(*item))), shapes.items())
            tensors = dict(zip(shapes, drawn, strict=True))
        checkpoint = Checkpoint("seeded weights", "SigRL", "", tensors, openai=True)
        return build_model(checkpoint, model_config(checkpoint)).to(self.device)

    @property
    def config(self) -> ModelConfig:
        return self.eager.config

    @lru_cache(maxsize=2)  # noqa: B019 - it lives as long as the run
    def typed(self, precision: Precision) -> SigRL:
        """The eager model as PyTorch runs it in a precision."""
        return typed(self.eager, precision).eval().requires_grad_(False)

    @lru_cache  # noqa: B019
    def labels(self, count: int) -> Tensor:
        """T [C, D] fp32 of stand-in labels, on the device."""
        return torch.from_numpy(label_embeddings(count, 1, self.config.embed_dim)).to(self.device)

    @lru_cache  # noqa: B019
    def graph(self, count: int) -> Tensor:
        """G [C, D] fp32."""
        assert self.eager.gmc is not None
        found: Tensor = self.eager.gmc(self.labels(count))
        return found

    def projection(self, count: int) -> Tensor:
        """G Wbᵀ [C, D] fp32."""
        assert self.eager.svfr is not None
        return self.eager.svfr.graph_projection(self.graph(count))

    @lru_cache  # noqa: B019
    def vocabulary(self, count: int) -> Vocabulary:
        """The same on the host, as an engine takes it."""
        names = tuple(map(str, range(count)))
        return Vocabulary(names, self.labels(count).cpu().numpy(), self.projection(count).cpu().numpy())

    @lru_cache  # noqa: B019
    def exact(self, count: int, pictures: int) -> FloatArray:
        """Scores [n, C] of real pictures by the eager model in fp32, what drift is measured against."""
        rows = [
            self.eager(self.normalised(picture[None]), self.labels(count), self.projection(count))
            for picture in self.pictures[:pictures]
        ]
        scores: FloatArray = torch.cat(rows).cpu().numpy()
        return scores

    @cached_property
    def preprocess(self) -> Preprocess:
        return Preprocess.for_contract(Contract.ZERO_SHOT, self.config.vision.image_size)

    @cached_property
    def pictures(self) -> Pixels:
        """[n, 3, H, W] uint8 on the host: real ones, before their normalisation."""
        return np.stack([self.preprocess.uint8(read_image(path)) for path in real_files()])

    @lru_cache  # noqa: B019
    def pixels(self, batch: int) -> Pixels:
        """[B, 3, H, W] uint8 on the host: stand-ins for them."""
        size = self.config.vision.image_size
        return np.random.RandomState(0).randint(0, 256, (batch, 3, size, size), np.uint8)

    def normalised(self, pixels: Pixels) -> Tensor:
        """[B, 3, H, W] fp32 on the device, what the eager model takes."""
        device = torch.device(self.device)
        return Normalise(self.preprocess, device)(torch.from_numpy(pixels).to(device))

    @lru_cache  # noqa: B019
    def engine(self, precision: Precision) -> TorchEngine:
        """Our engine with everything fused, its kernels tuned."""
        return TorchEngine(self.bundle, Device(self.device), precision, FUSED, Path(self._folder.name) / "cache")

    @cached_property
    def bundle(self) -> Bundle:
        """A bundle of weights: its graphs are empty files, which no engine of PyTorch opens."""
        folder, config, preprocess = Path(self._folder.name), self.config, self.preprocess
        write_trained(folder / WEIGHTS, TrainedRecord(config, TEMPLATE, preprocess), self.eager.state_dict())
        Vocabulary(("0",), np.zeros((1, config.embed_dim), np.float32)).write(folder / VOCABULARY)
        for name in GRAPHS:
            (folder / name).touch()
        manifest = Manifest(
            config.arch, config.embed_dim, config.vision.image_size, config.vision.patch_size, config.topk, TEMPLATE,
            context_length=None, preprocess=preprocess,
            variants={precision: Variant(*GRAPHS, WEIGHTS) for precision in PRECISIONS.values()},
            files={name: sha256_file(folder / name) for name in (WEIGHTS, VOCABULARY, *GRAPHS)},
            source={}, tools={}, created="",
        )  # fmt: skip
        (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        return Bundle(folder)
