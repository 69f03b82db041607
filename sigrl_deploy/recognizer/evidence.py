"""Where in a picture its labels were found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sigrl_deploy.arrays import FloatArray
from sigrl_deploy.bundle.manifest import Manifest
from sigrl_deploy.model import matching
from sigrl_deploy.pictures.crops import Layout
from sigrl_deploy.recognizer.predictions import Prediction
from sigrl_deploy.recognizer.selection import Selection
from sigrl_deploy.recognizer.tiles import best_scores, joined
from sigrl_deploy.vocabulary.vocabulary import Vocabulary


def with_evidence(
    manifest: Manifest,
    layout: Layout,
    tiles: Sequence[tuple[FloatArray, FloatArray]],
    vocabulary: Vocabulary,
    selection: Selection,
) -> tuple[FloatArray, tuple[Prediction, ...]]:
    """One picture's scores [C], and its predictions with evidence and strength.

    `tiles` are local features [P, D] and global feature [D] of each of its tiles. A label of several rows shows the evidence of
    the best of them, a parent that of its child.
    """
    embedding = vocabulary.label_embedding
    of_rows = best_scores([matching.score(manifest.arch, *features, embedding, manifest.topk) for features in tiles])
    scores = vocabulary.scores(of_rows)
    best = selection.best(scores, vocabulary)
    rows = [_row(prediction, of_rows, vocabulary) for prediction in best]
    windows = np.stack([patches.reshape(*manifest.grid, -1)[layout.window] for patches, _ in tiles])
    local = windows.reshape(-1, windows.shape[-1])
    evidence = matching.patch_similarity(local, embedding[rows])
    strength = matching.strength(local, embedding, evidence)
    grids = (values.reshape(len(best), *windows.shape[:-1]) for values in (evidence, strength))
    shown = zip(best, *([joined(layout, label) for label in grid] for grid in grids), strict=True)
    return scores, tuple(replace(each, evidence=matches, strength=clear) for each, matches, clear in shown)


def _row(prediction: Prediction, of_rows: FloatArray, vocabulary: Vocabulary) -> int:
    label = vocabulary.index(prediction.child or prediction.label)
    return label if vocabulary.readout is None else vocabulary.readout.best_row(of_rows, label)
