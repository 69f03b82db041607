"""A vocabulary: the labels that pictures are scored against, and everything about them that does not depend on a picture."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sigrl_deploy.errors import LabelError
from sigrl_deploy.files import DamagedFileError, read_arrays, write_arrays

MAX_LABEL_LENGTH = 256  # characters; CLIP's context of 77 tokens ends long before
_MOST_LABEL_BYTES = 1 << 26  # of a label file: a quarter of a million of the longest labels


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Labels with their embeddings, in one order. A score holds for one vocabulary only: it depends on all its labels.

    `label_embedding` T [C, D] and `graph_projection` G Wbᵀ [C, D] are fp32; the latter is None without a label graph. `origin`
    names the text tower, template and label graph that made them; empty for arrays of one's own.
    """

    labels: tuple[str, ...]
    label_embedding: NDArray[np.float32] = field(repr=False)
    graph_projection: NDArray[np.float32] | None = field(default=None, repr=False)
    origin: str = field(default="", repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    def index(self, label: str) -> int:
        """Row of a label. Raises LabelError where the vocabulary has no such label."""
        try:
            return self.labels.index(label)
        except ValueError:
            raise LabelError(f"label {label!r}: not in the vocabulary of {len(self)} labels") from None

    def write(self, path: Path, mode: int = 0o666) -> None:
        """Write the vocabulary as a file of arrays, whole or not at all; `mode` as for `replacing`."""
        arrays: dict[str, NDArray[Any]] = {"labels": np.array(self.labels), "label_embedding": self.label_embedding}
        if self.graph_projection is not None:
            arrays["graph_projection"] = self.graph_projection
        write_arrays(path, arrays, mode)

    @classmethod
    def read(cls, path: Path, graph: bool, width: int) -> Vocabulary:
        """Read what `write` wrote; `graph` says whether it must have a graph projection, `width` is D.

        Raises OSError or MemoryError where the file cannot be read at present, DamagedFileError where it is not whole.
        """
        arrays = read_arrays(path, ("labels", "label_embedding") + ("graph_projection",) * graph)
        labels, embedding, *graphs = arrays.values()
        whole = labels.ndim == 1 and labels.dtype.kind == "U" and embedding.ndim == 2 and len(labels) == len(embedding) > 0
        if not whole or any(rows.shape != embedding.shape for rows in graphs):
            raise DamagedFileError(f"{path}: its arrays are not labels with a row each")
        if embedding.shape[1] != width:
            raise DamagedFileError(f"{path}: its rows have {embedding.shape[1]} numbers, expected {width}")
        if any(rows.dtype != np.float32 or not np.isfinite(rows).all() for rows in (embedding, *graphs)):
            raise DamagedFileError(f"{path}: its rows are not finite fp32 numbers")
        return cls(tuple(arrays["labels"].tolist()), arrays["label_embedding"], arrays.get("graph_projection"))


def read_labels(path: str | Path) -> tuple[str, ...]:
    """Labels of a UTF-8 file, one a line; blank lines and lines that start with `#` are skipped.

    Raises LabelError with the line number where the file cannot be read, is empty, or has a label that `check_labels` refuses.
    """
    try:
        with open(path, "rb") as file:  # which may be a pipe: <(command) is one
            raw = file.read(_MOST_LABEL_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise LabelError(f"{path}: cannot be read ({reason}); expected a text file with one label a line") from None
    if len(raw) > _MOST_LABEL_BYTES:
        raise LabelError(f"{path}: has more than {_MOST_LABEL_BYTES >> 20} MB; expected a text file with one label a line")
    numbered = []
    for number, line in enumerate(raw.removeprefix(b"\xef\xbb\xbf").splitlines(), start=1):
        try:
            label = line.decode("utf-8").strip()
        except UnicodeDecodeError:
            raise LabelError(f"{path}, line {number}: not UTF-8; save the file as UTF-8") from None
        if label and not label.startswith("#"):
            numbered.append((f"{path}, line {number}", label))
    return _checked(numbered, str(path))


def check_labels(labels: Iterable[str]) -> tuple[str, ...]:
    """Labels given in code, stripped. Raises LabelError for none at all, an empty, repeated, overlong or unprintable one."""
    if not isinstance(labels, Iterable) or isinstance(labels, (bytes, Mapping)):
        raise LabelError(f"labels: is a {type(labels).__name__}, expected a list of text, or the path of a label file")
    numbered = []
    for i, label in enumerate(labels):
        if not isinstance(label, str):
            raise LabelError(f"labels[{i}]: is a {type(label).__name__}, expected text")
        numbered.append((f"labels[{i}]", label.strip()))
    return _checked(numbered, "labels")


def _checked(numbered: Iterable[tuple[str, str]], source: str) -> tuple[str, ...]:
    seen: dict[str, str] = {}
    for place, label in numbered:
        if not label:
            raise LabelError(f"{place}: empty; expected a label")
        if len(label) > MAX_LABEL_LENGTH:
            raise LabelError(f"{place}: {len(label)} characters long, expected a label of at most {MAX_LABEL_LENGTH}")
        if any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in label):
            raise LabelError(
                f"{place}: {label!r} holds a control character or line separator; expected one label a line of plain text"
            )
        if label in seen:
            raise LabelError(f"{place}: {label!r} repeats {seen[label]}; remove one of the two")
        seen[label] = place
    if not seen:
        raise LabelError(f"{source}: holds no labels; expected one label a line")
    return tuple(seen)
