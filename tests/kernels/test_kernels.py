"""The fused ops against float64, in Triton's interpreter or, where there is one, on a GPU.

`model/materialised.py` and `model/sigrl.py` are the plain forms, kernel_rule.py has the rule.
"""

from __future__ import annotations

import pytest
import torch

from sigrl_deploy.config import Arch, GraphConfig
from sigrl_deploy.errors import UsageError
from sigrl_deploy.kernels.gmc import gmc
from sigrl_deploy.kernels.match import match
from sigrl_deploy.kernels.svfr import LARGEST_ENERGY, FusedSVFR, bounded, reconstruct
from sigrl_deploy.model import materialised
from sigrl_deploy.model.sigrl import GMC, SVFR
from sigrl_deploy.model.sigrl import match as plain_match
from tests.support.kernel_rule import DEVICE, DTYPES, MANY_LABELS, MARKS, check, distance, draw, in_float64

pytestmark = MARKS

WIDTH = 512 if DEVICE == "cuda" else 256  # the real one, or less where the interpreter takes long: still several whole blocks
# Batch, patches, labels, width: one of each, sizes that fill no block, many labels, many patches, the real width.
SVFR_CASES = [(1, 1, 1, 16), (2, 49, 7, 40), (1, 25, 81, 32), (1, 9, MANY_LABELS, 16), (1, 577, 3, 48), (1, 20, 2, WIDTH)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("batch", "tokens", "labels", "dim"), SVFR_CASES)
def test_svfr(batch: int, tokens: int, labels: int, dim: int, dtype: torch.dtype) -> None:
    module = SVFR(dim).to(DEVICE, dtype)
    patches, label_embedding, graph = (draw(*shape, dtype=dtype) for shape in ((batch, tokens, dim), *[(labels, dim)] * 2))
    got = FusedSVFR(module)(patches, label_embedding, module.graph_projection(graph))
    wide = [x.double() for x in (patches, label_embedding, graph)]
    exact = materialised.svfr_stages(in_float64(module), *wide)[1]
    plain = materialised.svfr_stages(module, patches, label_embedding, graph)[1]
    assert got.dtype is dtype
    check(got, plain, exact, dtype)


@pytest.mark.parametrize("factor", [0.99, 1.01, 20])
def test_svfr_on_both_sides_of_the_bound_below_which_no_maximum_is_subtracted(factor: float) -> None:
    """At the last factor energies are some hundreds, whose exponentials fp32 does not hold."""
    module = SVFR(32).to(DEVICE)
    for linear in (module.decouple, module.reconstruct):
        linear.weight *= factor * LARGEST_ENERGY / linear.weight.abs().sum(1).max()
    assert bounded(module.decouple.weight) == (factor < 1)
    # Signs as the weights' make some energies as large as the bound.
    patches, label_embedding, graph = (draw(*shape, dtype=torch.float32) for shape in ((1, 20, 32), (5, 32), (5, 32)))
    patches[0, 0] = 100 * module.decouple.weight[0].sign() * label_embedding[0].sign()
    got = FusedSVFR(module)(patches, label_embedding, module.graph_projection(graph))
    exact = materialised.svfr_stages(in_float64(module), *(x.double() for x in (patches, label_embedding, graph)))[1]
    # Rounding an energy E in fp32 moves its exponential by E · eps, as it does in plain PyTorch, one way or another.
    assert distance(got, exact) <= factor * LARGEST_ENERGY * torch.finfo(torch.float32).eps


def test_rows_behind_the_count_change_nothing() -> None:
    """A vocabulary padded to a bucket: zero rows of T, whatever G Wbᵀ holds there."""
    module = SVFR(32).to(DEVICE)
    patches, label_embedding, projection = (draw(*shape, dtype=torch.float32) for shape in ((2, 20, 32), (11, 32), (11, 32)))
    padded = torch.cat([label_embedding, torch.zeros(5, 32, device=DEVICE)]), torch.cat([projection, projection[:5]])
    count, svfr = torch.tensor(11, dtype=torch.int32, device=DEVICE), FusedSVFR(module)
    assert torch.allclose(svfr(patches, *padded, count), svfr(patches, label_embedding, projection), atol=1e-6)


def test_a_picture_does_not_depend_on_its_batch() -> None:
    module = SVFR(32).to(DEVICE)
    patches, label_embedding, projection = (draw(*shape, dtype=torch.float32) for shape in ((3, 20, 32), (7, 32), (7, 32)))
    together = FusedSVFR(module)(patches, label_embedding, projection)
    alone = FusedSVFR(module)(patches[1:2], label_embedding, projection)
    assert torch.allclose(together[1:2], alone, atol=1e-6)  # labels may be split otherwise, and sums reordered


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("batch", "tokens", "labels", "dim", "topk"),
    [
        (1, 1, 1, 16, 1),
        (2, 49, 7, 40, 16),
        (1, 196, 81, 64, 18),
        (1, 25, MANY_LABELS, 32, 25),
        (1, 577, 33, 48, 577),
        (1, 9, 3, 512, 1),
    ],
)
def test_match(batch: int, tokens: int, labels: int, dim: int, topk: int, dtype: torch.dtype) -> None:
    local, global_feature, label_embedding = (
        draw(*shape, dtype=dtype) for shape in ((batch, tokens, dim), (batch, dim), (labels, dim))
    )
    score, evidence = match(local, global_feature, label_embedding, topk, with_evidence=True)
    wide = [x.double() for x in (local, global_feature, label_embedding)]
    exact = plain_match(Arch.MKT, *wide, topk)
    check(score, plain_match(Arch.MKT, local, global_feature, label_embedding, topk), exact, dtype)
    assert evidence is not None
    check(evidence, label_embedding @ local.transpose(1, 2), wide[2] @ wide[0].transpose(1, 2), dtype)
    assert torch.equal(match(local, global_feature, label_embedding, topk)[0], score)


@pytest.mark.parametrize("tokens", [196, 1030])
def test_one_label_a_program_scores_as_several(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As GPUs have it; the interpreter, which takes long for a program, has several."""
    features = [draw(*shape, dtype=torch.float32) for shape in ((2, tokens, 24), (2, 24), (5, 24))]
    score, _ = match(*features, 16)
    monkeypatch.setattr("sigrl_deploy.kernels.match.LABELS_A_PROGRAM", 1)
    assert torch.equal(match(*features, 16)[0], score)


def test_the_mean_of_the_largest_counts_ties_and_signs_right() -> None:
    """One channel, so that similarities are what is given: equal ones, zeros of both signs, infinitely small and negative."""
    values = torch.tensor([3.0, -1.0, 3.0, 0.0, -0.0, 3.0, 1e-45, -7.0, 2.0, -1.0, 2.0], device=DEVICE)
    local = torch.zeros(1, 11, 16, device=DEVICE)
    local[0, :, 0] = values
    label = torch.zeros(2, 16, device=DEVICE)
    label[:, 0] = torch.tensor([1.0, -1.0])
    for topk in range(1, 12):
        score, _ = match(local, torch.zeros(1, 16, device=DEVICE), label, topk)
        best = torch.stack([values.sort(descending=True).values, (-values).sort(descending=True).values])
        means = best[:, :topk].double().mean(1)
        expected = means / means.norm() / 2
        assert torch.allclose(score[0].double(), expected, atol=1e-6), topk


def test_zero_features_and_zero_labels_score_zero() -> None:
    label_embedding = draw(5, 16, dtype=torch.float32)
    label_embedding[2:] = 0
    local, global_feature = draw(1, 9, 16, dtype=torch.float32), draw(1, 16, dtype=torch.float32)
    score, _ = match(local, global_feature, label_embedding, 4)
    assert (score[0, 2:] == 0).all()
    assert torch.allclose(score[:, :2], match(local, global_feature, label_embedding[:2], 4)[0], atol=1e-6)
    assert (match(local * 0, global_feature * 0, label_embedding, 4)[0] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("labels", "dim", "heads", "width"), [(1, 16, 1, 3), (7, 40, 4, 32), (81, 512, 4, 32), (MANY_LABELS, 24, 1, 5)]
)
def test_gmc(labels: int, dim: int, heads: int, width: int, dtype: torch.dtype) -> None:
    module = GMC((GraphConfig(dim, heads, width), GraphConfig(heads * width, 1, dim))).eval().to(DEVICE, dtype)
    label_embedding = draw(labels, dim, dtype=dtype)
    exact = materialised.gmc(in_float64(module), label_embedding.double())
    got = gmc(module, label_embedding)
    assert got.dtype is dtype
    check(got, module(label_embedding), exact, dtype)


def test_what_the_kernels_cannot_take_is_said() -> None:
    patches, labels, weight = torch.zeros(1, 9, 16), torch.zeros(1, 2, 16), torch.zeros(16, 16)
    with pytest.raises(UsageError, match="expected fp32, fp16 or bf16, all the same"):
        reconstruct(patches.double(), labels, weight)
    with pytest.raises(UsageError, match="all the same"):
        reconstruct(patches, labels.half(), weight)
    with pytest.raises(UsageError, match="1025 patches: the SVFR kernels take 1024 at most"):
        reconstruct(torch.zeros(1, 1025, 16, device=DEVICE), labels.to(DEVICE), weight.to(DEVICE))
