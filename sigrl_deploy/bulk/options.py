"""What `sigrl-deploy bulk` is asked for."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from sigrl_deploy.config import Crop
from sigrl_deploy.engines.options import EngineOptions
from sigrl_deploy.errors import UsageError

# What lies beside the rows of a run: `Shard.name`, then what all shards of a run have in common.
PLAN_NAME = re.compile(r"_plan-((\d+)of(\d+)-)?([0-9a-f]{16})\.arrow")
_SHARD = re.compile(r"([1-9]\d{0,4})/([1-9]\d{0,4})")


@dataclass(frozen=True)
class Shard:
    """One of `count` parts of a source, of machines that know nothing of each other; `number` counts from 1."""

    number: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str | None) -> Shard:
        """From `3/16`. Raises UsageError."""
        if text is None:
            return cls()
        match = _SHARD.fullmatch(text)
        if not match or int(match[1]) > int(match[2]):
            raise UsageError("expected such as 3/16, the third of 16", argument="shard", value=text)
        return cls(int(match[1]), int(match[2]))

    @property
    def name(self) -> str:
        """Its part of file names, "" of a whole source."""
        return "" if self.count == 1 else f"{self.number}of{self.count}-"


@dataclass(frozen=True)
class BulkOptions:
    """What to tag, with what, by whom, and where the rows go. None means the default.

    source: folders, files or globs of pictures, of Parquet files or of tar files, on a disk or in a bucket.
    out: a folder, on a disk or in a bucket.
    column: of Parquet files, the one with the pictures; `key` the one with their names.
    endpoint: the server of buckets, where it is not Amazon's or Google's.
    workers: how many processes tag, each with `cpus_per_worker` and `gpus_per_worker`.
    address: a running Ray cluster; None starts Ray on this machine.
    shard: of the source.
    dry_run: count, and tag a sample.

    The others are those of `InferOptions`.
    """

    source: tuple[str, ...]
    out: str
    bundle: Path
    labels: Path | None = None
    background: str | None = None
    top: int | None = None
    threshold: float | None = None
    thresholds: Path | None = None
    rescale_thresholds: bool = False
    crop: Crop | str = Crop.CENTRE
    batch_size: int | None = None
    cache_dir: Path | None = None
    engine: EngineOptions = field(default_factory=EngineOptions)
    column: str | None = None
    key: str | None = None
    endpoint: str | None = None
    workers: int | None = None
    cpus_per_worker: int | None = None
    gpus_per_worker: float | None = None
    address: str | None = None
    shard: Shard = field(default_factory=Shard)
    dry_run: bool = False
