"""What is to be tagged: which files a source has, and of which kind they are."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase

from sigrl_deploy.bulk.options import PLAN_NAME
from sigrl_deploy.bulk.parts import PART_NAME
from sigrl_deploy.errors import UsageError, errors_about
from sigrl_deploy.pictures.finding import Found, files_below, matching, pictures_among
from sigrl_deploy.storage import Place, check_url, is_remote, storage_errors
from sigrl_deploy.tagging.heatmaps import is_heatmap_name

_ARGUMENT = "source"


class Kind(str, Enum):
    """Pictures, one a file; Parquet files with a picture in each row; or tar files of pictures, such as WebDataset's."""

    PICTURES = "pictures"
    PARQUET = "Parquet files"
    TAR = "tar files"


_ENDINGS = {".parquet": Kind.PARQUET, ".tar": Kind.TAR}
_MAGIC = "*?["


@dataclass(frozen=True)
class Source:
    """The files of a run, without repeats; `skipped` is a line about others, as `Found.skipped_line`."""

    kind: Kind
    urls: list[str]
    skipped: str = ""


def find_source(sources: Sequence[str], endpoint: str | None) -> Source:
    """The files that `sources` name: folders, which are searched recursively, files, and globs.

    Raises UsageError where a source has no files that can be tagged, or files of several kinds.
    """
    skipped: Counter[str] = Counter()
    urls: dict[str, None] = {}
    for source in sources:
        check_url(source, _ARGUMENT)
        found = list(_remote(source, endpoint) if is_remote(source) else _local(source, skipped))
        if not found:
            raise UsageError("no such file, or nothing in it; check the name", argument=_ARGUMENT, value=source)
        urls.update(dict.fromkeys(_without_rows(found)))
    return _of_one_kind(list(urls), skipped, sources[0])


def _without_rows(urls: Sequence[str]) -> Iterator[str]:
    """Those that no run has written: its output may lie below its source, or in it."""
    places = [url.rpartition("/") for url in urls]
    written = {folder for folder, _, name in places if PLAN_NAME.fullmatch(name)}
    return (
        url
        for url, (folder, _, name) in zip(urls, places, strict=True)
        if folder not in written or not (PLAN_NAME.fullmatch(name) or PART_NAME.fullmatch(name))
    )


def _of_one_kind(urls: list[str], skipped: Counter[str], first: str) -> Source:
    by_kind = {kind: [url for url in urls if url.lower().endswith(ending)] for ending, kind in _ENDINGS.items()}
    pictures = [url for url in pictures_among(urls, skipped) if not is_heatmap_name(url.rpartition("/")[2])]
    kinds = {kind: found for kind, found in {Kind.PICTURES: pictures, **by_kind}.items() if found}
    if not kinds:
        problem = "has no pictures, such as .jpg or .png, and no .parquet or .tar files"
        raise UsageError(problem, argument=_ARGUMENT, value=first)
    if len(kinds) > 1:
        named = " and ".join(f"{len(found):,} {kind.value}" for kind, found in kinds.items())
        raise UsageError(f"has {named}; name one kind, such as 'folder/*.tar'", argument=_ARGUMENT, value=first)
    ((kind, found),) = kinds.items()
    return Source(kind, found, Found([], skipped).skipped_line)


def _local(source: str, skipped: Counter[str]) -> Iterator[str]:
    with errors_about(pictures=_ARGUMENT):
        if os.path.isdir(source):
            yield from sorted(files_below(source, skipped))
        elif os.path.lexists(source):
            yield source
        elif glob.has_magic(source):
            for match in sorted(matching(source)):
                yield from sorted(files_below(match, skipped)) if os.path.isdir(match) else [match]


def _remote(source: str, endpoint: str | None) -> Iterator[str]:
    """Of a bucket: one file, the files of a folder, or those that match a glob, as `_local`."""
    from pyarrow.fs import FileType

    place = Place(source, endpoint)
    fixed = source[: min((source.find(mark) for mark in _MAGIC if mark in source), default=len(source))]
    if fixed.count("/") < 3 and fixed != source:
        raise UsageError("expected the bucket's name before a glob", argument=_ARGUMENT, value=source)
    with storage_errors(source, _ARGUMENT, "check the bucket's name, `endpoint` and credentials"):
        (info,) = place.filesystem.get_file_info([place.path])
        if info.type is FileType.File:
            yield source
            return
        is_glob = fixed != source and info.type is not FileType.Directory
        folder = Place(fixed.rpartition("/")[0], endpoint) if is_glob else place
        for name, _ in folder.entries(recursive=True):
            url = folder.below(name).url
            hidden = any(part.startswith(".") for part in name.split("/"))
            if not hidden and (not is_glob or _matches(url.split("/"), source.split("/"))):
                yield url


def _matches(parts: Sequence[str], wanted: Sequence[str]) -> bool:
    """As a shell's glob: a star stays within a folder, two alone are any number of folders; a folder stands for its files."""
    if not wanted:
        return True
    if wanted[0] == "**":
        return any(_matches(parts[i:], wanted[1:]) for i in range(len(parts)))
    return bool(parts) and fnmatchcase(parts[0], wanted[0]) and _matches(parts[1:], wanted[1:])
