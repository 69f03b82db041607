"""What becomes the rows of the labels that an export is measured with: token ids, or rows that are there already."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sigrl_deploy.architectures import TextSide
from sigrl_deploy.checkpoints.eager import tokenize
from sigrl_deploy.checkpoints.loading import LoadedCheckpoint
from sigrl_deploy.checkpoints.weights import Stored, read_tensor
from sigrl_deploy.checkpoints.word_vectors import read_word_vectors, vector_rows, vector_width
from sigrl_deploy.errors import CheckpointError, UsageError
from sigrl_deploy.export.options import ExportOptions
from sigrl_deploy.export.parity import LABELS
from sigrl_deploy.export.systems import SYSTEMS, System, options_of_others
from sigrl_deploy.files import DamagedFileError, read_array, sha256_file
from sigrl_deploy.labels.names import check_labels, read_labels
from sigrl_deploy.labels.reading import read_names

_MOST_HEADER = 1 << 10  # bytes of a .npy file
_FILES = ("backbone", "label_embeddings", "word_vectors", "relation", "scaling")  # options whose files make the model


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
    _check_options(options, loaded)
    model, side = loaded.model, loaded.model.config.arch.text_side
    labels = own or read_labels(LABELS)
    if side is not TextSide.TOWER:
        rows = _trained_rows(options, loaded, own) if side is TextSide.CHECKPOINT else _rows_of_vectors(options, loaded, own)
        dim = model.config.embed_dim
        if rows.shape[1] != dim:
            problem = f"its labels have rows of {rows.shape[1]} numbers, and pictures features of {dim}; expected the same"
            raise CheckpointError(f"{options.checkpoint}: {problem}")
        return dict(zip(own, rows, strict=True))
    if options.label_embeddings is not None:
        return dict(zip(labels, _read_embeddings(options.label_embeddings, len(labels), model.config.embed_dim), strict=True))
    return dict(zip(labels, tokenize(model, loaded.template, labels), strict=True))


def _check_options(options: ExportOptions, loaded: LoadedCheckpoint) -> None:
    """Raise UsageError for options that are about other checkpoints than this one."""
    layout, side = loaded.checkpoint.layout, loaded.model.config.arch.text_side
    unused = dict(options_of_others(layout, options))
    if side is not TextSide.VECTORS:
        unused["word_vectors"] = options.word_vectors
    if side is TextSide.CHECKPOINT:
        unused["label_embeddings"] = options.label_embeddings
    if side is not TextSide.TOWER:
        unused["template"] = options.template
    for name, value in unused.items():
        if value is not None:
            problem = f"has no use with {options.checkpoint}, a {layout} checkpoint; leave it out"
            raise UsageError(problem, argument=name, value=value)
    if side is not TextSide.TOWER and layout not in SYSTEMS:
        raise CheckpointError(
            f"{options.checkpoint}: holds the weights of a bundle, without what the rows of its labels are made of; export the "
            "checkpoint that the bundle was made from"
        )


def _trained_rows(options: ExportOptions, loaded: LoadedCheckpoint, own: Sequence[str]) -> Tensor:
    """The rows [C, D] that a checkpoint has for the labels that it was trained on."""
    checkpoint, system = loaded.checkpoint, SYSTEMS[loaded.checkpoint.layout]
    assert system.count is not None
    assert system.rows is not None
    count = system.count(checkpoint)
    if len(own) != count:
        held = f"holds {len(own)} labels, and" if own else "are not in the checkpoint;"
        problem = f"{held} {options.checkpoint} was trained on {count}: give all of them, in the order of training"
        raise UsageError(problem, argument="labels", value=options.labels)
    return system.rows(checkpoint, options)


def _rows_of_vectors(options: ExportOptions, loaded: LoadedCheckpoint, own: Sequence[str]) -> Tensor:
    """The rows [C, D] of labels that have word vectors."""
    if not own:
        problem = f"{options.checkpoint} has no text tower; give the labels that the bundle shall know"
        raise UsageError(problem, argument="labels")
    if (options.word_vectors is None) == (options.label_embeddings is None):
        problem = "expected GloVe's vectors as text, or else the labels' own vectors as `label_embeddings`: one of the two"
        raise UsageError(problem, argument="word_vectors", value=options.word_vectors)
    width = vector_width(loaded.checkpoint, loaded.model.config.embed_dim)
    if options.label_embeddings is not None:
        vectors = _read_embeddings(options.label_embeddings, len(own), width)
    else:
        assert options.word_vectors is not None
        vectors = torch.from_numpy(read_word_vectors(options.word_vectors, own, width))
    return vector_rows(loaded.checkpoint, vectors, options.raw_vectors)


def sources(options: ExportOptions, loaded: LoadedCheckpoint) -> dict[str, Any]:
    """Where the model and the rows of its labels came from, for people."""
    found: dict[str, Any] = {"checkpoint": _source(options.checkpoint), "layout": loaded.checkpoint.layout}
    if loaded.checkpoint.record is not None:
        found["training"] = loaded.checkpoint.record.training
    if loaded.text is not None:
        return found | {"text_tower": _source(loaded.text.path)}
    for name in _FILES:
        path = options.scpnet.relation if name == "relation" else getattr(options, name)
        if path is not None:
            found[name] = _source(path)
    system = SYSTEMS.get(loaded.checkpoint.layout, System())
    if system.rows is not None and options.labels is not None:  # whose order gives each row its label
        found["labels"] = _source(options.labels)
    if system.settings is not None:
        found["settings"] = system.settings(loaded.checkpoint, options)
    return found


def _source(source: str | Path) -> dict[str, Any]:
    """A file's name and digest; for open_clip's own weights, their name."""
    path = Path(source)
    return {"file": path.name, "sha256": sha256_file(path)} if path.is_file() else {"file": str(source), "sha256": None}


def _read_embeddings(path: Path, labels: int, dim: int) -> Tensor:
    stored = _read_array(path, labels * dim) if path.suffix == ".npy" else read_tensor(path)
    if stored.shape != (labels, dim) or not stored.is_float:
        held = f"{list(stored.shape)} of {stored.dtype}"
        raise CheckpointError(
            f"{path}: holds {held}, expected a tensor [{labels}, {dim}] of floats: one row for each line of `labels`"
        )
    rows = stored.read().float()
    if not rows.isfinite().all():
        raise CheckpointError(f"{path}: holds NaN or infinite values; encode the labels again")
    return rows


def _read_array(path: Path, numbers: int) -> Stored:
    """The array of a `.npy` file, of so many numbers at most."""
    try:
        array = read_array(path, 8 * numbers + _MOST_HEADER)
        return Stored.of(torch.from_numpy(array.astype(array.dtype.newbyteorder("="))))
    except (OSError, DamagedFileError, TypeError) as error:
        reason = getattr(error, "strerror", None) or "not an array of numbers"
        problem = f"{path}: cannot be read ({reason}); expected a .npy file of a row for each line of `labels`"
        raise CheckpointError(problem) from None
