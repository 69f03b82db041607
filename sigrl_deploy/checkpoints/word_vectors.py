"""Rows of labels from word vectors: read from a file of GloVe's, and mapped as a checkpoint maps them.

GloVe's text format has a word and its numbers in each line; gensim's has a line with two counts before them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sigrl_deploy.arrays import FloatArray
from sigrl_deploy.checkpoints.building import collect
from sigrl_deploy.checkpoints.layouts import Checkpoint
from sigrl_deploy.errors import LabelError, UsageError
from sigrl_deploy.files import open_regular

if TYPE_CHECKING:
    from torch import Tensor

_MOST_BYTES = 1 << 34
_MOST_LINE = 1 << 16
_SHOWN = 5
_MAP = "labels."  # begins our names of what maps word vectors


def vector_width(checkpoint: Checkpoint, features: int) -> int:
    """Numbers of a word vector that a checkpoint takes, whose pictures have `features` numbers."""
    return checkpoint.shape("labels.weight", 2)[1] if checkpoint.has_part(_MAP) else features


def read_word_vectors(path: Path, labels: Sequence[str], width: int) -> FloatArray:
    """The vectors [C, width] fp32 of labels that are one word each, whatever their case.

    Raises LabelError for labels of several words or without a vector, UsageError where the file is not of GloVe's format.
    """
    words = {label: label.strip().lower() for label in labels}
    several = [label for label, word in words.items() if len(word.split()) != 1]
    if several:
        problem = "has several words, and how those get one vector is not defined; give `label_embeddings` with your own"
        raise LabelError(problem, argument="labels", value=several[0])
    wanted, found, others = set(words.values()), dict[str, FloatArray](), dict[str, FloatArray]()
    try:
        with open_regular(path, _MOST_BYTES) as file:
            while (line := file.readline(_MOST_LINE)) and len(found) < len(wanted):
                word, _, numbers = line.partition(b" ")
                key = word.decode("utf-8", "replace")
                # In lower case, where the file has the word so, and else as it comes first.
                held = found if key == key.lower() else others
                if key.lower() in wanted and key.lower() not in held:
                    held[key.lower()] = np.array(numbers.split(), np.float32)
    except OSError as error:
        problem = f"cannot be read ({error.strerror or error}); expected GloVe's vectors as text"
        raise UsageError(problem, argument="word_vectors", value=path) from None
    except ValueError:
        problem = f"has a line of {key!r} without numbers; expected a word and {width} numbers in each line"
        raise UsageError(problem, argument="word_vectors", value=path) from None
    found = others | found
    strange = [word for word, vector in found.items() if vector.shape != (width,) or not np.isfinite(vector).all()]
    if strange:
        problem = f"has {len(found[strange[0]])} numbers for {strange[0]!r}, expected {width} finite ones"
        raise UsageError(problem, argument="word_vectors", value=path)
    missing = [label for label, word in words.items() if word not in found]
    if missing:
        named = ", ".join(map(repr, missing[:_SHOWN])) + (" …" if len(missing) > _SHOWN else "")
        problem = f"has no vector for {named}; leave them out of `labels`, or give `label_embeddings` with your own"
        raise LabelError(problem, argument="word_vectors", value=path)
    return np.stack([found[word] for word in words.values()])


def vector_rows(checkpoint: Checkpoint, vectors: Tensor, raw: bool = False) -> Tensor:
    """Word vectors [C, width] → the rows [C, D] that pictures are matched with.

    They are the vectors at unit length, or as long as they are with `raw`, mapped by the checkpoint where it has a map.
    """
    import torch

    from sigrl_deploy.model.sigrl import unit_rows

    rows = vectors if raw else unit_rows(vectors)
    if not checkpoint.has_part(_MAP):
        return rows
    width, dim = vectors.shape[1], checkpoint.shape("labels.weight", 2)[0]
    with torch.device("meta"):
        linear = torch.nn.Linear(width, dim)
    expected = {f"labels.{name}": tensor for name, tensor in linear.state_dict().items()}
    tensors = collect(checkpoint, expected)
    return torch.nn.functional.linear(rows, tensors["labels.weight"], tensors["labels.bias"])
