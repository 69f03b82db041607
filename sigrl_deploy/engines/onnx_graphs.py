"""What runtimes of ONNX files with inputs and outputs on the host share: the inputs of each graph, and matching in numpy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import numpy as np
from numpy.typing import NDArray

from sigrl_deploy.arrays import FloatArray, Pixels
from sigrl_deploy.bundle.bundle import Bundle
from sigrl_deploy.bundle.manifest import Variant
from sigrl_deploy.config import Precision
from sigrl_deploy.errors import BundleError, UsageError
from sigrl_deploy.machine import cpus
from sigrl_deploy.model import matching
from sigrl_deploy.vocabulary.vocabulary import Vocabulary

if TYPE_CHECKING:
    import onnx


class OpenGraph(Protocol):
    """One ONNX file, ready to run. It may be called from several threads."""

    @property
    def inputs(self) -> Mapping[str, Sequence[int | str]]:
        """Every input by name, with its shape after the first axis: a number where an axis is fixed, else its name."""

    def __call__(self, feeds: Mapping[str, Any]) -> dict[str, FloatArray]:
        """Every input by name → every output by name."""


class OnnxTextEngine(ABC):
    """The text half of an `Engine`. It opens the text graph when a vocabulary is first built.

    Raises BundleError where it cannot be opened.
    """

    _bundle: Bundle
    _variant: Variant

    @abstractmethod
    def _open(self, path: Path) -> OpenGraph:
        """Raises BundleError where the runtime cannot open the file."""

    @property
    def text_digests(self) -> tuple[str, ...]:
        """See `Engine`."""
        return self._bundle.digests(self._variant.text) if self._variant.text else ()

    @cached_property
    def _text(self) -> OpenGraph:
        assert self._variant.text is not None
        return self._open(self._bundle.file(self._variant.text))

    def encode_labels(self, token_ids: NDArray[np.int64]) -> FloatArray:
        """See `Engine.encode_labels`."""
        return self._run_text(np.zeros((0, self._bundle.manifest.embed_dim), np.float32), token_ids)["label_embedding"]

    def project_graph(self, label_embedding: FloatArray) -> FloatArray | None:
        """See `Engine.project_graph`."""
        if not self._bundle.manifest.arch.has_graph:
            return None
        no_labels = np.zeros((0, self._bundle.manifest.context_length or 0), np.int64)
        return self._run_text(label_embedding, no_labels)["graph_projection"]

    def _run_text(self, cached_embedding: FloatArray, token_ids: NDArray[np.int64]) -> dict[str, FloatArray]:
        given: dict[str, NDArray[Any]] = {"cached_embedding": cached_embedding, "token_ids": token_ids}
        return self._text({name: given[name] for name in self._text.inputs})


class OnnxEngine(OnnxTextEngine):
    """See `Engine`. Opens the visual graph of one variant.

    Raises BundleError where a graph cannot be opened or is not the one that the manifest describes.
    """

    takes_uint8 = False
    _most_at_once: int | None = None  # pictures that the graph is given at once

    def __init__(self, bundle: Bundle, precision: Precision, threads: int | None) -> None:
        self.precision = precision
        self._threads = threads or cpus.threads()
        self._bundle = bundle
        self._variant = bundle.manifest.variants[precision]
        self._visual = self._open(bundle.file(self._variant.visual))
        check_interface(self._visual.inputs, bundle, self._variant.visual)

    def preprocess(self) -> NoReturn:
        """See `Engine.preprocess`; always raises UsageError."""
        problem = "this backend does not resize pictures on its device; leave it out, or use `backend='torch'`"
        raise UsageError(problem, argument="device_preprocess")

    def encode(self, pixels: Pixels, vocabulary: Vocabulary) -> tuple[FloatArray | None, FloatArray]:
        """See `Engine.encode`."""
        feeds: dict[str, Any] = {"pixels": pixels} | (self._rows(vocabulary) if self._bundle.manifest.arch.has_graph else {})
        found = [self._visual(feeds | {"pixels": part}) for part in self.parts(pixels)]
        outputs = found[0] if len(found) == 1 else {name: np.concatenate([part[name] for part in found]) for name in found[0]}
        self._check_features(outputs, len(pixels))
        return outputs.get("local_feature"), outputs.get("global_feature", np.empty((len(pixels), 0), np.float32))

    def parts(self, pixels: Pixels) -> list[Pixels]:
        """A batch as the graph is given it, in one part or several."""
        most = 1 if self.precision.takes_one_picture else self._most_at_once or len(pixels)
        return [pixels[i : i + most] for i in range(0, max(len(pixels), 1), max(most, 1))]

    def _check_features(self, outputs: Mapping[str, FloatArray], batch: int) -> None:
        """Raise BundleError where features do not have the manifest's sizes, which a graph may leave open."""
        manifest = self._bundle.manifest
        expected: dict[str, tuple[int, ...]] = {}
        if manifest.arch.has_global:
            expected["global_feature"] = batch, manifest.embed_dim
        if manifest.arch.has_local:
            expected["local_feature"] = batch, manifest.local_features, manifest.embed_dim
        for name, shape in expected.items():
            found = outputs[name].shape if name in outputs else None
            if found != shape:
                place = self._bundle.path / self._variant.visual
                raise BundleError(f"{place}: gave {name} {found}, expected {shape}; export the bundle again")

    def _rows(self, vocabulary: Vocabulary) -> dict[str, Any]:
        """A vocabulary as the visual graph's inputs."""
        assert vocabulary.graph_projection is not None
        return {"label_embedding": vocabulary.label_embedding, "graph_projection": vocabulary.graph_projection}

    def score(self, pixels: Pixels, vocabulary: Vocabulary) -> FloatArray:
        """See `Engine.score`; matching runs in numpy. No more features are held than those of one part."""
        manifest, rows = self._bundle.manifest, vocabulary.label_embedding
        scores: list[FloatArray] = []
        for part in self.parts(pixels):
            local, global_feature = self.encode(part, vocabulary)
            pictures = [None] * len(part) if local is None else local
            scores += [
                matching.score(manifest.arch, patches, g, rows, manifest.topk)
                for patches, g in zip(pictures, global_feature, strict=True)
            ]
        return np.stack(scores)

    def score_batches(self, batches: Iterable[Pixels], vocabulary: Vocabulary) -> Iterator[FloatArray]:
        """See `Engine.score_batches`."""
        return (self.score(pixels, vocabulary) for pixels in batches)


def inputs_of(graph: onnx.GraphProto) -> dict[str, Sequence[int | str]]:
    """See `OpenGraph.inputs`."""
    return {i.name: [d.dim_value or d.dim_param for d in i.type.tensor_type.shape.dim[1:]] for i in graph.input}


def check_interface(inputs: Mapping[str, Sequence[int | str]], bundle: Bundle, name: str) -> None:
    """Raise BundleError where the inputs of a visual graph (see `OpenGraph.inputs`) are not what the manifest describes.

    It would fail at the first picture, or score it wrongly.
    """
    manifest = bundle.manifest
    expected = {"pixels": [3, manifest.image_size, manifest.image_size]}
    if manifest.arch.has_graph:
        expected |= {"label_embedding": [manifest.embed_dim], "graph_projection": [manifest.embed_dim]}
    if inputs != expected:
        raise BundleError(
            f"{bundle.path / name}: its inputs are not those that the manifest describes; export the bundle again"
        )
