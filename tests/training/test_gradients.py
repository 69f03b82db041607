"""The recomputing tiles of SVFR and GMC have the gradients of the materialised form, and hold one tile at a time."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from sigrl_deploy.config import Arch, GraphConfig, ModelConfig
from sigrl_deploy.image_towers import VisionConfig
from sigrl_deploy.model import materialised, sigrl
from sigrl_deploy.model.sigrl import GMC, SVFR, GraphAttention, SigRL
from tests.support.paths import ROOT

# Twice the same float64 arithmetic in another order, over sums of at most a few thousand terms.
TOLERANCE = 1e-9


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tiles and row blocks, the last of them not full, at sizes that a gradient check can afford."""
    monkeypatch.setattr(sigrl, "LABEL_TILE", 2)
    monkeypatch.setattr(sigrl, "PAIR_BUDGET", 1)
    monkeypatch.setattr(sigrl, "KEPT_BUDGET", 0)


def _double(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


def test_gradcheck_of_svfr() -> None:
    torch.manual_seed(0)
    module = SVFR(4).double()
    inputs = _double(2, 3, 4, seed=1), _double(5, 4, seed=2), _double(5, 4, seed=3)
    assert torch.autograd.gradcheck(lambda *args: module(*args), inputs)


def test_gradcheck_of_gmc() -> None:
    torch.manual_seed(0)
    module = GMC((GraphConfig(4, 2, 3), GraphConfig(6, 1, 4))).double().eval()
    assert torch.autograd.gradcheck(lambda rows: module(rows), (_double(5, 4, seed=1),))


@pytest.fixture
def model() -> SigRL:
    torch.manual_seed(0)
    vision = VisionConfig(image_size=32, patch_size=8, width=32, layers=1, heads=2)
    graph = (GraphConfig(16, 2, 4), GraphConfig(8, 1, 16))
    return SigRL(ModelConfig(Arch.SIGRL, 16, 5, vision, graph=graph)).double().eval()


@pytest.mark.parametrize("kept", [0, 10**9], ids=["recomputed", "kept"])
@pytest.mark.parametrize("labels", [1, 2, 7])
def test_every_gradient_equals_the_materialised_form(
    model: SigRL, labels: int, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sigrl, "KEPT_BUDGET", kept)
    pixels, embedding = _double(3, 3, 32, 32, seed=4), _double(labels, 16, seed=5)
    weight = torch.randn(3, labels, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    wanted = {"pixels": pixels, "T": embedding, **dict(model.named_parameters())}
    tiled, whole = (
        torch.autograd.grad((scores * weight).sum(), list(wanted.values()), allow_unused=True)
        for scores in (model(pixels, embedding), materialised.forward(model, pixels, embedding))
    )
    seen = set()
    for name, ours, theirs in zip(wanted, tiled, whole, strict=True):
        if theirs is None or name in ("svfr.decouple.bias", "svfr.reconstruct.bias"):  # the softmax cancels them
            assert ours is None, name
            assert theirs is None or theirs.abs().max() < TOLERANCE, name
            continue
        scale = max(1.0, float(theirs.abs().max()))
        assert (ours - theirs).abs().max() < TOLERANCE * scale, name
        seen.add(name.split(".")[0])
    assert seen >= {"pixels", "T", "visual", "svfr", "gmc"} - ({"gmc"} if labels == 1 else set())


def test_dropout_of_the_graph_is_the_same_when_it_is_recomputed(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    module = GMC((GraphConfig(4, 2, 3), GraphConfig(6, 1, 4))).double().train()
    rows = _double(9, 4, seed=1)

    def gradients() -> tuple[Tensor, Tensor]:
        torch.manual_seed(7)
        out = module(rows)
        return out.detach(), torch.autograd.grad(out.square().sum(), rows)[0]

    recomputed = gradients()
    monkeypatch.setattr(sigrl, "KEPT_BUDGET", 10**9)
    kept = gradients()
    assert all(torch.equal(a, b) for a, b in zip(recomputed, kept, strict=True))
    assert not torch.equal(recomputed[0], module.eval()(rows))


def test_norms_and_softmax_inputs_stay_in_fp32_in_mixed_precision() -> None:
    """Sᵀ T and GMC's energies, whose products autocast would round to bf16 (2^-9); a product of the rest is rounded so."""
    torch.manual_seed(0)
    layer, svfr = GraphAttention(GraphConfig(16, 2, 8)).eval(), SVFR(16)
    z, semantic, rows = torch.randn(9, 2, 8), torch.randn(2, 9, 16), torch.randn(9, 16)
    exact = layer.attend(z, z), svfr.between(semantic, rows, rows)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = layer.attend(z, z), svfr.between(semantic, rows, rows)
        assert svfr.graph_projection(rows).dtype is torch.bfloat16
    assert all(a.equal(b) for a, b in zip(exact, mixed, strict=True))


def test_a_training_step_at_925_labels_fits_into_4_gb() -> None:
    """ViT-B/16, one picture, on the CPU: the materialised form needs more than 10 GB."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.training_memory", "--batch-size", "1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    assert "loss" in done.stdout
    assert peak < 4e9, done.stdout
