"""From the scores of a vocabulary's rows to those of its labels, and what else a label that was found brings with it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sigrl_deploy.arrays import FloatArray
from sigrl_deploy.labels.label_set import LabelSet, ancestors, parents_of
from sigrl_deploy.vocabulary.wordings import rows_of


@dataclass(frozen=True, eq=False)
class Readout:
    """How R rows become C labels.

    Attributes:
        rows: what each row is made of, see `wordings`.
        members: the rows of each label, one label after the other; rows of labels that are never tags are not among them.
        starts: [C], where in `members` each label begins.
        ancestors: [C], parents of each label, their parents and so on.
        thresholds: fp32 [C] from the label set, NaN for a label without; None where none has one.
    """

    rows: tuple[str, ...]
    members: NDArray[np.intp]
    starts: NDArray[np.intp]
    ancestors: tuple[tuple[str, ...], ...]
    thresholds: FloatArray | None

    @classmethod
    def of(cls, labels: LabelSet, template: str) -> Readout:
        """Of a label set whose background is among its labels; `template` is the bundle's."""
        rows: list[str] = []
        members: list[int] = []
        starts: list[int] = []
        for label in labels.labels:
            own = rows_of(label, labels.templates, template)
            if label.emit:
                starts.append(len(members))
                members += range(len(rows), len(rows) + len(own))
            rows += own
        parents = parents_of(labels)
        hidden = {label.name for label in labels.labels if not label.emit}
        found = [tuple(p for p in ancestors(name, parents) if p not in hidden) for name in labels.names]
        thresholds = [label.threshold for label in labels.labels if label.emit]
        given = np.array([np.nan if value is None else value for value in thresholds], np.float32)
        return cls(
            tuple(rows),
            np.array(members, np.intp),
            np.array(starts, np.intp),
            tuple(found),
            None if np.isnan(given).all() else given,
        )

    def scores(self, of_rows: FloatArray) -> FloatArray:
        """Scores [..., R] of the rows → [..., C] of the labels: the best of a label's rows."""
        scores: FloatArray = np.maximum.reduceat(of_rows[..., self.members], self.starts, axis=-1)
        return scores

    def with_parents(self, chosen: NDArray[np.bool_], labels: tuple[str, ...]) -> NDArray[np.bool_]:
        """chosen [N, C], which labels pictures have by themselves → [N, C], with those that they have as parents of others."""
        column = {label: c for c, label in enumerate(labels)}
        found = chosen.copy()
        for c, parents in enumerate(self.ancestors):
            for parent in parents:
                if parent in column:
                    found[:, column[parent]] |= chosen[:, c]
        return found

    def best_row(self, of_rows: FloatArray, label: int) -> int:
        """The row that gave a label its score; `of_rows` are the scores [R] of one picture."""
        own = self.members[self.starts[label] : (*self.starts, len(self.members))[label + 1]]
        return int(own[np.argmax(of_rows[own])])
