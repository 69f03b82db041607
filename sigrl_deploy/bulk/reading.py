"""The pictures of a unit of work."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sigrl_deploy.bulk.options import BulkOptions
from sigrl_deploy.bulk.parquet_files import read_rows
from sigrl_deploy.bulk.plan import Plan, Unit
from sigrl_deploy.bulk.sources import Kind
from sigrl_deploy.bulk.tar_files import read_members
from sigrl_deploy.errors import ImageError, UsageError, printable
from sigrl_deploy.ray.tagger import content_of, require_no_outage
from sigrl_deploy.recognizer.streaming import Content
from sigrl_deploy.storage import Place, is_remote

_TRIED = 8  # units from all over the source


@dataclass(frozen=True)
class Reading:
    """How pictures are found in files; see `BulkOptions` and `Plan`."""

    column: str | None
    key: str | None
    endpoint: str | None
    base: str

    @classmethod
    def of(cls, options: BulkOptions, plan: Plan) -> Reading:
        return cls(options.column, options.key, options.endpoint, plan.base)

    def place(self, url: str) -> Place:
        """Where a file of the source lies; workers do not have the driver's current folder."""
        return Place(url if is_remote(url) else os.path.join(self.base, url), self.endpoint)

    def pictures(self, unit: Unit, skip: int = 0) -> Iterator[tuple[str, Content]]:
        """Names and contents of the pictures of a unit, without the first `skip`.

        Raises UsageError where they cannot be read now, and where the file is another than when the run began.
        """
        if unit.kind is Kind.PICTURES:
            return ((url, content_of(self.place(url))) for url in unit.urls[skip:])
        (url,) = unit.urls
        place = self.place(url)
        _require_unchanged(place, url, unit)
        if unit.rows is None:
            return read_members(place, url, skip)
        return read_rows(place, url, unit.rows, skip, self.column, self.key)

    def reaches(self, plan: Plan) -> bool:
        """Whether any of some pictures from all over the source can be opened here."""
        numbers = sorted({len(plan) * i // _TRIED for i in range(_TRIED)})
        return any(_opens(content) for number in numbers for _, content in _first(self.pictures(plan.unit(number))))


def _require_unchanged(place: Place, url: str, unit: Unit) -> None:
    try:
        now = place.size_and_time()
    except OSError as error:
        require_no_outage(error, url)
        return  # whoever opens it finds the same
    if now is not None and now != unit.was:
        raise UsageError(f"{printable(url)} has changed since the run began; begin in an empty folder", argument="source")


def _first(pictures: Iterator[tuple[str, Content]]) -> Iterator[tuple[str, Content]]:
    for picture in pictures:
        yield picture
        return


def _opens(content: Content) -> bool:
    if not callable(content):
        return isinstance(content, bytes) or os.access(content, os.R_OK)
    try:
        content()
    except OSError:
        return False
    except ImageError:
        pass
    return True


class Sizes:
    """The bytes of pictures on their way through a recognizer, in their order: None of one that could not be opened."""

    def __init__(self) -> None:
        self._sizes: dict[int, int | None] = {}
        self._taken = 0

    def measured(self, pictures: Iterator[tuple[str, Content]]) -> Iterator[tuple[str, Content]]:
        """The pictures, whose sizes are noted as they are read."""
        for place, (name, content) in enumerate(pictures):
            self._sizes[place] = 0
            if isinstance(content, bytes):
                self._sizes[place] = len(content)
            elif isinstance(content, str):
                self._sizes[place] = _size(content)
            else:
                content = self._noting(content, place)
            yield name, content

    def take(self, count: int) -> list[int | None]:
        """Those of the `count` oldest pictures, which are forgotten."""
        self._taken += count
        return [self._sizes.pop(place) for place in range(self._taken - count, self._taken)]

    def _noting(self, read: Callable[[], bytes], place: int) -> Callable[[], bytes]:
        def noted() -> bytes:
            try:
                content = read()
            except OSError:
                self._sizes[place] = None
                raise
            self._sizes[place] = len(content)
            return content

        return noted


def _size(path: str) -> int | None:
    """Raises UsageError where the disk has failed."""
    try:
        return os.stat(path).st_size if os.access(path, os.R_OK) else None
    except OSError as error:
        require_no_outage(error, path)
        return None
    except ValueError:
        return 0
