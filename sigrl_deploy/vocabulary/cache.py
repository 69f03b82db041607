"""The vocabulary cache: two tiers, each in memory and on disk.

1. A wording's text embedding, by (text tower, template, wording): packs of wordings, one file per encoded batch.
2. A whole vocabulary's embeddings and graph projection, by its set of rows and the GMC weights. GMC's rows move with their
   labels, so one file serves every order of them.

Rows and wordings are texts, see `wordings`; those of a label that is only a name are that name.

Many processes may share the folder: a file is written under a temporary name and renamed, and two processes that compute the
same thing write the same thing. Damaged files are reported and rebuilt.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock

import numpy as np

from sigrl_deploy.arrays import FloatArray
from sigrl_deploy.errors import BundleError
from sigrl_deploy.files import DamagedFileError, replacing
from sigrl_deploy.machine.cache_folder import ABOUT, PRIVATE, entries, make_private
from sigrl_deploy.progress import Progress
from sigrl_deploy.vocabulary.vocabulary import Vocabulary
from sigrl_deploy.vocabulary.wordings import combined, wordings_of

log = logging.getLogger(__name__)

LABELS_PER_BATCH = 64  # bounds the text encoder's memory
_VOCABULARIES_IN_MEMORY = 16
_ROWS_IN_MEMORY = 1 << 15  # of all vocabularies in memory, unless the newest alone has more
_EMBEDDINGS_IN_MEMORY = 1 << 16  # of a cache without a folder: 134 MB of rows of 512 numbers
_LAYOUT = "2"  # part of every key: a change of what is stored makes old files unseen, not wrong


def digest(*parts: str) -> str:
    """A short name for what a file was made from."""
    return hashlib.sha256(json.dumps([_LAYOUT, *parts]).encode()).hexdigest()[:32]


class VocabularyCache:
    """The cache of one text side: a text tower with a template, and a label graph where there is one.

    `encode` maps a batch of wordings to T [N, D], `project` maps T [R, D] to G Wbᵀ [R, D] or None. `text_key` and `graph_key`
    are `digest`s of what those two depend on; `graph_key` is empty without a label graph. `width` is D, and `about` describes
    the text side to people. With `folder` None it stays in memory, which it does not fill: embeddings that were not used for
    longest are forgotten. Threads may share it: the one that encodes lets others in after every batch.
    """

    labels_per_batch = LABELS_PER_BATCH
    rows_in_memory = _ROWS_IN_MEMORY
    embeddings_in_memory = _EMBEDDINGS_IN_MEMORY

    def __init__(
        self,
        folder: Path | None,
        text_key: str,
        graph_key: str,
        encode: Callable[[Sequence[str]], FloatArray],
        project: Callable[[FloatArray], FloatArray | None],
        width: int,
        about: str = "",
    ) -> None:
        self._folder = folder / text_key if folder else None
        self._text_key = text_key
        self.origin = digest(text_key, graph_key)
        self._graph_key = graph_key
        self._encode = encode
        self._project = project
        self._width = width
        self._about = about
        self._embeddings: OrderedDict[str, FloatArray] = OrderedDict()
        self._vocabularies: OrderedDict[str, Vocabulary] = OrderedDict()
        self._packs_read = False
        self._writable = True
        self._in_memory = Lock()  # held for a moment only
        self._next, self._encoding = Lock(), Lock()  # held by the thread that encodes next, and while a batch is encoded
        self._building: defaultdict[str, Lock] = defaultdict(Lock)  # held while one vocabulary is built

    def vocabulary(self, rows: tuple[str, ...]) -> Vocabulary:
        """The vocabulary of these rows in this order, from the fastest tier that has it. Its labels are the rows.

        Raises BundleError where the text graph gives rows of another width, or rows that are not finite.
        """
        ordered = tuple(sorted(rows))
        name = self._vocabulary_name(ordered)
        found = self._remembered(name)
        if found is None:
            with self._in_memory:
                building = self._building[name]
            try:
                with building:
                    found = self._remembered(name) or self._read(name, self._vocabulary_name, graph=bool(self._graph_key))
                    found = found or self._build(ordered)
                    self._remember(name, found)
            finally:
                self._building.pop(name, None)
        return _reordered(found, rows, self.origin)

    def _remembered(self, name: str) -> Vocabulary | None:
        with self._in_memory:
            found = self._vocabularies.get(name)
            if found is not None:
                self._vocabularies.move_to_end(name)
            return found

    def _remember(self, name: str, vocabulary: Vocabulary) -> None:
        with self._in_memory:
            self._vocabularies[name] = vocabulary
            self._vocabularies.move_to_end(name)
            rows = sum(map(len, self._vocabularies.values()))
            while len(self._vocabularies) > (1 if rows > self.rows_in_memory else _VOCABULARIES_IN_MEMORY):
                rows -= len(self._vocabularies.popitem(last=False)[1])

    def _vocabulary_name(self, labels: Sequence[str]) -> str:
        return f"vocabulary-{digest(self._text_key, self._graph_key, *labels)}.npz"

    def _pack_name(self, labels: Sequence[str]) -> str:
        return f"labels-{digest(self._text_key, *labels)}.npz"

    def _build(self, rows: tuple[str, ...]) -> Vocabulary:
        wordings = list(dict.fromkeys(itertools.chain.from_iterable(map(wordings_of, rows))))
        embeddings = self._embedded(wordings)
        embedding = np.stack([combined(np.stack([embeddings[w] for w in wordings_of(row)])) for row in rows])
        vocabulary = Vocabulary(rows, embedding, self._checked_projection(embedding))
        self._write(self._vocabulary_name(rows), vocabulary)
        return vocabulary

    def _embedded(self, wordings: Sequence[str]) -> dict[str, FloatArray]:
        """The embedding of each wording. It is kept apart from those in memory, which may be forgotten meanwhile."""
        with self._turn_to_encode():
            self._read_packs()
            missing = sum(wording not in self._embeddings for wording in wordings)
        log.debug("encoding %d of %d texts, which are not in the cache", missing, len(wordings))
        found: dict[str, FloatArray] = {}
        waiting = deque(wordings)
        with Progress(missing, "label") as progress:
            while waiting:
                with self._turn_to_encode():
                    progress.advance(self._encode_some(waiting, found))
        return found

    def _encode_some(self, waiting: deque[str], found: dict[str, FloatArray]) -> int:
        """Move wordings from `waiting` to `found`, until a batch of them is encoded. Returns how many were encoded."""
        batch: list[str] = []
        while waiting and len(batch) < self.labels_per_batch:
            wording = waiting.popleft()
            known = self._embeddings.get(wording)
            if known is None:
                batch.append(wording)
            else:
                found[wording] = known
                self._embeddings.move_to_end(wording)
        if batch:
            embeddings = _checked(self._encode(batch), (len(batch), self._width))
            found.update(zip(batch, embeddings, strict=True))
            self._keep(batch, embeddings)
        return len(batch)

    def _keep(self, wordings: Sequence[str], embeddings: FloatArray) -> None:
        self._write(self._pack_name(wordings), Vocabulary(tuple(wordings), embeddings))
        # Copies: a row of a batch would keep all of the batch in memory.
        self._embeddings.update((wording, row.copy()) for wording, row in zip(wordings, embeddings, strict=True))
        while self._folder is None and len(self._embeddings) > self.embeddings_in_memory:
            self._embeddings.popitem(last=False)

    @contextmanager
    def _turn_to_encode(self) -> Iterator[None]:
        # Two locks: with one, the thread that releases it would take it again before a waiting thread wakes up.
        taken = False
        try:
            with self._next:
                taken = self._encoding.acquire()
            yield
        finally:
            if taken:
                self._encoding.release()

    def _checked_projection(self, embedding: FloatArray) -> FloatArray | None:
        projection = self._project(embedding)
        return None if projection is None else _checked(projection, embedding.shape)

    def _read_packs(self) -> None:
        if self._folder is None or self._packs_read:
            return
        self._packs_read = True
        for path in entries(self._folder):
            if not (path.name.startswith("labels-") and path.suffix == ".npz"):
                continue
            pack = self._read(path.name, self._pack_name, graph=False)
            if pack is not None:
                self._embeddings.update(zip(pack.labels, pack.label_embedding, strict=True))

    def _read(self, name: str, name_of: Callable[[Sequence[str]], str], graph: bool) -> Vocabulary | None:
        """A file, if its labels are those that its name stands for. A damaged one is reported and removed."""
        if self._folder is None:
            return None
        path = self._folder / name
        try:
            found = Vocabulary.read(path, graph, self._width)
            if name_of(found.labels) != name:
                raise DamagedFileError(f"{path}: holds other labels than its name stands for")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, MemoryError) as error:  # the file may be whole, so it stays
            reason = getattr(error, "strerror", None) or type(error).__name__
            log.warning("%s cannot be read now (%s); its labels are computed again", path, reason)
            return None
        except DamagedFileError as error:
            log.warning("%s; its labels are computed again", error)
            with suppress(OSError):  # where it cannot be removed it may still be replaced
                path.unlink()
            return None
        return found

    def _write(self, name: str, vocabulary: Vocabulary) -> None:
        if self._folder is None or not self._writable:
            return
        try:
            make_private(self._folder)
            if self._about and not (self._folder / ABOUT).exists():
                with replacing(self._folder / ABOUT, PRIVATE) as temporary:
                    temporary.write_text(self._about, encoding="utf-8")
            vocabulary.write(self._folder / name, PRIVATE)
        except OSError as error:
            reason = error.strerror or error
            log.warning("%s: the vocabulary cache cannot be written (%s); it is kept in memory only", self._folder, reason)
            self._writable = False


def _checked(rows: FloatArray, shape: tuple[int, ...]) -> FloatArray:
    if rows.shape != shape:
        raise BundleError(f"the text graph gave rows {list(rows.shape)}, expected {list(shape)}; export the bundle again")
    if not np.isfinite(rows).all():
        raise BundleError("the text graph gave rows that are not finite; use another `precision`, or export again")
    return rows


def _reordered(vocabulary: Vocabulary, labels: tuple[str, ...], origin: str) -> Vocabulary:
    row = {label: i for i, label in enumerate(vocabulary.labels)}
    order = [row[label] for label in labels]
    graph = vocabulary.graph_projection
    return Vocabulary(labels, vocabulary.label_embedding[order], None if graph is None else graph[order], origin)
