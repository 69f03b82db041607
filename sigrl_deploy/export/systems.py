"""What export has to know of the checkpoints of each of the other systems, beside what their architecture says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from sigrl_deploy.checkpoints import linear, scpnet
from sigrl_deploy.checkpoints.layouts import BIAM, LINEAR, ML2P, SCPNET, Checkpoint
from sigrl_deploy.checkpoints.options import SCPNetOptions
from sigrl_deploy.export.options import ExportOptions


@dataclass(frozen=True)
class System:
    """One of them.

    Attributes:
        options: names of the options that are about it alone.
        count: how many labels a checkpoint was trained on, where it has rows for those.
        rows: those rows [C, D].
        settings: what scores depend on and no file shows. It is recorded, and thresholds hold for it alone.
    """

    options: tuple[str, ...] = ()
    count: Callable[[Checkpoint], int] | None = None
    rows: Callable[[Checkpoint, ExportOptions], Tensor] | None = None
    settings: Callable[[Checkpoint, ExportOptions], dict[str, Any]] | None = None


# By layout; those of CLIP and of models that are trained from it have none.
SYSTEMS = {
    SCPNET: System(
        options=("relation", "preset", "sparse_topk", "reweight", "scale"),
        count=scpnet.label_count,
        rows=lambda checkpoint, options: scpnet.label_rows(checkpoint, options.scpnet),
        settings=lambda checkpoint, options: asdict(scpnet.settings_of(options.scpnet, scpnet.label_count(checkpoint))),
    ),
    LINEAR: System(
        options=("scaling",),
        count=linear.label_count,
        rows=lambda checkpoint, options: linear.label_rows(checkpoint, options.scaling),
    ),
    BIAM: System(settings=lambda checkpoint, options: {"heads": options.heads}),
    ML2P: System(options=("raw_vectors",), settings=lambda checkpoint, options: {"raw_vectors": options.raw_vectors}),
}
_OPTIONS = [name for system in SYSTEMS.values() for name in system.options]


def options_of_others(layout: str, options: ExportOptions) -> Mapping[str, object]:
    """The options that were given and are about other systems than this layout's, by name."""
    own = SYSTEMS.get(layout, System()).options
    of_scpnet = SCPNetOptions.__dataclass_fields__
    values = {name: getattr(options.scpnet if name in of_scpnet else options, name) for name in _OPTIONS if name not in own}
    return {name: value for name, value in values.items() if value is not None and value is not False}
