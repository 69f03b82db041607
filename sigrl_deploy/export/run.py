"""From a checkpoint to a bundle: export each precision, measure it, and only then put the folder in its place."""

from __future__ import annotations

import gc
import logging
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path

from msgspec.structs import replace

from sigrl_deploy.bundle.manifest import MANIFEST, TOKENIZER, VOCABULARY, Manifest, Variant
from sigrl_deploy.checkpoints.loading import LoadedCheckpoint, load_model
from sigrl_deploy.checkpoints.native import TrainedRecord, write_trained
from sigrl_deploy.config import Backend, Device, Precision, runs
from sigrl_deploy.errors import ExportError, UsageError
from sigrl_deploy.export.label_rows import label_rows, own_labels, sources
from sigrl_deploy.export.onnx import DATA, export_text, export_visual
from sigrl_deploy.export.options import ExportOptions, check_options
from sigrl_deploy.export.out_folder import replaced_folder
from sigrl_deploy.export.parity import EagerScorer, Parity, Reference, measure
from sigrl_deploy.files import sha256_file
from sigrl_deploy.image_towers import Ml2pConfig
from sigrl_deploy.model.sigrl import SigRL
from sigrl_deploy.model.towers import typed
from sigrl_deploy.recognizer import Recognizer
from sigrl_deploy.version import tool_versions
from sigrl_deploy.vocabulary.tokenizer import write_clip_tokenizer
from sigrl_deploy.vocabulary.vocabulary import Vocabulary

log = logging.getLogger(__name__)

_TOOLS = ("torch", "onnx", "onnxscript", "onnxruntime", "open_clip_torch")


def export_bundle(options: ExportOptions) -> list[Parity]:
    """Write a bundle, and return the measured parity of each precision, in the order of `options.precisions`.

    Raises UsageError for options that contradict each other or the checkpoint, CheckpointError for a checkpoint that cannot be
    read, ExportError where the folder cannot be written or scores differ by more than the tolerance. Whatever it raises,
    nothing is left behind.
    """
    check_options(options)
    loaded = load_model(options, with_text=options.label_embeddings is None)
    model = loaded.model
    if Precision.INT8 in options.precisions and model.svfr is None:
        problem = f"int8 is for SVFR's products, and {model.config.arch.value} has no SVFR; use `precisions='int8x3'`"
        raise UsageError(problem, argument="precisions", value="int8")
    log.info("%s: a %s checkpoint, exported as %s", options.checkpoint, loaded.checkpoint.layout, model.config.arch.value)
    own = own_labels(options, loaded)
    rows = label_rows(options, loaded, own)
    with replaced_folder(options.out) as folder, tempfile.TemporaryDirectory(prefix="sigrl-deploy-") as cache:
        log.info("scoring the package's photographs with the PyTorch model, to measure against")
        reference = Reference(model, rows, loaded.preprocess, Path(cache))
        found = _Export(options, loaded, reference, folder).run(vocabulary=bool(own))
    return list(found.values())


class _Export:
    """One folder being filled, one precision at a time. Each file is hashed once, when it has been written."""

    def __init__(self, options: ExportOptions, loaded: LoadedCheckpoint, reference: Reference, folder: Path) -> None:
        self._options, self._loaded, self._reference, self._folder = options, loaded, reference, folder
        self._model, self._sources = loaded.model, sources(options, loaded)
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
            groups=config.vision.groups if isinstance(config.vision, Ml2pConfig) else None,
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
