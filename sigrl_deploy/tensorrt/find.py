"""Finding the engine of a bundle that runs on this machine, or the reasons why there is none."""

from __future__ import annotations

from dataclasses import dataclass

from sigrl_deploy.bundle.bundle import Bundle
from sigrl_deploy.bundle.engine_records import EngineRecord
from sigrl_deploy.config import Precision
from sigrl_deploy.files import sha256_file
from sigrl_deploy.machine.gpu import Gpu


@dataclass(frozen=True)
class Search:
    """What was found for a graph and precision.

    `fits` is the newest engine that runs here, or None. `nearest` is the newest engine of all, whose profile a new engine
    should have; `reasons` say why it does not run here.
    """

    fits: EngineRecord | None
    nearest: EngineRecord | None
    reasons: tuple[str, ...]


def find_engine(bundle: Bundle, graph: str, precision: Precision, library: str, gpu: Gpu) -> Search:
    """Look for an engine of a graph ("visual" or "text"), without loading any. Damaged and missing files do not fit.

    `library` is the installed library with its version.
    """
    variant = bundle.manifest.variants[precision]
    name = variant.visual if graph == "visual" else variant.text
    assert name is not None
    records = [r for r in bundle.manifest.engines if r.key.graph == graph and r.key.precision is precision]
    if not records:
        return Search(None, None, (f"the bundle has no {graph} engine in {precision.value}",))
    reasons: tuple[str, ...] = ()
    for record in reversed(records):
        unfit = record.key.unfit(bundle.manifest.files[name], library, gpu) or damage(bundle, record)
        if not unfit:
            return Search(record, record, ())
        reasons = reasons or tuple(f"{record.file}: {reason}" for reason in unfit)
    return Search(None, records[-1], reasons)


def damage(bundle: Bundle, record: EngineRecord) -> list[str]:
    """Why an engine's file cannot be used; empty where it can."""
    path = bundle.engine_path(record)
    if not path.is_file():
        return ["it is missing from the bundle"]
    return [] if sha256_file(path) == record.sha256 else ["it is damaged: its sha256 is not that of the manifest"]
