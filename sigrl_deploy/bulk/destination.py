"""Where rows go: a folder of Parquet files, each written whole or not at all, under names that follow from the plan."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from sigrl_deploy.bulk.options import Shard
from sigrl_deploy.bulk.plan import Plan
from sigrl_deploy.errors import UsageError
from sigrl_deploy.ray.columns import FIELDS, columns
from sigrl_deploy.recognizer.predictions import Record
from sigrl_deploy.storage import Place, storage_errors

SCHEMA = pa.schema([pa.field("path", pa.string(), nullable=False), *FIELDS, pa.field("run", pa.string(), nullable=False)])

_PART = re.compile(r"part-(\d+of\d+-)?(\d{6})-(\d{4,})\.parquet")
_PLAN = re.compile(r"_plan(-(\d+)of(\d+))?\.arrow")
_METADATA = b"sigrl_deploy"
_MOST_PLAN_BYTES = 1 << 36
_THREADS = 32
_ADVICE = "check the name, permissions and free space; the same command then goes on"


@dataclass(frozen=True)
class Part:
    """What a file says about its rows: how many there are, with how many errors, from how many bytes of pictures.

    `last` says that it ends its unit; `run` is the rows' own.
    """

    rows: int
    errors: int
    bytes: int
    last: bool
    run: str


@dataclass(frozen=True)
class Destination:
    """The folder, as one shard of a source uses it. Processes on several machines may share it."""

    place: Place
    shard: Shard

    def create(self) -> None:
        """Make the folder, where it is one on a disk. Raises UsageError."""
        with self._errors():
            if not self.place.is_remote:
                self.place.filesystem.create_dir(self.place.path, recursive=True)

    def plan(self) -> Plan | None:
        """The plan of a run that began, or None. Raises UsageError where it is damaged."""
        file = self.place.below(self._plan_name)
        try:
            content = file.read(_MOST_PLAN_BYTES)
        except FileNotFoundError:
            return None
        except OSError as error:
            with self._errors():
                raise error
        try:
            return Plan.from_bytes(content)
        except ValueError as error:
            problem = f"{self._plan_name} is damaged ({error}); remove the folder, or choose another"
            raise UsageError(problem, argument="out", value=self.place.url) from None

    def save(self, plan: Plan) -> None:
        """Begin a run. Raises UsageError where the folder holds something else, or cannot be written."""
        with self._errors():
            self._check_others(plan)
            self.place.below(self._plan_name).write(plan.to_bytes())
            self._check_others(plan)  # again: of two that begin together, at least one sees the other

    def _check_others(self, plan: Plan) -> None:
        """The folder may hold what other shards of the same run wrote."""
        for name, _ in self.place.entries() if self._exists() else ():
            other = _PLAN.fullmatch(name)
            if other and int(other[3] or 1) != self.shard.count:
                problem = f"was begun with {other[3] or 'no'} shards; use the same, or another folder"
                raise UsageError(problem, argument="shard", value=f"{self.shard.number}/{self.shard.count}")
            if other:
                theirs = Plan.from_bytes(self.place.below(name).read(_MOST_PLAN_BYTES))
                if (theirs.run, theirs.listing) != (plan.run, plan.listing):
                    what = "other pictures" if theirs.run == plan.run else "another bundle, labels or options"
                    problem = f"{name}: another shard has {what}; give all shards the same, and begin in an empty folder"
                    raise UsageError(problem, argument="out", value=self.place.url)
            part = _PART.fullmatch(name)
            if name.endswith(".parquet") and not (part and part[1] and self.shard.count > 1):
                problem = f"holds {name}, which is not of this run; give an empty folder"
                raise UsageError(problem, argument="out", value=self.place.url)

    def done(self) -> dict[tuple[int, int], Part]:
        """The files that are there, by unit and number. One that is damaged, or of another run, is not."""
        with self._errors():
            names = [match for name, _ in self.place.entries() if (match := _PART.fullmatch(name))]
        own = [(int(match[2]), int(match[3])) for match in names if (match[1] or "") == self.shard.name]
        with ThreadPoolExecutor(_THREADS) as pool, self._errors():
            found = pool.map(lambda key: self.part(*key), own)
            return {key: part for key, part in zip(own, found, strict=True) if part is not None}

    def part(self, unit: int, number: int) -> Part | None:
        """What one file says, or None where it is missing or damaged. Raises OSError."""
        file = self.place.below(self.part_name(unit, number))
        try:
            with file.filesystem.open_input_file(file.path) as stream:
                metadata = pq.read_metadata(stream).metadata or {}
            return Part(**json.loads(metadata[_METADATA]))
        except (FileNotFoundError, pa.ArrowInvalid, KeyError, ValueError, TypeError):
            return None

    def write(self, unit: int, number: int, records: Sequence[Record], about: Part) -> None:
        """Write the rows of one file. Raises UsageError where that fails."""
        found = columns(records)
        values = [pa.array([_text(record.path) for record in records], pa.string()), *found.values()]
        values.append(pa.array([about.run] * len(records), pa.string()))
        schema = SCHEMA.with_metadata({_METADATA: json.dumps(asdict(about))})
        file = io.BytesIO()
        pq.write_table(pa.Table.from_arrays(values, schema=schema), file, compression="zstd")
        with self._errors():
            self.place.below(self.part_name(unit, number)).write(file.getvalue())

    def part_name(self, unit: int, number: int) -> str:
        return f"part-{self.shard.name}{unit:06}-{number:04}.parquet"

    @property
    def _plan_name(self) -> str:
        return f"_plan-{self.shard.name}".rstrip("-") + ".arrow"

    def _exists(self) -> bool:
        from pyarrow.fs import FileType

        (info,) = self.place.filesystem.get_file_info([self.place.path])
        return info.type is FileType.Directory

    def _errors(self) -> AbstractContextManager[None]:
        return storage_errors(self.place.url, "out", _ADVICE)


def finished_units(done: dict[tuple[int, int], Part]) -> set[int]:
    """The units all of whose files are there."""
    last = {unit: number for (unit, number), part in done.items() if part.last}
    return {unit for unit, number in last.items() if all((unit, before) in done for before in range(number))}


def total(parts: Iterable[Part]) -> tuple[int, int, int]:
    """Rows, errors and bytes of several files."""
    parts = list(parts)
    return sum(p.rows for p in parts), sum(p.errors for p in parts), sum(p.bytes for p in parts)


def _text(name: str) -> str:
    """A name that Arrow can hold; bytes of a file name that are not text are written as `infer` writes them."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")
