"""A vocabulary: the labels that pictures are scored against, and everything about them that does not depend on a picture."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sigrl_deploy.arrays import FloatArray
from sigrl_deploy.errors import LabelError
from sigrl_deploy.files import DamagedFileError, read_arrays, write_arrays
from sigrl_deploy.vocabulary.readout import Readout


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Labels with their embeddings, in one order. A score holds for one vocabulary only: it depends on all its rows.

    >>> vocabulary = recognizer.vocabulary(["cat", "cup of coffee", "rocket"])
    >>> len(vocabulary), vocabulary.index("rocket")
    (3, 2)

    Attributes:
        labels: C labels, in the order of scores.
        label_embedding: T, fp32 [R, D], a row for each label, unless `readout` says otherwise.
        graph_projection: G Wbᵀ, fp32 [R, D]; None without a label graph.
        origin: names the text tower, template and label graph that made the arrays; "" for arrays of your own.
        readout: how R rows become C labels, where labels have several rows, or there are rows that are no labels.
    """

    labels: tuple[str, ...]
    label_embedding: FloatArray = field(repr=False)
    graph_projection: FloatArray | None = field(default=None, repr=False)
    origin: str = field(default="", repr=False)
    readout: Readout | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    def index(self, label: str) -> int:
        """Row of a label. Raises LabelError where the vocabulary has no such label."""
        try:
            return self.labels.index(label)
        except ValueError:
            raise LabelError(f"not in the vocabulary of {len(self)} labels", argument="label", value=label) from None

    @property
    def digest(self) -> str:
        """A short name for everything about the labels that scores depend on, except their order."""
        rows = self.labels if self.readout is None else self.readout.rows
        return hashlib.sha256(json.dumps(sorted(rows)).encode()).hexdigest()[:32]

    @property
    def is_of_names(self) -> bool:
        """Whether each label has one row, which is its name's alone. Beside them there may be rows that are no labels."""
        readout = self.readout
        return readout is None or tuple(readout.rows[row] for row in readout.members) == self.labels

    def scores(self, of_rows: FloatArray) -> FloatArray:
        """Scores [..., R] of the rows → [..., C] of the labels."""
        return of_rows if self.readout is None else self.readout.scores(of_rows)

    def write(self, path: Path, mode: int = 0o666) -> None:
        """Write the vocabulary as a file of arrays, whole or not at all; for `mode` see `replacing`.

        Raises LabelError for one of a label set that says more than names, which such a file cannot hold.
        """
        if self.readout is not None:
            raise LabelError(
                "these labels say more than names, which a file cannot hold; keep the label set", argument="labels"
            )
        arrays: dict[str, NDArray[Any]] = {"labels": np.array(self.labels), "label_embedding": self.label_embedding}
        if self.graph_projection is not None:
            arrays["graph_projection"] = self.graph_projection
        write_arrays(path, arrays, mode)

    @classmethod
    def read(cls, path: Path, graph: bool, width: int) -> Vocabulary:
        """Read what `write` wrote; `graph` says whether it must have a graph projection, `width` is D.

        Raises OSError or MemoryError where the file cannot be read now, DamagedFileError where it is damaged.
        """
        arrays = read_arrays(path, ("labels", "label_embedding") + ("graph_projection",) * graph)
        labels, embedding, *graphs = arrays.values()
        whole = labels.ndim == 1 and labels.dtype.kind == "U" and embedding.ndim == 2 and len(labels) == len(embedding) > 0
        if not whole or any(rows.shape != embedding.shape for rows in graphs):
            raise DamagedFileError(f"{path}: its arrays are not labels with one row each")
        if embedding.shape[1] != width:
            raise DamagedFileError(f"{path}: its rows have {embedding.shape[1]} numbers, expected {width}")
        if any(rows.dtype != np.float32 or not np.isfinite(rows).all() for rows in (embedding, *graphs)):
            raise DamagedFileError(f"{path}: its rows are not finite fp32 numbers")
        return cls(tuple(arrays["labels"].tolist()), arrays["label_embedding"], arrays.get("graph_projection"))
