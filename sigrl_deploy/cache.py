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
import re
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from sigrl_deploy.errors import UsageError
from sigrl_deploy.files import DamagedFileError, read_arrays
from sigrl_deploy.vocabulary import Vocabulary

log = logging.getLogger(__name__)

ENVIRONMENT = "SIGRL_DEPLOY_CACHE"
_VOCABULARIES_IN_MEMORY = 16
_OWN_FILE = re.compile(r"[0-9a-f]{32}/\.?(labels|vocabulary)-[0-9a-f]{32}\.npz(\.[0-9a-f]+\.tmp)?")
_LAYOUT = "1"  # part of every key: a change of what is stored makes old files unseen, not wrong

Rows = NDArray[np.float32]


def default_cache_dir() -> Path:
    """$SIGRL_DEPLOY_CACHE, or the user's cache folder."""
    if chosen := os.environ.get(ENVIRONMENT):
        return Path(chosen)
    from platformdirs import user_cache_path

    return user_cache_path("sigrl-deploy")


def require_writable(folder: Path) -> None:
    """Create a cache folder where it is missing. Raises UsageError where nothing can be kept in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(f"--cache-dir {folder}: cannot be written ({error.strerror}); choose another folder") from None


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

    `encode` maps labels to T [N, D] in batches, each kept as it comes; `project` maps T [C, D] to G Wbᵀ [C, D] or None.
    `text_key` and `graph_key` are `digest`s of what those two depend on, `graph_key` empty without a label graph. `folder`
    None keeps to memory. It may be shared between threads.
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
        self._text_key = text_key
        self.origin = digest(text_key, graph_key)
        self._graph_key = graph_key
        self._encode = encode
        self._project = project
        self._rows: dict[str, Rows] = {}
        self._vocabularies: OrderedDict[str, Vocabulary] = OrderedDict()
        self._packs_read = False
        self._writable = True
        self._lock = Lock()

    def vocabulary(self, labels: tuple[str, ...]) -> Vocabulary:
        """The vocabulary of these labels in this order, from the fastest tier that has it."""
        ordered = tuple(sorted(labels))
        name = self._vocabulary_name(ordered)
        with self._lock:
            found = self._vocabularies.get(name) or self._read(name, self._vocabulary_name, graph=bool(self._graph_key))
            found = found or self._build(ordered)
            self._vocabularies[name] = found
            self._vocabularies.move_to_end(name)
            while len(self._vocabularies) > _VOCABULARIES_IN_MEMORY:
                self._vocabularies.popitem(last=False)
        return _reordered(found, labels, self.origin)

    def _vocabulary_name(self, labels: Sequence[str]) -> str:
        return f"vocabulary-{digest(self._text_key, self._graph_key, *labels)}.npz"

    def _pack_name(self, labels: Sequence[str]) -> str:
        return f"labels-{digest(self._text_key, *labels)}.npz"

    def _build(self, labels: tuple[str, ...]) -> Vocabulary:
        self._read_packs()
        missing = [label for label in labels if label not in self._rows]
        done = 0
        for rows in self._encode(missing) if missing else ():
            batch = missing[done : done + len(rows)]
            self._rows.update(zip(batch, rows, strict=True))
            self._write(self._pack_name(batch), Vocabulary(tuple(batch), rows))
            done += len(rows)
        embedding = np.stack([self._rows[label] for label in labels])
        vocabulary = Vocabulary(labels, embedding, self._project(embedding))
        self._write(self._vocabulary_name(labels), vocabulary)
        return vocabulary

    def _read_packs(self) -> None:
        if self._folder is None or self._packs_read:
            return
        self._packs_read = True
        for path in sorted(self._folder.glob("labels-*.npz")):
            pack = self._read(path.name, self._pack_name, graph=False)
            if pack is not None:
                self._rows.update(zip(pack.labels, pack.label_embedding, strict=True))

    def _read(self, name: str, name_of: Callable[[Sequence[str]], str], graph: bool) -> Vocabulary | None:
        """A file whose labels are those that its name stands for. A damaged one is reported and removed."""
        if self._folder is None:
            return None
        path = self._folder / name
        try:
            found = Vocabulary.read(path, graph)
            if name_of(found.labels) != name:
                raise DamagedFileError(f"{path}: holds other labels than its name stands for")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, MemoryError) as error:  # no reason to remove what may be whole
            log.warning("%s: cannot be read at present (%s); its labels are computed again", path, error)
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
            self._folder.mkdir(parents=True, exist_ok=True)
            vocabulary.write(self._folder / name)
        except OSError as error:
            reason = error.strerror or error
            log.warning("%s: the vocabulary cache cannot be written (%s); going on in memory", self._folder, reason)
            self._writable = False


def _reordered(vocabulary: Vocabulary, labels: tuple[str, ...], origin: str) -> Vocabulary:
    row = {label: i for i, label in enumerate(vocabulary.labels)}
    order = [row[label] for label in labels]
    graph = vocabulary.graph_projection
    return Vocabulary(labels, vocabulary.label_embedding[order], None if graph is None else graph[order], origin)


def cached_files(folder: Path) -> Iterator[CachedFile]:
    """Every readable file of a cache folder."""
    for path in _own_files(folder):
        if path.suffix != ".npz":
            continue
        try:
            labels = read_arrays(path, ("labels",))["labels"]
        except (OSError, DamagedFileError):
            continue
        if labels.ndim == 1:
            yield CachedFile(path, path.name.partition("-")[0], tuple(labels.tolist()))


def clear_cache(folder: Path) -> int:
    """Remove every cached file, and nothing else from the folder; returns how many files went."""
    paths = _own_files(folder)
    for path in paths:
        path.unlink(missing_ok=True)
    for sub in {path.parent for path in paths}:
        with suppress(OSError):  # somebody else's file in it keeps it
            sub.rmdir()
    return len(paths)


def _own_files(folder: Path) -> list[Path]:
    """Files that this cache wrote, and those that a killed process left half-written; a folder may hold others' files too."""
    return [path for path in sorted(folder.glob("*/*")) if _OWN_FILE.fullmatch(f"{path.parent.name}/{path.name}")]
