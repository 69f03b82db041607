"""From a checkpoint to a bundle: export each precision, measure it, and only then put the folder in its place."""

from __future__ import annotations

import gc
import logging
import math
import tempfile
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from msgspec.structs import replace

from sigrl_deploy.bundle.manifest import MANIFEST, TOKENIZER, VOCABULARY, Manifest, Variant
from sigrl_deploy.checkpoints.eager import tokenize
from sigrl_deploy.checkpoints.loading import LoadedCheckpoint, load_model
from sigrl_deploy.checkpoints.native import TrainedRecord, write_trained
from sigrl_deploy.checkpoints.options import CheckpointOptions
from sigrl_deploy.checkpoints.weights import read_tensor
from sigrl_deploy.config import Backend, Device, Precision, runs
from sigrl_deploy.errors import CheckpointError, ExportError, UsageError
from sigrl_deploy.export.onnx import DATA, export_text, export_visual
from sigrl_deploy.export.out_folder import check_out, replaced_folder
from sigrl_deploy.export.parity import LABELS, EagerScorer, Parity, Reference, measure
from sigrl_deploy.files import sha256_file
from sigrl_deploy.labels.names import check_labels, read_labels
from sigrl_deploy.labels.reading import read_names
from sigrl_deploy.model.sigrl import SigRL
from sigrl_deploy.model.towers import typed
from sigrl_deploy.recognizer import Recognizer
from sigrl_deploy.version import tool_versions
from sigrl_deploy.vocabulary.tokenizer import write_clip_tokenizer
from sigrl_deploy.vocabulary.vocabulary import Vocabulary

log = logging.getLogger(__name__)

_TOOLS = ("torch", "onnx", "onnxscript", "onnxruntime", "open_clip_torch")


@dataclass(frozen=True)
class ExportOptions(CheckpointOptions):
    """What to export, and how.

    out: the bundle's folder.
    labels: a label file, whose vocabulary is put into the bundle; None takes the labels that our own training recorded, if any.
    label_embeddings: a saved tensor [C, D] of those labels, in place of a text tower.
    precisions: the variants of the graphs; the first runs by default.
    tolerance: the largest score error against the PyTorch model in fp32; None takes each precision's own.
    weights: also write the weights that the PyTorch engine needs.
    force: replace a bundle at `out`.
    """

    out: Path
    labels: Path | None = None
    label_embeddings: Path | None = None
    precisions: tuple[Precision, ...] = (Precision.FP32,)
    tolerance: float | None = None
    weights: bool = False
    force: bool = False


def export_bundle(options: ExportOptions) -> list[Parity]:
    """Write a bundle, and return the measured parity of each precision, in the order of `options.precisions`.

    Raises UsageError for options that contradict each other or the checkpoint, CheckpointError for a checkpoint that cannot be
    read, ExportError where the folder cannot be written or scores differ by more than the tolerance. Whatever it raises,
    nothing is left behind.
    """
    _check_options(options)
    given = read_names(options.labels) if options.labels else ()
    loaded = load_model(options, with_text=options.label_embeddings is None)
    model, record = loaded.model, loaded.checkpoint.record
    if Precision.INT8 in options.precisions and model.svfr is None:
        problem = f"int8 is for SVFR's products, and {model.config.arch.value} has no SVFR; use `precisions='int8x3'`"
        raise UsageError(problem, argument="precisions", value="int8")
    log.info("%s: a %s checkpoint, exported as %s", options.checkpoint, loaded.checkpoint.layout, model.config.arch.value)
    own = given or (check_labels(record.labels) if record and record.labels else ())
    rows = _label_rows(options, model, loaded.template, own)
    with replaced_folder(options.out) as folder, tempfile.TemporaryDirectory(prefix="sigrl-deploy-") as cache:
        log.info("scoring the package's photographs with the PyTorch model, to measure against")
        reference = Reference(model, rows, loaded.preprocess, Path(cache))
        found = _Export(options, loaded, reference, folder).run(vocabulary=bool(own))
    return list(found.values())


class _Export:
    """One folder being filled, one precision at a time. Each file is hashed once, when it has been written."""

    def __init__(self, options: ExportOptions, loaded: LoadedCheckpoint, reference: Reference, folder: Path) -> None:
        self._options, self._loaded, self._reference, self._folder = options, loaded, reference, folder
        self._model, self._sources = loaded.model, _sources(options, loaded)
        self._variants: dict[Precision, Variant] = {}
        self._hashes: dict[str, str] = {}
        self._texts: dict[str, str | None] = {}  # by dtype: variants of one dtype share a text graph

    def run(self, vocabulary: bool) -> dict[Precision, Parity]:
        """Write everything, and measure each precision as soon as it has been written."""
        if self._model.text is not None:
            write_clip_tokenizer(self._folder / TOKENIZER)
        elif vocabulary:  # a bundle without a text tower opens only with its vocabulary
            self._write_vocabulary(EagerScorer(self._model, self._reference.rows).vocabulary(list(self._reference.rows)))
        found = {precision: self._write_and_measure(precision) for precision in self._options.precisions}
        if vocabulary:
            self._encode_vocabulary()
        self._write_manifest(self._variants)
        return found

    def _write_and_measure(self, precision: Precision) -> Parity:
        log.info("%s: exporting", precision.value)
        if not runs(Backend.ONNXRUNTIME, precision, Device.CPU):
            log.info("%s: ONNX Runtime does not run it on a CPU", precision.value)
        began = time.monotonic()
        graphs = self._model if precision.torch_name == "float32" else typed(self._model, precision)
        variant = self._write_variant(graphs, precision)
        self._write_manifest({precision: variant})
        written = time.monotonic()
        log.info("%s: exported in %.0f s; measuring against the PyTorch model", precision.value, written - began)
        parity = self._measure(graphs, precision)
        log.info("%s: measured in %.0f s", precision.value, time.monotonic() - written)
        self._variants[precision] = replace(variant, parity=parity.to_dict())
        del graphs
        gc.collect()  # the exporter's graphs and the engine's sessions are in reference cycles, which hold all weights
        return parity

    def _write_variant(self, graphs: SigRL, precision: Precision) -> Variant:
        """Write the graphs of a precision and, where asked for and PyTorch runs it, its weights."""
        ending = f"-{precision.value}" if self._variants else ""
        visual, text, weights = f"visual{ending}.onnx", f"text{ending}.onnx", f"weights{ending}.safetensors"
        export_visual(graphs, self._folder / visual, precision)
        if precision.torch_name not in self._texts:
            self._texts[precision.torch_name] = text if export_text(graphs, self._folder / text) else None
        held = weights if self._options.weights and runs(Backend.TORCH, precision) else None
        if held:
            record = TrainedRecord(graphs.config, self._loaded.template, self._loaded.preprocess)
            write_trained(self._folder / held, record, graphs.state_dict())
        return Variant(visual, self._texts[precision.torch_name], held)

    def _measure(self, graphs: SigRL, precision: Precision) -> Parity:
        options = self._options
        tolerance = precision.tolerance if options.tolerance is None else options.tolerance
        parity = measure(self._reference, self._folder, precision, tolerance, graphs)
        if not parity.largest_error <= tolerance:
            raise ExportError(
                f"{options.out}: the {precision.value} scores differ from the PyTorch model's by {parity.largest_error:.2g}, "
                f"more than the tolerance of {tolerance:g}; nothing was written; choose another precision, or a "
                "larger `tolerance`"
            )
        return parity

    def _encode_vocabulary(self) -> None:
        """Write the bundle's own vocabulary, encoded by its most exact graph that runs here, or else by the model."""
        runnable = [p for p in self._options.precisions if runs(Backend.ONNXRUNTIME, p, Device.CPU)]
        labels = list(self._reference.rows)
        if not runnable:
            self._write_vocabulary(EagerScorer(typed(self._model, Precision.BF16), self._reference.rows).vocabulary(labels))
            return
        finest = min(runnable, key=lambda precision: precision is Precision.FP16)
        self._write_manifest({finest: self._variants[finest]})
        recognizer = Recognizer(self._folder, device="cpu", precision=finest, cache_dir=False)
        self._write_vocabulary(recognizer.vocabulary(labels))

    def _write_vocabulary(self, vocabulary: Vocabulary) -> None:
        vocabulary.write(self._folder / VOCABULARY)
        self._hashes.pop(VOCABULARY, None)

    def _write_manifest(self, variants: dict[Precision, Variant]) -> None:
        """Write a manifest of these variants alone, so that the folder opens as it will for a user."""
        parts = {VOCABULARY, TOKENIZER, *(name for variant in variants.values() for name in variant.files)}
        for path in self._folder.iterdir():
            if path.name != MANIFEST and path.name not in self._hashes:
                self._hashes[path.name] = sha256_file(path)
        listed = {name: digest for name, digest in sorted(self._hashes.items()) if name.removesuffix(DATA) in parts}
        manifest = self._manifest(variants, listed)
        (self._folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")

    def _manifest(self, variants: dict[Precision, Variant], files: dict[str, str]) -> Manifest:
        config = self._model.config
        return Manifest(
            arch=config.arch,
            embed_dim=config.embed_dim,
            image_size=config.vision.image_size,
            patch_size=config.vision.patch_size,
            topk=config.topk,
            template=self._loaded.template,
            context_length=config.text.context_length if config.text else None,
            preprocess=self._loaded.preprocess,
            variants=variants,
            files=files,
            source=self._sources,
            tools=tool_versions(*_TOOLS),
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )


def _check_options(options: ExportOptions) -> None:
    if options.label_embeddings and not options.labels:
        problem = "needs the labels of its rows; give their file as `labels`"
        raise UsageError(problem, argument="label_embeddings", value=options.label_embeddings)
    if options.label_embeddings and options.text_tower:
        problem = "takes the place of a text tower; leave out either it or `text_tower`"
        raise UsageError(problem, argument="label_embeddings", value=options.label_embeddings)
    if options.topk is not None and options.topk < 1:
        raise UsageError("expected at least 1 patch", argument="topk", value=options.topk)
    if options.template is not None and options.template.count("{label}") != 1:
        raise UsageError("expected the text {label} in it, once", argument="template", value=options.template)
    if options.weights and not any(runs(Backend.TORCH, precision) for precision in options.precisions):
        raise UsageError("are for PyTorch, which runs no int8; add fp32, fp16 or bf16 to `precisions`", argument="weights")
    if len(set(options.precisions)) != len(options.precisions):
        raise UsageError("names a precision twice; leave one of them out", argument="precisions")
    if options.tolerance is not None and not 0 <= options.tolerance < math.inf:
        raise UsageError("expected a score error of 0 or more", argument="tolerance", value=options.tolerance)
    check_out(options.out, options.force)


def _sources(options: ExportOptions, loaded: LoadedCheckpoint) -> dict[str, Any]:
    """Where the model came from, for people."""
    sources: dict[str, Any] = {"checkpoint": _source(options.checkpoint), "layout": loaded.checkpoint.layout}
    if loaded.checkpoint.record is not None:
        sources["training"] = loaded.checkpoint.record.training
    if loaded.text is not None:
        return sources | {"text_tower": _source(loaded.text.path)}
    assert options.label_embeddings is not None
    return sources | {"label_embeddings": _source(options.label_embeddings)}


def _source(source: str | Path) -> dict[str, Any]:
    """A file's name and digest; for open_clip's own weights, their name."""
    path = Path(source)
    return {"file": path.name, "sha256": sha256_file(path)} if path.is_file() else {"file": str(source), "sha256": None}


def _label_rows(options: ExportOptions, model: SigRL, template: str, own: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """The labels that parity is measured with, each with its token ids (by open_clip's tokenizer) or its given embedding.

    They are the bundle's own vocabulary, where it gets one.
    """
    labels = own or read_labels(LABELS)
    if options.label_embeddings is not None:
        return dict(zip(labels, _read_embeddings(options.label_embeddings, len(labels), model.config.embed_dim), strict=True))
    return dict(zip(labels, tokenize(model, template, labels), strict=True))


def _read_embeddings(path: Path, labels: int, dim: int) -> torch.Tensor:
    stored = read_tensor(path)
    if stored.shape != (labels, dim) or not stored.is_float:
        held = f"{list(stored.shape)} of {stored.dtype}"
        raise CheckpointError(
            f"{path}: holds {held}, expected a tensor [{labels}, {dim}] of floats: one row for each line of `labels`"
        )
    rows = stored.read().float()
    if not rows.isfinite().all():
        raise CheckpointError(f"{path}: holds NaN or infinite values; encode the labels again")
    return rows
