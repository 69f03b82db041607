"""Runs `run_bulk` in a cluster with a worker, or a bundle, that goes wrong; prints the error that it ends with.

python -m tests.support.bulk_child WHAT ADDRESS SOURCE BUNDLE LABELS OUT
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from sigrl_deploy.bulk import cluster, run
from sigrl_deploy.bulk.destination import Part
from sigrl_deploy.bulk.options import BulkOptions
from sigrl_deploy.bulk.plan import Unit
from sigrl_deploy.bulk.worker import TagPictures
from sigrl_deploy.errors import SigRLError
from sigrl_deploy.ray import Tagger, shipping
from sigrl_deploy.ray.shipping import Shipped


def main(what: str, address: str, source: str, bundle: str, labels: str, out: str) -> None:
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

    def put(*arguments: object) -> Shipped:
        """The bundle is damaged once the driver has opened it."""
        shipped = shipping.put(*arguments)  # type: ignore[arg-type]
        graph = next(Path(bundle).glob("visual*.onnx"))
        graph.write_bytes(graph.read_bytes()[:-1])
        return shipped

    if what == "damage":
        run.put = put
    else:
        run.TagPictures = {"die": Dies, "die at once": DiesAtOnce}[what]  # type: ignore[misc]
    cluster.quiet_ray()
    options = BulkOptions((source,), out, Path(bundle), Path(labels), workers=1, cpus_per_worker=1, address=address)
    try:
        run.run_bulk(options)
    except SigRLError as error:
        print(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main(*sys.argv[1:])
