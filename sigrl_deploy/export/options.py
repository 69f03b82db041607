"""What to export, and how."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from sigrl_deploy.checkpoints.options import CheckpointOptions, SCPNetOptions
from sigrl_deploy.config import Backend, Precision, runs
from sigrl_deploy.errors import UsageError
from sigrl_deploy.export.out_folder import check_out


@dataclass(frozen=True)
class ExportOptions(CheckpointOptions):
    """What to export, and how.

    out: the bundle's folder.
    labels: a label file, whose vocabulary is put into the bundle; None takes the labels that our own training recorded, if any.
    label_embeddings: a saved tensor or `.npy` file [C, D] of those labels, in place of a text tower.
    precisions: the variants of the graphs; the first runs by default.
    tolerance: the largest score error against the PyTorch model in fp32; None takes each precision's own.
    weights: also write the weights that the PyTorch engine needs.
    force: replace a bundle at `out`.
    word_vectors: a text file of GloVe's vectors, which the labels of BiAM and of an (ML)²P-Encoder are matched by.
    raw_vectors: match the labels of an (ML)²P-Encoder by their vectors as they are, as in its zero-shot runs, and not at unit
        length, as in its generalised ones.
    scaling: an `.npz` file of the minimum and maximum of each feature that a linear classifier was trained on.
    scpnet: what decides the rows of an SCPNet checkpoint's labels, which are `labels`.
    """

    out: Path
    labels: Path | None = None
    label_embeddings: Path | None = None
    precisions: tuple[Precision, ...] = (Precision.FP32,)
    tolerance: float | None = None
    weights: bool = False
    force: bool = False
    word_vectors: Path | None = None
    raw_vectors: bool = False
    scaling: Path | None = None
    scpnet: SCPNetOptions = field(default_factory=SCPNetOptions)


def check_options(options: ExportOptions) -> None:
    """Raise UsageError for options that contradict each other, and for an `out` that may not be written."""
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
