"""From views of pictures to scores and predictions, batch by batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from sigrl_deploy.arrays import FloatArray, Pixels
from sigrl_deploy.bundle.manifest import Manifest
from sigrl_deploy.engines.engine import Engine
from sigrl_deploy.pictures.crops import View
from sigrl_deploy.recognizer.checks import check_pixels
from sigrl_deploy.recognizer.evidence import with_evidence
from sigrl_deploy.recognizer.predictions import Prediction
from sigrl_deploy.recognizer.selection import Selection
from sigrl_deploy.recognizer.tiles import best_scores, by_picture
from sigrl_deploy.vocabulary.vocabulary import Vocabulary

Tagged = tuple[FloatArray, tuple[Prediction, ...]]  # scores [C], which may not be finite, and predictions of one picture


@dataclass(frozen=True)
class Pipeline:
    """A bundle's engine and what its scores mean. Threads may share it.

    Batches go to the engine `size` tiles at once at most. A GPU gets one while the one before it runs, so results of a batch
    come when the next was taken.
    """

    manifest: Manifest
    engine: Engine

    def score_batches(self, batches: Iterable[Pixels], vocabulary: Vocabulary) -> Iterator[FloatArray]:
        """Scores [B, C] of each batch [B, 3, H, W] of tiles, in order. Raises UsageError for pixels that do not fit."""

        def checked() -> Iterator[Pixels]:
            for pixels in batches:
                check_pixels(pixels, self.manifest.image_size, self.engine.takes_uint8)
                yield pixels

        return map(vocabulary.scores, self.engine.score_batches(checked(), vocabulary))

    def scores(self, batches: Iterable[Sequence[View]], vocabulary: Vocabulary, size: int) -> Iterator[list[FloatArray]]:
        """Scores [C] of each picture of each batch, in order."""
        for pictures in by_picture(batches, size, partial(self.score_batches, vocabulary=vocabulary)):
            yield [best_scores(tiles) for _, tiles in pictures]

    def predictions(
        self, batches: Iterable[Sequence[View]], vocabulary: Vocabulary, selection: Selection, size: int
    ) -> Iterator[list[Tagged]]:
        """Scores and predictions of each picture of each batch, in order."""
        if not selection.evidence:
            for batch in self.scores(batches, vocabulary, size):
                yield [(scores, selection.best(scores, vocabulary)) for scores in batch]
            return
        for pictures in by_picture(batches, size, partial(self._features, vocabulary=vocabulary)):
            yield [with_evidence(self.manifest, layout, tiles, vocabulary, selection) for layout, tiles in pictures]

    def tag(self, views: Sequence[View], vocabulary: Vocabulary, selections: Sequence[Selection]) -> list[Tagged]:
        """Scores and predictions of one batch of pictures, each with a selection of its own.

        Pictures with evidence are run by themselves, since it is made of what engines otherwise keep.
        """
        found: dict[int, Tagged] = {}
        plain = [i for i, selection in enumerate(selections) if not selection.evidence]
        if plain:
            (scores,) = self.scores([[views[i] for i in plain]], vocabulary, len(views))
            found |= {i: (row, selections[i].best(row, vocabulary)) for i, row in zip(plain, scores, strict=True)}
        for i, selection in enumerate(selections):
            if selection.evidence:
                ((found[i],),) = self.predictions([[views[i]]], vocabulary, selection, len(views))
        return [found[i] for i in range(len(views))]

    def _features(self, batches: Iterable[Pixels], vocabulary: Vocabulary) -> Iterator[Iterable[tuple[FloatArray, FloatArray]]]:
        for pixels in batches:
            local, global_feature = self.engine.encode(pixels, vocabulary)
            assert local is not None
            yield zip(local, global_feature, strict=True)
