"""Runs of `run_bulk` in a cluster in which something goes wrong; prints the error that each ends with, behind its name.

python -m tests.support.bulk_child ADDRESS SOURCE BUNDLE LABELS OUT
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from sigrl_deploy.bulk import cluster, run, tagging
from sigrl_deploy.bulk.options import BulkOptions
from sigrl_deploy.bulk.parts import Part
from sigrl_deploy.bulk.plan import Unit
from sigrl_deploy.bulk.worker import TagPictures
from sigrl_deploy.config import Device
from sigrl_deploy.engines.options import EngineOptions
from sigrl_deploy.errors import ClusterError, SigRLError
from sigrl_deploy.progress import Progress
from sigrl_deploy.ray import Tagger, shipping
from sigrl_deploy.ray.shipping import Shipped

cluster.quiet_ray()


def busy(options: BulkOptions) -> None:
    """Others have all the cluster's CPUs."""
    import ray

    def begin(*arguments: Any) -> Shipped:
        shipped = shipping.put(*arguments)
        held.append(ray.remote(num_cpus=2)(_Idle).remote())
        ray.get(held[0].ready.remote())
        return shipped

    held: list[Any] = []
    with patch.object(run, "put", begin), patch.object(tagging, "SECONDS_TO_START", 3):
        run.run_bulk(options)


class _Idle:
    def ready(self) -> None:
        """Once it has its CPUs."""


def elsewhere(options: BulkOptions) -> None:
    """A name that is another folder in each process, as if nodes had disks of their own."""
    source = Path(options.source[0])
    os.chdir(source.parent)
    run.run_bulk(replace(options, source=(f"/proc/self/cwd/{source.name}",)))


def out_of_reach(options: BulkOptions) -> None:
    """The disk of the pictures is away once the run has begun."""
    folder = Path(options.out)
    folder.mkdir()
    pictures = [folder / f"{i:02}.jpg" for i in range(20)]
    for picture in pictures:
        picture.touch()

    def begin(*arguments: Any) -> Shipped:
        for picture in pictures:
            picture.unlink()
        return shipping.put(*arguments)

    with patch.object(run, "put", begin):
        run.run_bulk(replace(options, source=(str(folder),)))


# Classes of a program's main module go to the workers as they are, those of a package by name.
class Dies(TagPictures):
    """Its process ends at the second unit, always."""

    def _files(self, unit: Unit) -> Iterator[Part]:
        if unit.number == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._files(unit)


class DiesAtOnce(TagPictures):
    """Its process ends while it opens the bundle, always."""

    @property
    def _tagger(self) -> Tagger:  # type: ignore[override]
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


class Long(TagPictures):
    """It waits with the rest of a unit until the driver has heard of its first file."""

    def _files(self, unit: Unit) -> Iterator[Part]:
        yield Part(1, 0, 0, last=False, plan=self._parts.plan)
        heard, end = Path(self._parts.place.url) / "heard", time.monotonic() + 60
        while not heard.exists() and time.monotonic() < end:
            time.sleep(0.05)
        raise ClusterError(f"the driver has {'' if heard.exists() else 'not '}heard of the first file")


def long(options: BulkOptions) -> None:
    class Said(Progress):
        def advance(self, *_: object) -> None:
            (Path(options.out) / "heard").touch()

    with patch.object(tagging, "TagPictures", Long), patch.object(tagging, "Progress", Said):
        run.run_bulk(options)


def dies(options: BulkOptions) -> None:
    # One more try shows what three do.
    with patch.object(tagging, "TagPictures", Dies), patch.object(tagging, "_TRIES", 2):
        run.run_bulk(options)


def dies_at_once(options: BulkOptions) -> None:
    with patch.object(tagging, "TagPictures", DiesAtOnce), patch.object(tagging, "_TRIES", 2):
        run.run_bulk(options)


def damaged(options: BulkOptions) -> None:
    """The bundle is damaged once the driver has opened it."""

    def begin(*arguments: Any) -> Shipped:
        shipped = shipping.put(*arguments)
        graph = next(options.bundle.glob("visual*.onnx"))
        graph.write_bytes(graph.read_bytes()[:-1])
        return shipped

    with patch.object(run, "put", begin):
        run.run_bulk(options)


CASES: tuple[Callable[[BulkOptions], None], ...] = (busy, elsewhere, out_of_reach, long, dies, dies_at_once, damaged)


def main(address: str, source: str, bundle: str, labels: str, out: str) -> None:
    for case in CASES:
        name = case.__name__.replace("_", " ")
        options = BulkOptions((source,), f"{out}/{name}", Path(bundle), Path(labels), address=address)
        options = replace(options, engine=EngineOptions(device=Device.CPU), workers=1, cpus_per_worker=1)
        try:
            case(options)
        except SigRLError as error:
            print(f"{name}: {type(error).__name__}: {error}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
