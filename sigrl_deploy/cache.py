"""The vocabulary cache, two tiers, each in memory and on disk.

1. A label's text embedding, by (text tower, template, label): packs of labels, one file an encoded batch.
2. A whole vocabulary's embeddings and graph projection, by its set of labels and the GMC weights. GMC's rows move with their
   labels, so one file serves every order.

Many processes may share the folder: a file is written under a temporary name and renamed, and two processes that compute the
same thing write the same thing. A damaged file is reported and rebuilt.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sigrl_deploy.files import DamagedFileError, read_arrays
from sigrl_deploy.vocabulary import Vocabulary

log = logging.getLogger(__name__)

ENVIRONMENT = "SIGRL_DEPLOY_CACHE"
_VOCABULARIES_IN_MEMORY = 16
_LAYOUT = "1"  # part of every key: a change of what is stored makes old files unseen, not wrong

Rows = NDArray[np.float32]


def default_cache_dir() -> Path:
    """$SIGRL_DEPLOY_CACHE, or the user's cache folder."""
    from platformdirs import user_cache_path

    return Path(os.environ.get(ENVIRONMENT) or user_cache_path("sigrl-deploy"))


def digest(*parts: str) -> str:
    """A short name for what a file was made from."""
    return hashlib.sha256("\0".join((_LAYOUT, *parts)).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class CachedFile:
    """One file of the cache: `kind` is "labels" (tier 1) or "vocabulary" (tier 2)."""

    path: Path
    kind: str
    labels: tuple[str, ...]


class VocabularyCache:
    """The cache of one text side: a text tower with a template, and a label graph where there is one.

    `encode` maps labels to T [N, D], `project` maps T [C, D] to G Wbᵀ [C, D] or None. `folder` None keeps to memory.
    """

    def __init__(
        self,
        folder: Path | None,
        text_key: str,
        graph_key: str,
        encode: Callable[[Sequence[str]], Iterator[Rows]],
        project: Callable[[Rows], Rows | None],
    ) -> None:
        self._folder = folder / text_key if folder else None
        self._graph_key = graph_key
        self._encode = encode
        self._project = project
        self._rows: dict[str, Rows] = {}
        self._vocabularies: OrderedDict[str, Vocabulary] = OrderedDict()
        self._packs_read = False

    def vocabulary(self, labels: tuple[str, ...]) -> Vocabulary:
        """The vocabulary of these labels in this order, from the fastest tier that has it."""
        ordered = tuple(sorted(labels))
        key = digest(self._graph_key, *ordered)
        found = self._vocabularies.get(key) or self._read_vocabulary(key, ordered) or self._build(key, ordered)
        self._vocabularies[key] = found
        self._vocabularies.move_to_end(key)
        while len(self._vocabularies) > _VOCABULARIES_IN_MEMORY:
            self._vocabularies.popitem(last=False)
        return _reordered(found, labels)

    def _build(self, key: str, labels: tuple[str, ...]) -> Vocabulary:
        self._read_packs()
        missing = [label for label in labels if label not in self._rows]
        done = 0
        for rows in self._encode(missing) if missing else ():
            batch = missing[done : done + len(rows)]
            self._rows.update(zip(batch, rows, strict=True))
            self._write(f"labels-{digest(*batch)}.npz", Vocabulary(tuple(batch), rows))
            done += len(rows)
        embedding = np.stack([self._rows[label] for label in labels])
        vocabulary = Vocabulary(labels, embedding, self._project(embedding))
        self._write(f"vocabulary-{key}.npz", vocabulary)
        return vocabulary

    def _read_packs(self) -> None:
        if self._folder is None or self._packs_read:
            return
        self._packs_read = True
        for path in sorted(self._folder.glob("labels-*.npz")):
            pack = _read_or_discard(path, graph=False)
            if pack is not None:
                self._rows.update(zip(pack.labels, pack.label_embedding, strict=True))

    def _read_vocabulary(self, key: str, labels: tuple[str, ...]) -> Vocabulary | None:
        if self._folder is None:
            return None
        found = _read_or_discard(self._folder / f"vocabulary-{key}.npz", graph=bool(self._graph_key))
        return found if found is not None and found.labels == labels else None

    def _write(self, name: str, vocabulary: Vocabulary) -> None:
        if self._folder is None:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            vocabulary.write(self._folder / name)
        except OSError as error:
            log.warning("%s: the vocabulary cache cannot be written (%s); going on in memory", self._folder, error.strerror)
            self._folder = None


def _reordered(vocabulary: Vocabulary, labels: tuple[str, ...]) -> Vocabulary:
    row = {label: i for i, label in enumerate(vocabulary.labels)}
    order = [row[label] for label in labels]
    graph = vocabulary.graph_projection
    return Vocabulary(labels, vocabulary.label_embedding[order], None if graph is None else graph[order])


def _read_or_discard(path: Path, graph: bool) -> Vocabulary | None:
    try:
        return Vocabulary.read(path, graph)
    except FileNotFoundError:
        return None
    except DamagedFileError as error:
        log.warning("%s; its labels are computed again", error)
        path.unlink(missing_ok=True)
        return None


def cached_files(folder: Path) -> Iterator[CachedFile]:
    """Every readable file of a cache folder."""
    for path in sorted(folder.glob("*/*.npz")):
        try:
            labels = read_arrays(path, ("labels",))["labels"]
        except (FileNotFoundError, DamagedFileError):
            continue
        yield CachedFile(path, path.name.partition("-")[0], tuple(labels.tolist()))


def clear_cache(folder: Path) -> int:
    """Remove every cached file, and nothing else from the folder; returns how many files went."""
    count = 0
    for path in [*folder.glob("*/labels-*.npz"), *folder.glob("*/vocabulary-*.npz")]:
        path.unlink(missing_ok=True)
        count += 1
    for sub in {p for p in folder.glob("*") if p.is_dir() and not any(p.iterdir())}:
        shutil.rmtree(sub, ignore_errors=True)
    return count
