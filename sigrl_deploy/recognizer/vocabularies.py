"""Labels → a vocabulary, by a bundle's text tower or from the label embeddings that the bundle carries."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import msgspec

from sigrl_deploy.architectures import TextSide
from sigrl_deploy.arrays import FloatArray
from sigrl_deploy.bundle.bundle import Bundle
from sigrl_deploy.bundle.manifest import TOKENIZER, VOCABULARY
from sigrl_deploy.engines.engine import Engine
from sigrl_deploy.errors import BundleError, LabelError, printable
from sigrl_deploy.files import DamagedFileError
from sigrl_deploy.labels.background import with_background
from sigrl_deploy.labels.label_set import Label, LabelSet, Match, label_set
from sigrl_deploy.labels.names import check_labels
from sigrl_deploy.labels.reading import read_label_set
from sigrl_deploy.vocabulary.cache import VocabularyCache, digest
from sigrl_deploy.vocabulary.readout import Readout
from sigrl_deploy.vocabulary.tokenizer import Tokenizer
from sigrl_deploy.vocabulary.vocabulary import Vocabulary
from sigrl_deploy.vocabulary.wordings import has_template, in_template

log = logging.getLogger(__name__)


class Vocabularies:
    """The vocabularies of one bundle, cached in memory, and in `folder` unless that is None. Threads may share it.

    `unfused` are the ops that do not run as kernels: rows that differ in rounding are not shared.
    """

    def __init__(self, bundle: Bundle, engine: Engine, folder: Path | None, unfused: Collection[str]) -> None:
        manifest = bundle.manifest
        self._encoder = _LabelEncoder(bundle, engine)
        self._template = manifest.template
        rows = manifest.files[TOKENIZER if manifest.context_length else VOCABULARY]
        # Hashes of the files, not what the manifest says about them: two bundles that differ must never share a row.
        text_key = digest(*engine.text_digests, rows, manifest.template, str(manifest.context_length))
        self._cache = VocabularyCache(
            folder,
            text_key=text_key,
            graph_key=digest("graph", *({"gmc"} & set(unfused))) if manifest.arch.has_graph else "",
            encode=self._encoder.encode if manifest.context_length else self._encoder.look_up,
            project=engine.project_graph,
            width=manifest.embed_dim,
            about=f"{bundle.path.absolute()}, {engine.precision.torch_name}, template {manifest.template!r}",
        )

    @property
    def origin(self) -> str:
        """Names the text tower, template and label graph; see `Vocabulary`."""
        return self._cache.origin

    def of(self, labels: str | Path | Iterable[str | Label] | LabelSet) -> Vocabulary:
        """Labels, or a label file, with everything that scoring needs. Raises LabelError."""
        start = time.perf_counter()
        given = read_label_set(labels) if isinstance(labels, (str, Path)) else label_set(labels)
        own = self.bundled if given.background == "bundle" else None
        asked = with_background(given, None if own is None else own.labels)
        self._encoder.check(asked)
        try:
            if asked.is_plain:
                found = self._cache.vocabulary(asked.names)
            else:
                readout = Readout.of(asked, self._template)
                found = replace(self._cache.vocabulary(readout.rows), labels=asked.names, readout=readout)
        except LabelError as error:
            own_texts = {text for label in given.labels for text in (label.name, *label.synonyms)}
            if given.background is None or error.value is None or error.value in own_texts:
                raise
            problem = f"holds {error.value!r}, which this bundle does not know; choose 'bundle', or none"
            raise LabelError(problem, argument="background", value=given.background) from None
        log.debug("%d labels ready in %.2f s", len(found), time.perf_counter() - start)
        return found

    @cached_property
    def bundled(self) -> Vocabulary | None:
        """The vocabulary that the bundle was exported with, or None. Raises BundleError where it is damaged."""
        own = self._encoder.bundled
        return own and replace(own, origin=self.origin)


def asked_labels(labels: LabelSet | None, background: str | None, own: Callable[[], Vocabulary]) -> LabelSet | None:
    """A label set, or a bundle's `own` vocabulary where there is none, with another background where that is given.

    Raises LabelError where the bundle has no vocabulary.
    """
    if background is None:
        return labels
    chosen = labels or LabelSet(tuple(map(Label, own().labels)))
    return msgspec.structs.replace(chosen, background=background)


class _LabelEncoder:
    """Label embeddings of one bundle, without a cache."""

    def __init__(self, bundle: Bundle, engine: Engine) -> None:
        self._bundle = bundle
        self._engine = engine

    def check(self, labels: LabelSet) -> None:
        """Raise LabelError for synonyms whose rows would be averaged, where each row was trained to be one label's."""
        arch = self._bundle.manifest.arch
        averaged = [label for label in labels.labels if label.synonyms and label.match is Match.MEAN]
        if averaged and arch.text_side is TextSide.CHECKPOINT:
            problem = f'has synonyms, and the rows of arch {arch.value} cannot be averaged; give it `match = "any"`'
            raise LabelError(problem, argument="labels", value=averaged[0].name)

    def encode(self, wordings: Sequence[str]) -> FloatArray:
        """A batch of wordings → T [N, D], by the text tower."""
        token_ids = self._tokenizer([in_template(wording, self._bundle.manifest.template) for wording in wordings])
        # Columns behind the last end-of-text token, the highest id, change nothing and cost most of the time.
        return self._engine.encode_labels(token_ids[:, : int(token_ids.argmax(axis=1).max()) + 1])

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        length = self._bundle.manifest.context_length
        assert length is not None
        return Tokenizer(self._bundle.file(TOKENIZER), length)

    def look_up(self, wordings: Sequence[str]) -> FloatArray:
        """A batch of wordings → T [N, D], from the bundle's own vocabulary."""
        own = self.bundled
        assert own is not None
        if any(map(has_template, wordings)):
            raise LabelError("the bundle has no text tower, so it has no use for templates; leave them out", argument="labels")
        row = {label: i for i, label in enumerate(own.labels)}
        unknown = [wording for wording in wordings if wording not in row]
        if unknown:
            arch = self._bundle.manifest.arch
            alike = [label for label in own.labels if label.casefold() == unknown[0].casefold()]
            same = f"write {printable(alike[0])}, " if alike else ""
            reason, advice = "has no text tower and", "export again with `text_tower`"
            if arch.text_side is TextSide.CHECKPOINT:
                reason, advice = f"holds a model of arch {arch.value}, which", "train for it"
            elif arch.text_side is TextSide.VECTORS:
                advice = "export again with it and its word vector"
            raise LabelError(
                f"{self._bundle.path} {reason} knows only its own {len(own)} labels; {same}leave this label out, or {advice}",
                argument="labels",
                value=unknown[0],
            )
        return own.label_embedding[[row[wording] for wording in wordings]]

    @cached_property
    def bundled(self) -> Vocabulary | None:
        """The vocabulary that the bundle was exported with, or None. Raises BundleError where it is damaged."""
        if not self._bundle.has(VOCABULARY):
            return None
        path, manifest = self._bundle.file(VOCABULARY), self._bundle.manifest
        try:
            own = Vocabulary.read(path, graph=manifest.arch.has_graph, width=manifest.embed_dim)
            check_labels(own.labels)
        except (OSError, DamagedFileError) as error:
            raise BundleError(f"{error}; export the bundle again") from None
        except LabelError as error:
            raise BundleError(f"{path}: {error.problem}; export the bundle again") from None
        return own
