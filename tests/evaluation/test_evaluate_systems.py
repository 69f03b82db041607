"""SigRL and other systems side by side, on the labels that all of them know."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from sigrl_deploy import Recognizer
from sigrl_deploy.config import Arch, Device
from sigrl_deploy.engines.options import EngineOptions
from sigrl_deploy.errors import LabelError
from sigrl_deploy.evaluation.report import table
from sigrl_deploy.evaluation.run import EvaluateOptions, run_evaluate
from tests.evaluation.conftest import LABELS
from tests.support.refusals import assert_refused

SHARED = {"scpnet_bundle": ("cat", "person")} | dict.fromkeys(
    ("biam_bundle", "ml2p_bundle", "linear_bundle"), ("cat", "rocket")
)


@pytest.mark.parametrize(("name", "labels"), SHARED.items(), ids=SHARED)
def test_one_evaluation_of_four_systems(
    name: str,
    labels: tuple[str, str],
    export_tiny: Callable[..., Path],
    data: Path,
    targets: NDArray[np.int8],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    other: Path = request.getfixturevalue(name)
    own = export_tiny(), export_tiny(checkpoint="mkt"), export_tiny(checkpoint="mkt", arch=Arch.CLIP_FT)
    (tmp_path / "labels.txt").write_text("\n".join(labels))
    values = dict.fromkeys(EvaluateOptions.__annotations__) | {
        "data": str(data),
        "split": "test",
        "label_sets": (),
        "engine": EngineOptions(device=Device.CPU),
    }
    options = EvaluateOptions(**values | {"bundles": (*own, other), "labels": tmp_path / "labels.txt"})
    found = run_evaluate(options)
    arch = Recognizer(other, device="cpu", cache_dir=False).bundle.manifest.arch
    assert [model.arch for model in found.models] == [Arch.SIGRL, Arch.MKT, Arch.CLIP_FT, arch]
    results = found.label_sets[0].results
    scores = Recognizer(other, device="cpu", cache_dir=False).scores(sorted(data.glob("*.png")), list(labels))
    columns = [LABELS.index(label) for label in labels]
    known = targets[:, columns]
    pairs = zip(known.T, scores.T, strict=True)
    expected = [average_precision_score(row[row != 0] == 1, each[row != 0]) for row, each in pairs]
    assert results[-1].metrics.map == pytest.approx(np.mean(expected), abs=1e-6)  # of the same scores, but for their rounding
    lines = table(found).splitlines()
    assert all(any(str(path)[-20:] in line for line in lines) for path in (*own, other))


def test_labels_that_a_closed_system_does_not_know(scpnet_bundle: Path, data: Path) -> None:
    values = dict.fromkeys(EvaluateOptions.__annotations__) | {
        "data": str(data),
        "split": "test",
        "bundles": (scpnet_bundle,),
        "label_sets": (),
        "engine": EngineOptions(device=Device.CPU),
    }
    assert_refused(lambda: run_evaluate(EvaluateOptions(**values)), LabelError, "cup of coffee", "scpnet")
