"""What becomes the rows of the labels that an export is measured with: token ids, or rows that are there already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from sigrl_deploy.checkpoints import scpnet
from sigrl_deploy.checkpoints.eager import tokenize
from sigrl_deploy.checkpoints.loading import LoadedCheckpoint
from sigrl_deploy.checkpoints.weights import read_tensor
from sigrl_deploy.config import TextSide
from sigrl_deploy.errors import CheckpointError, UsageError
from sigrl_deploy.export.options import ExportOptions
from sigrl_deploy.export.parity import LABELS
from sigrl_deploy.files import sha256_file
from sigrl_deploy.labels.names import check_labels, read_labels
from sigrl_deploy.labels.reading import read_names


def own_labels(options: ExportOptions, loaded: LoadedCheckpoint) -> tuple[str, ...]:
    """The labels of the vocabulary that goes into the bundle, in its order; none where it gets no vocabulary."""
    record = loaded.checkpoint.record
    if options.labels is not None:
        return read_names(options.labels)
    return check_labels(record.labels) if record and record.labels else ()


def label_rows(options: ExportOptions, loaded: LoadedCheckpoint, own: Sequence[str]) -> dict[str, Tensor]:
    """The labels that parity is measured with, each with its token ids (by open_clip's tokenizer) or its row [D].

    They are the bundle's own vocabulary, where it gets one.
    """
    model = loaded.model
    if model.config.arch.text_side is TextSide.CHECKPOINT:
        return _trained_rows(options, loaded, own)
    if options.scpnet.given:
        name, value = next(iter(options.scpnet.given.items()))
        problem = f"is about SCPNet, and {options.checkpoint} is a {loaded.checkpoint.layout} checkpoint; leave it out"
        raise UsageError(problem, argument=name, value=value)
    labels = own or read_labels(LABELS)
    if options.label_embeddings is not None:
        return dict(zip(labels, _read_embeddings(options.label_embeddings, len(labels), model.config.embed_dim), strict=True))
    return dict(zip(labels, tokenize(model, loaded.template, labels), strict=True))


def _trained_rows(options: ExportOptions, loaded: LoadedCheckpoint, own: Sequence[str]) -> dict[str, Tensor]:
    """The rows that a checkpoint has for the labels that it was trained on."""
    for name in ("label_embeddings", "template"):
        value = getattr(options, name)
        if value is not None:
            problem = f"{options.checkpoint} has rows of its own for the labels that it was trained on; leave it out"
            raise UsageError(problem, argument=name, value=value)
    count = scpnet.label_count(loaded.checkpoint)
    if len(own) != count:
        held = f"holds {len(own)} labels, and" if own else "are not in the checkpoint;"
        problem = f"{held} {options.checkpoint} was trained on {count}: give all of them, in the order of training"
        raise UsageError(problem, argument="labels", value=options.labels)
    return dict(zip(own, scpnet.label_rows(loaded.checkpoint, options.scpnet), strict=True))


def sources(options: ExportOptions, loaded: LoadedCheckpoint) -> dict[str, Any]:
    """Where the model and the rows of its labels came from, for people."""
    found: dict[str, Any] = {"checkpoint": _source(options.checkpoint), "layout": loaded.checkpoint.layout}
    if loaded.checkpoint.record is not None:
        found["training"] = loaded.checkpoint.record.training
    if loaded.text is not None:
        return found | {"text_tower": _source(loaded.text.path)}
    if options.label_embeddings is not None:
        return found | {"label_embeddings": _source(options.label_embeddings)}
    assert options.labels is not None
    assert options.scpnet.relation is not None
    settings = scpnet.settings_of(options.scpnet, scpnet.label_count(loaded.checkpoint))
    rows = {"labels": _source(options.labels), "relation": _source(options.scpnet.relation)}
    return found | rows | {"settings": asdict(settings)}


def _source(source: str | Path) -> dict[str, Any]:
    """A file's name and digest; for open_clip's own weights, their name."""
    path = Path(source)
    return {"file": path.name, "sha256": sha256_file(path)} if path.is_file() else {"file": str(source), "sha256": None}


def _read_embeddings(path: Path, labels: int, dim: int) -> Tensor:
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
