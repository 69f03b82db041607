"""Wordings: the texts that are encoded for a label, and how their embeddings become one row.

A wording is a label, which goes into the bundle's template, or a template and a label with a tab between them. A row is one or
more wordings with line feeds between them. Neither labels nor templates hold control characters, so a row can be taken apart
again, and a label with nothing but a name is its own row.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sigrl_deploy.arrays import FloatArray
from sigrl_deploy.labels.label_set import SLOT, Label, Match

_BETWEEN_WORDINGS = "\n"
_BEHIND_TEMPLATE = "\t"


def rows_of(label: Label, templates: Sequence[str], own_template: str) -> list[str]:
    """The rows of a label: one, or with `Match.ANY` one for its name and each synonym.

    `templates` are those of the label set, for a label without its own; where neither has one, `own_template`, the bundle's, is
    used.
    """
    used = dict.fromkeys(label.templates or templates or (own_template,))
    rows = [
        [text if template == own_template else f"{template}{_BEHIND_TEMPLATE}{text}" for template in used]
        for text in (label.name, *label.synonyms)
    ]
    if label.match is Match.MEAN:
        rows = [[wording for row in rows for wording in row]]
    # Sorted, since the order in which a file names synonyms should change nothing.
    return [_BETWEEN_WORDINGS.join(sorted(row)) for row in rows]


def wordings_of(row: str) -> list[str]:
    return row.split(_BETWEEN_WORDINGS)


def in_template(wording: str, own_template: str) -> str:
    """The text to encode."""
    template, _, text = wording.rpartition(_BEHIND_TEMPLATE)
    return (template or own_template).replace(SLOT, text)


def has_template(wording: str) -> bool:
    """Whether a wording brings a template of its own."""
    return _BEHIND_TEMPLATE in wording


def combined(embeddings: FloatArray) -> FloatArray:
    """Embeddings [W, D] of a row's wordings → [D]: the mean of their directions, as long as they are on average.

    Without unit length, a wording with a long embedding would outweigh the others; the length counts in GMC and in SVFR, so it
    stays what the text tower gives. A single wording is left as it is.
    """
    if len(embeddings) == 1:
        return embeddings[0]
    lengths = np.linalg.norm(embeddings.astype(np.float64), axis=1, keepdims=True)
    mean = (embeddings / lengths).mean(axis=0)
    row: FloatArray = (mean * lengths.mean()).astype(np.float32)
    return row
