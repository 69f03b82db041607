"""The fused products between SVFR's stages against float64 and the plain ones, by the rule of kernel_rule.py."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sigrl_deploy.kernels.between import between, candidates, splits
from sigrl_deploy.model.sigrl import SVFR
from tests.support.kernel_rule import DEVICE, DTYPES, MARKS, check, draw, in_float64

pytestmark = MARKS


def inputs(batch: int, labels: int, dim: int, dtype: torch.dtype) -> tuple[SVFR, Tensor, Tensor, Tensor]:
    """S as a mean of patches is, with one channel that no label finds, so that a row of R is zero."""
    semantic = draw(batch, labels, dim, dtype=torch.float32)
    semantic[:, :, 1] = 0
    return SVFR(dim).to(DEVICE, dtype), semantic, draw(labels, dim, dtype=dtype), draw(labels, dim, dtype=dtype)


# Pictures, labels, width: one label, sizes that fill no block, a width of several tiles, several parts, a large vocabulary.
CASES = [(1, 1, 16), (2, 7, 40), (1, 81, 136), (3, 300, 48), (1, 1006, 72), (1, 7586, 24)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("batch", "labels", "dim"), CASES)
def test_between(batch: int, labels: int, dim: int, dtype: torch.dtype) -> None:
    module, semantic, label_embedding, projection = inputs(batch, labels, dim, dtype)
    got = between(semantic, label_embedding, projection, module.fuse.weight)
    exact = in_float64(module).between(*(x.double() for x in (semantic, label_embedding, projection)))
    assert got.dtype is dtype
    check(got, module.between(semantic, label_embedding, projection).to(dtype), exact, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_part_without_a_graph_is_as_exact(dtype: torch.dtype) -> None:
    """G = 0: nothing hides what the products give."""
    module, semantic, label_embedding, _ = inputs(1, 81, 64, dtype)
    zero = torch.zeros_like(label_embedding)
    exact = in_float64(module).between(semantic.double(), label_embedding.double(), zero.double())
    plain = module.between(semantic, label_embedding, zero).to(dtype)
    check(between(semantic, label_embedding, zero, module.fuse.weight), plain, exact, dtype)


def test_nothing_found_leaves_the_graph_alone() -> None:
    module, semantic, label_embedding, projection = inputs(2, 7, 24, torch.float32)
    assert torch.equal(between(semantic * 0, label_embedding, projection, module.fuse.weight), projection.expand(2, -1, -1))


def test_rows_of_padding_change_nothing() -> None:
    module, semantic, label_embedding, projection = inputs(1, 130, 32, torch.float16)
    padded = [torch.nn.functional.pad(x, (0, 0, 0, 200)) for x in (semantic, label_embedding, projection)]
    got = between(*padded, module.fuse.weight)
    assert torch.allclose(got[:, :130], between(semantic, label_embedding, projection, module.fuse.weight), atol=2e-3)
    assert (got[:, 130:] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_candidate_computes_the_same(dtype: torch.dtype) -> None:
    module, *tensors = inputs(2, 300, 80, dtype)
    first, *others = (between(*tensors, module.fuse.weight, how=how) for how in candidates(80, dtype))
    assert others
    assert all((other - first).norm() <= 4 * torch.finfo(dtype).eps * first.norm() for other in others)


@pytest.mark.parametrize(
    ("rows", "batch", "tiles", "expected"), [(81, 1, 64, 1), (1024, 1, 64, 2), (7586, 1, 256, 1), (7586, 8, 64, 1)]
)
def test_labels_are_split_where_programs_are_few(rows: int, batch: int, tiles: int, expected: int) -> None:
    assert splits(rows, batch, tiles) == expected
