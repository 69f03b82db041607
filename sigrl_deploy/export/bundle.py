"""A checkpoint → a bundle: build, export, measure, and only then put the folder in its place."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from sigrl_deploy.bundle import MANIFEST, TOKENIZER, VOCABULARY, Manifest, Variant
from sigrl_deploy.checkpoint import Checkpoint
from sigrl_deploy.config import Arch, Precision
from sigrl_deploy.eager import choose_preprocess, default_template, load_model, tokenize
from sigrl_deploy.errors import CheckpointError, ExportError, UsageError
from sigrl_deploy.export.folder import check_out, replaced_folder
from sigrl_deploy.export.onnx import export_text, export_visual
from sigrl_deploy.export.parity import LABELS, EagerScorer, Parity, measure
from sigrl_deploy.files import sha256_file
from sigrl_deploy.model.sigrl import SigRL
from sigrl_deploy.model.towers import typed
from sigrl_deploy.preprocess import Contract
from sigrl_deploy.recognizer import Recognizer
from sigrl_deploy.tokenizer import write_clip_tokenizer
from sigrl_deploy.trained import TrainedRecord, write_trained
from sigrl_deploy.version import tool_versions
from sigrl_deploy.vocabulary import read_labels

log = logging.getLogger(__name__)

_TOOLS = ("torch", "onnx", "onnxscript", "onnxruntime", "open_clip_torch")


@dataclass(frozen=True)
class ExportOptions:
    """What to export and how. None means: what the checkpoint or the architecture says.

    `text_tower` is a file, or `NAME:PRETRAINED` for open_clip's own weights. `labels` with `label_embeddings` take the text
    tower's place; `labels` alone put a vocabulary into the bundle, by default the labels that our own training recorded.
    `precisions` are the variants of the graphs, the one that runs by default first. `weights` adds what the PyTorch engine
    needs. `clip_config` None means the config of a `NAME:PRETRAINED` text tower, else OpenAI's convention.
    """

    checkpoint: Path
    out: Path
    arch: Arch | None = None
    text_tower: str | None = None
    clip_config: str | None = None
    labels: Path | None = None
    label_embeddings: Path | None = None
    precisions: tuple[Precision, ...] = (Precision.FP32,)
    topk: int | None = None
    preprocess: Contract | None = None
    template: str | None = None
    tolerance: float | None = None
    weights: bool = False
    force: bool = False


def export_bundle(options: ExportOptions) -> list[Parity]:
    """Write a bundle and return the measured parity of each precision.

    Raises UsageError for options that contradict each other, CheckpointError for a checkpoint that cannot be read, ExportError
    where the folder cannot be written or the graphs miss the tolerance. Whatever it raises, nothing is left behind.
    """
    _check_options(options)
    checkpoint, model, sources = _load(options)
    if Precision.INT8 in options.precisions and model.svfr is None:
        raise UsageError(f"--precision int8: is of SVFR's products, and {model.config.arch.value} has none; take int8x3")
    own = read_labels(options.labels) if options.labels else checkpoint.record.labels if checkpoint.record else ()
    rows = _label_rows(options, model, options.template or default_template(checkpoint, model), own)
    with replaced_folder(options.out) as folder:
        manifest = _write_graphs(options, checkpoint, model, sources, folder, rows)
        manifest = _write_vocabulary(options, model, rows, folder, manifest) if own else _with_files(manifest, folder)
        log.info("measuring the exported graphs against the eager model")
        found = {precision: _measured(options, model, rows, folder, precision) for precision in options.precisions}
        variants = {p: replace(variant, parity=found[p].to_dict()) for p, variant in manifest.variants.items()}
        (folder / MANIFEST).write_text(replace(manifest, variants=variants).to_json(), encoding="utf-8")
    return list(found.values())


def _measured(
    options: ExportOptions, model: SigRL, rows: dict[str, torch.Tensor], folder: Path, precision: Precision
) -> Parity:
    tolerance = precision.tolerance if options.tolerance is None else options.tolerance
    parity = measure(model, rows, folder, precision, tolerance)
    if not parity.largest_error <= tolerance:
        raise ExportError(
            f"{options.out}: the {precision.value} scores differ from the eager model's by {parity.largest_error:.2g}, more "
            f"than the tolerance of {tolerance:g}; nothing was written; "
            "take another --precision, or allow more with --tolerance"
        )
    return parity


def _check_options(options: ExportOptions) -> None:
    if options.label_embeddings and not options.labels:
        raise UsageError("--label-embeddings: needs the labels of its rows; give their file with --labels")
    if options.label_embeddings and options.text_tower:
        raise UsageError("--label-embeddings: takes the place of a text tower; leave out either it or --text-tower")
    if options.topk is not None and options.topk < 1:
        raise UsageError(f"--topk {options.topk}: expected at least 1 patch")
    if options.template is not None and options.template.count("{label}") != 1:
        raise UsageError(f"--template {options.template!r}: expected the text {{label}} in it, once")
    if options.weights and all(precision.is_int8 for precision in options.precisions):
        raise UsageError("--weights: are for PyTorch, which runs no int8; add --precision fp32, fp16 or bf16")
    if len(set(options.precisions)) != len(options.precisions):
        raise UsageError("--precision: names one twice; leave one of them out")
    if options.tolerance is not None and not 0 <= options.tolerance < math.inf:
        raise UsageError(f"--tolerance {options.tolerance}: expected a score error of 0 or more")
    check_out(options.out, options.force)


def _load(options: ExportOptions) -> tuple[Checkpoint, SigRL, dict[str, Any]]:
    checkpoint, text, model = load_model(
        options.checkpoint,
        text_tower=options.text_tower,
        arch=options.arch,
        topk=options.topk,
        clip_config=options.clip_config,
        with_text=options.label_embeddings is None,
    )
    sources = {"checkpoint": _source(options.checkpoint), "layout": checkpoint.layout}
    if text is None:
        assert options.label_embeddings is not None
        return checkpoint, model, sources | {"label_embeddings": _source(options.label_embeddings)}
    text_path = Path(text.path)
    sources["text_tower"] = _source(text_path) if text_path.is_file() else {"file": text.path, "sha256": None}
    return checkpoint, model, sources


def _source(path: Path) -> dict[str, Any]:
    return {"file": path.name, "sha256": sha256_file(path)}


def _label_rows(options: ExportOptions, model: SigRL, template: str, own: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """Label → token ids (by open_clip's own tokenizer) or given embedding: what the eager model scores pictures against, the
    bundle's own vocabulary where it gets one.
    """
    labels = own or read_labels(LABELS)
    if options.label_embeddings is not None:
        return dict(zip(labels, _read_embeddings(options.label_embeddings, len(labels), model.config.embed_dim), strict=True))
    return dict(zip(labels, tokenize(model, template, labels), strict=True))


def _read_embeddings(path: Path, labels: int, dim: int) -> torch.Tensor:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load has its own ways to fail on a damaged file
        raise CheckpointError(
            f"{path}: cannot be read as a saved tensor ({type(error).__name__}); expected [C, {dim}]"
        ) from None
    shape = list(loaded.shape) if isinstance(loaded, torch.Tensor) else type(loaded).__name__
    if shape != [labels, dim]:
        raise CheckpointError(f"{path}: holds {shape}, expected a tensor [{labels}, {dim}]: a row for each line of --labels")
    if not loaded.isfinite().all():
        raise CheckpointError(f"{path}: holds NaN or infinite values; encode the labels again")
    return loaded.float()


def _write_graphs(
    options: ExportOptions,
    checkpoint: Checkpoint,
    model: SigRL,
    sources: dict[str, Any],
    folder: Path,
    rows: dict[str, torch.Tensor],
) -> Manifest:
    config, text = model.config, model.config.text
    template = options.template or default_template(checkpoint, model)
    preprocess = choose_preprocess(checkpoint, model, options.preprocess)
    if text is not None:
        write_clip_tokenizer(folder / TOKENIZER)
    record = TrainedRecord(config, template, preprocess)
    return Manifest(
        arch=config.arch,
        embed_dim=config.embed_dim,
        image_size=config.vision.image_size,
        patch_size=config.vision.patch_size,
        topk=config.topk,
        template=template,
        context_length=text.context_length if text else None,
        preprocess=preprocess,
        variants=_write_variants(options, model, record, folder),
        files={},
        source=sources,
        tools=tool_versions(*_TOOLS),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


def _write_variants(options: ExportOptions, model: SigRL, record: TrainedRecord, folder: Path) -> dict[Precision, Variant]:
    """The graphs of every precision; where asked for, weights of those that PyTorch runs. One dtype has one text graph."""
    variants: dict[Precision, Variant] = {}
    texts: dict[str, str | None] = {}
    for precision in options.precisions:
        cast = typed(model, precision)
        ending = f"-{precision.value}" if variants else ""
        visual, text, weights = f"visual{ending}.onnx", f"text{ending}.onnx", f"weights{ending}.safetensors"
        log.info("exporting %s", visual)
        export_visual(cast, folder / visual, precision)
        if precision.torch_name not in texts:
            log.info("exporting %s", text)
            texts[precision.torch_name] = text if export_text(cast, folder / text) else None
        held = weights if options.weights and not precision.is_int8 else None
        if held:
            write_trained(folder / held, record, cast.state_dict())
        variants[precision] = Variant(visual, texts[precision.torch_name], held)
    return variants


def _write_vocabulary(
    options: ExportOptions, model: SigRL, rows: dict[str, torch.Tensor], folder: Path, manifest: Manifest
) -> Manifest:
    """Write the bundle's own vocabulary, by its finest graph that runs here, else by the model, and the manifest."""
    runnable = [precision for precision in options.precisions if precision is not Precision.BF16]
    finest = min(runnable, key=lambda precision: precision is Precision.FP16, default=Precision.BF16)
    if not (runnable and options.label_embeddings is None):
        EagerScorer(typed(model, finest), rows).vocabulary(list(rows)).write(folder / VOCABULARY)
    manifest = _with_files(manifest, folder)
    if runnable:
        recognizer = Recognizer(folder, device="cpu", precision=finest, cache_dir=False)
        recognizer.vocabulary(list(rows)).write(folder / VOCABULARY)
        manifest = _with_files(manifest, folder)
    return manifest


def _hashes(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in sorted(folder.iterdir()) if path.name != MANIFEST}


def _with_files(manifest: Manifest, folder: Path) -> Manifest:
    """The manifest with the hash of every file, written so that the measurement opens the folder as a user would."""
    manifest = replace(manifest, files=_hashes(folder))
    (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return manifest
