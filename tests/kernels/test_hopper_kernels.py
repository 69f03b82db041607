"""SVFR's form for Hopper against float64. Triton's interpreter does not run Gluon, so only such a GPU shows it."""

from __future__ import annotations

import pytest
import torch

from sigrl_deploy.kernels import svfr, svfr_hopper
from tests.support.kernel_rule import check, draw

HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability() == svfr_hopper.CAPABILITY
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not HOPPER, reason="no Hopper GPU")]


# One of each, sizes that fill no tile, labels that fill no round of programs, many, and the real size.
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("batch", "tokens", "labels", "dim"),
    [(1, 1, 1, 128), (3, 49, 7, 256), (2, 25, 81, 128), (1, 9, 1006, 128), (1, 196, 34, 512), (2, 200, 5, 384)],
)
def test_both_stages(batch: int, tokens: int, labels: int, dim: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, t, v = draw(batch, tokens, dim, dtype=dtype), draw(labels, dim, dtype=dtype), draw(batch, labels, dim, dtype=dtype)
    weight = draw(dim, dim, dtype=dtype) / dim**0.5
    padded, count = (
        5,
        torch.tensor(labels, dtype=torch.int32, device="cuda"),
    )  # rows behind the labels, of which none may be read
    more = torch.full((padded, dim), torch.nan, dtype=dtype, device="cuda")

    def energies(rows: torch.Tensor, wide: torch.dtype) -> torch.Tensor:
        products = torch.tanh(x.to(wide)[:, None] * rows.to(wide)[:, :, None]) @ weight.to(wide).T
        return torch.softmax(products.to(torch.promote_types(wide, torch.float32)), dim=2)

    hows = svfr_hopper.candidates(tokens, dim, dtype, svfr_hopper.CAPABILITY)
    assert hows
    for how in hows:
        got = svfr.decouple(x, torch.cat([t, more]), weight, count, how)
        assert (got[:, labels:] == 0).all()
        plain, exact = ((energies(t[None], wide) * x.to(wide)[:, None]).sum(2) for wide in (dtype, torch.float64))
        check(got[:, :labels], plain, exact, dtype)
        got = svfr.reconstruct(x, torch.cat([v, more.expand(batch, -1, -1)], dim=1), weight, count, how)
        plain, exact = (x.to(wide) * energies(v, wide).sum(1) for wide in (dtype, torch.float64))
        check(got, plain.to(dtype), exact, dtype)
