"""What is said of a picture as columns of an Arrow table, with types that do not depend on what was found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from sigrl_deploy.recognizer.predictions import Record

FIELDS = [
    pa.field("labels", pa.list_(pa.string())),
    pa.field("scores", pa.list_(pa.float32())),
    pa.field("thresholds", pa.list_(pa.float32())),
    pa.field("probabilities", pa.list_(pa.float32())),
    pa.field("children", pa.list_(pa.string())),
    pa.field("error", pa.string()),
]


def columns(records: Sequence[Record]) -> dict[str, pa.Array]:
    """The columns FIELDS, a row for each record: its predictions, best first, as lists of one length.

    Where a picture has an error, the lists are null. A threshold, probability or child is null where a prediction has none.
    """
    of_tags = {
        "labels": lambda tag: tag.label,
        "scores": lambda tag: tag.score,
        "thresholds": lambda tag: tag.threshold,
        "probabilities": lambda tag: tag.probability,
        "children": lambda tag: tag.child,
    }
    rows: dict[str, list[Any]] = {
        name: [None if record.error is not None else [read(tag) for tag in record.predictions] for record in records]
        for name, read in of_tags.items()
    }
    rows["error"] = [None if record.error is None else text(record.error) for record in records]
    return {field.name: pa.array(rows[field.name], field.type) for field in FIELDS}


def text(value: str) -> str:
    """A name that Arrow can hold; bytes of a file name that are not text are written as `infer` writes them."""
    return value.encode("utf-8", "backslashreplace").decode("utf-8")
