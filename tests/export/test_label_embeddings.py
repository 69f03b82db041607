"""Saved label embeddings, which take a text tower's place: what is read, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sigrl_deploy.checkpoints.weights import read_tensor
from sigrl_deploy.errors import CheckpointError
from sigrl_deploy.export.options import ExportOptions
from sigrl_deploy.export.run import export_bundle
from tests.support.refusals import assert_refused

EMBEDDINGS = {
    "rows of three labels": (lambda: torch.zeros(3, 512), ("[3, 512]", "[2, 512]")),
    "whole numbers": (lambda: torch.zeros(2, 512, dtype=torch.int64), ("int64",)),
    "truth values": (lambda: torch.zeros(2, 512, dtype=torch.bool), ("bool",)),
    "complex": (lambda: torch.zeros(2, 512, dtype=torch.complex64), ("ComplexFloat",)),
    "sparse": (lambda: torch.ones(2, 512).to_sparse(), ("sparse_tensor",)),
    "expanded": (lambda: torch.zeros(1, 1).expand(2, 512), ("float32", "tensor.clone()")),
    "meta": (lambda: torch.zeros(2, 512, device="meta"), ("meta_tensor_no_storage",)),
    "a dict": (lambda: {"rows": torch.zeros(2, 512)}, ("a dict",)),
    "a list": (lambda: [torch.zeros(2, 512)], ("a list",)),
    "NaN": (lambda: torch.full((2, 512), torch.nan), ("NaN",)),
    "a class": (lambda: torch.nn.Linear(2, 2), ("torch.nn.modules.linear.Linear",)),
}


@pytest.mark.parametrize(("make", "facts"), EMBEDDINGS.values(), ids=EMBEDDINGS)
def test_label_embeddings_must_fit_the_labels(
    make: Callable[[], object], facts: tuple[str, ...], weights: Path, tmp_path: Path
) -> None:
    torch.save(make(), tmp_path / "e.pt")
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    options = ExportOptions(
        weights / "sigrl.pth", tmp_path / "out", labels=tmp_path / "labels.txt", label_embeddings=tmp_path / "e.pt"
    )
    assert_refused(lambda: export_bundle(options), CheckpointError, "e.pt", *facts)


@pytest.mark.parametrize("how", ["parameter", "half", "view", "old format"])
def test_label_embeddings_of_every_usual_kind_are_read(how: str, tmp_path: Path) -> None:
    rows = torch.randn(4, 512, generator=torch.Generator().manual_seed(0))
    value = {"parameter": torch.nn.Parameter(rows), "half": rows.half(), "view": rows.T.contiguous().T}.get(how, rows)
    torch.save(value, tmp_path / "e.pt", _use_new_zipfile_serialization=how != "old format")
    assert torch.equal(read_tensor(tmp_path / "e.pt").read(), value)
