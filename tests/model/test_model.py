"""The eager model against the reference implementation's numbers, and the identities that the exported graphs rely on."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.random_weights import VARIANTS, images, label_embeddings, save, sigrl_shapes, tensors
from sigrl_deploy.checkpoints.building import build_model
from sigrl_deploy.checkpoints.layouts import load_checkpoint
from sigrl_deploy.checkpoints.model_config import model_config
from sigrl_deploy.config import Arch
from sigrl_deploy.export.onnx import exponent_bound
from sigrl_deploy.model import materialised, sigrl
from sigrl_deploy.model.sigrl import SigRL, encode_image, match
from tests.support.paths import GOLDEN

TOLERANCE = 1e-5  # of an array's largest value: fp32 in another order of operations; measured 3e-6


def load(folder: Path, variant: str, topk: int) -> SigRL:
    path = folder / "sigrl.pth"
    save(path, tensors(sigrl_shapes(VARIANTS[variant])))
    checkpoint = load_checkpoint(path)
    return build_model(checkpoint, model_config(checkpoint, topk=topk))


@pytest.fixture(scope="module", params=["tiny", "vit-b16"])
def golden(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[SigRL, Tensor, Tensor, dict[str, np.ndarray]]:
    reference = dict(np.load(GOLDEN / f"reference_{request.param}.npz"))
    model = load(tmp_path_factory.mktemp(request.param), request.param, int(reference["topk"]))
    batch, labels = reference["score"].shape
    pixels = images(batch, model.config.vision.image_size, int(reference["image_seed"]))
    embedding = label_embeddings(labels, int(reference["label_seed"]))
    return model, torch.from_numpy(pixels), torch.from_numpy(embedding), reference


@pytest.fixture(scope="module")
def double(tmp_path_factory: pytest.TempPathFactory) -> SigRL:
    """The tiny model in float64, in which an identity shows beyond doubt."""
    return load(tmp_path_factory.mktemp("double"), "tiny", 16).double()


def assert_close(actual: Tensor, expected: np.ndarray) -> None:
    assert actual.shape == expected.shape
    assert np.abs(actual.numpy() - expected).max() <= TOLERANCE * np.abs(expected).max()


@torch.inference_mode()
def test_every_array_equals_the_reference(golden: tuple[SigRL, Tensor, Tensor, dict[str, np.ndarray]]) -> None:
    model, pixels, labels, reference = golden
    assert model.gmc is not None
    assert model.svfr is not None
    patches, global_feature = encode_image(model.visual, pixels)
    graph = model.gmc(labels)
    assert_close(patches, reference["patch_feature"])
    assert_close(global_feature, reference["global_feature"])
    assert_close(graph, reference["label_graph"])
    assert_close(model.svfr(patches, labels, model.svfr.graph_projection(graph)), reference["reconstructed"])

    assert_close(materialised.gmc(model.gmc, labels), reference["label_graph"])
    semantic, local = materialised.svfr_stages(model.svfr, patches, labels, graph)
    assert_close(semantic, reference["semantic_feature"])
    assert_close(local, reference["reconstructed"])


@torch.inference_mode()
def test_scores_equal_the_reference(golden: tuple[SigRL, Tensor, Tensor, dict[str, np.ndarray]]) -> None:
    model, pixels, labels, reference = golden
    for scores in (model(pixels, labels), materialised.forward(model, pixels, labels)):
        assert np.abs(scores.numpy() - reference["score"]).max() <= 1e-5
    patches, global_feature = encode_image(model.visual, pixels)
    scores = match(Arch.MKT, patches, global_feature, labels, model.config.topk)
    assert np.abs(scores.numpy() - reference["score_without_svfr"]).max() <= 1e-5


def inputs(model: SigRL, labels: int, batch: int = 2) -> tuple[Tensor, Tensor]:
    pixels = torch.from_numpy(images(batch, model.config.vision.image_size, seed=1)).double()
    return pixels, torch.from_numpy(label_embeddings(labels, seed=2)).double()


@pytest.mark.parametrize("labels", [1, 7, sigrl.LABEL_TILE, sigrl.LABEL_TILE + 1, 81])
@torch.inference_mode()
def test_tiled_equals_materialised_at_any_label_count(double: SigRL, labels: int) -> None:
    pixels, embedding = inputs(double, labels)
    difference = double(pixels, embedding) - materialised.forward(double, pixels, embedding)
    assert difference.abs().max() < 1e-12


@torch.inference_mode()
def test_identity_1_biases_do_not_change_the_score(double: SigRL) -> None:
    pixels, embedding = inputs(double, 7)
    shifted = copy.deepcopy(double)
    assert shifted.svfr is not None
    for linear in (shifted.svfr.decouple, shifted.svfr.reconstruct):
        linear.bias.copy_(torch.linspace(-5, 5, len(linear.bias)))
    difference = materialised.forward(double, pixels, embedding) - materialised.forward(shifted, pixels, embedding)
    assert difference.abs().max() < 1e-12


@torch.inference_mode()
def test_identity_2_a_score_does_not_depend_on_the_batch(double: SigRL) -> None:
    pixels, embedding = inputs(double, 7, batch=3)
    together = materialised.forward(double, pixels, embedding)
    alone = torch.cat([materialised.forward(double, picture[None], embedding) for picture in pixels])
    assert (together - alone).abs().max() < 1e-12


@torch.inference_mode()
def test_identity_3_graph_projection_splits_off(double: SigRL) -> None:
    assert double.svfr is not None
    semantic, graph = torch.randn(2, 5, 7, 512, dtype=torch.float64)
    together = double.svfr.fuse(torch.cat([semantic, graph], dim=-1))
    split = semantic @ double.svfr.fuse.weight[:, :512].T + double.svfr.graph_projection(graph)
    assert (together - split).abs().max() < 1e-12


@torch.inference_mode()
def test_identity_4_attention_needs_no_leaky_relu(double: SigRL) -> None:
    assert double.gmc is not None
    for layer, width in zip(double.gmc.layers, (512, 128), strict=True):
        assert isinstance(layer, sigrl.GraphAttention)
        h = torch.randn(9, width, dtype=torch.float64)
        z = layer.nodes(h)
        pairs = (z[:, None] + z[None]).abs() @ layer.attention
        weights = torch.softmax(0.6 * (z @ layer.attention)[None] + 0.4 * pairs, dim=1)
        assert (torch.einsum("ijh,jhf->ihf", weights, z).flatten(1) - layer(h)).abs().max() < 1e-12


@torch.inference_mode()
def test_identity_5_bounds_the_exponent(double: SigRL) -> None:
    """The bound that decides whether exp is safe holds for pictures far outside what training shows."""
    assert double.svfr is not None
    pixels, embedding = inputs(double, 7)
    patches, _ = encode_image(double.visual, 50 * pixels)
    energy = torch.tanh(patches[:, None] * (100 * embedding)[:, None]) @ double.svfr.decouple.weight.T
    assert (energy.exp() * patches.abs()[:, None]).sum(2).log().max() < exponent_bound(double)


@torch.inference_mode()
def test_graph_rows_move_with_their_labels(double: SigRL) -> None:
    """What lets one cached vocabulary serve every order of its labels."""
    _, embedding = inputs(double, 11)
    order = torch.randperm(11, generator=torch.Generator().manual_seed(0))
    projection, permuted = double.graph_projection(embedding), double.graph_projection(embedding[order])
    assert projection is not None
    assert permuted is not None
    assert (projection[order] - permuted).abs().max() < 1e-12


@torch.inference_mode()
def test_row_blocks_of_the_graph_do_not_change_it(double: SigRL, monkeypatch: pytest.MonkeyPatch) -> None:
    _, embedding = inputs(double, 11)
    assert double.gmc is not None
    whole = double.gmc(embedding)
    monkeypatch.setattr(sigrl, "PAIR_BUDGET", 11 * 512 * 3)  # blocks of 3 rows, the last of 2
    assert (double.gmc(embedding) - whole).abs().max() < 1e-12


@torch.inference_mode()
def test_labels_without_any_relation_stay_finite(double: SigRL) -> None:
    """Zero label embeddings make every row of R zero; its scaling must not divide by it."""
    pixels, _ = inputs(double, 1)
    assert double(pixels, torch.zeros(3, 512, dtype=torch.float64)).isfinite().all()


def test_topk_is_cut_to_the_number_of_patches() -> None:
    local, labels = torch.randn(2, 5, 8), torch.randn(3, 8)
    expected = (local @ labels.T).mean(1)
    assert torch.allclose(sigrl.local_match(local, labels, 16), expected)
