"""BiAM and linear classifiers on VGG19: the published numbers, an independent forward pass, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.preprocessing import MinMaxScaler
from torch import Tensor
from torch.nn import functional as F

from sigrl_deploy.checkpoints import linear
from sigrl_deploy.checkpoints.building import build_model
from sigrl_deploy.checkpoints.eager import load_eager
from sigrl_deploy.checkpoints.layouts import VGG19, Checkpoint, load_checkpoint
from sigrl_deploy.checkpoints.loading import load_model
from sigrl_deploy.checkpoints.options import CheckpointOptions
from sigrl_deploy.checkpoints.vgg_models import vgg_model_config
from sigrl_deploy.checkpoints.weights import Stored
from sigrl_deploy.checkpoints.word_vectors import read_word_vectors, vector_rows
from sigrl_deploy.config import Arch
from sigrl_deploy.errors import CheckpointError, LabelError, UsageError
from tests.support import vgg_files
from tests.support.checkpoints import changed
from tests.support.paths import ROOT
from tests.support.refusals import assert_refused, refused

# Of the largest value: the same fp32 arithmetic in another order. Independent forward passes are 5.4e-6 off the published ones;
# half of BiAM's heads, the least of the usual mistakes, moves scores by 2e-2.
TOLERANCE = 1e-5
GOLDEN = ROOT / "tests" / "golden"


def error(found: Any, expected: Any) -> float:
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@torch.inference_mode()
def test_published_numbers_of_a_linear_classifier(vgg: Path) -> None:
    golden = np.load(GOLDEN / "linear_small.npz")
    loaded = load_model(CheckpointOptions(vgg / "linear.pth", backbone=vgg / "vgg-small.pth"))
    assert (loaded.model.config.arch, loaded.model.config.embed_dim) == (Arch.LINEAR, 129)
    pixels = torch.from_numpy(vgg_files.pixels(int(golden["batch"]), 64, int(golden["image_seed"])))
    _, features = loaded.model.encode_image(pixels, torch.empty(0), None)
    assert error(features[:, :-1], golden["feature"]) < TOLERANCE
    rows = linear.label_rows(loaded.checkpoint, vgg / "scaling.npz")
    assert error(torch.logit(loaded.model(pixels, rows).double()), golden["logits"]) < TOLERANCE


@torch.inference_mode()
def test_published_numbers_of_biam(tmp_path: Path) -> None:
    """At the real size of VGG19, which stays in memory, since it would be a file of 0.6 GB."""
    golden, vgg = np.load(GOLDEN / "biam_64.npz"), vgg_files.VGG_REAL
    seed, heads = int(golden["seed"]), int(golden["heads"])
    state = {name: Stored.of(torch.from_numpy(values)) for name, values in vgg_files.vgg_state(vgg, seed).items()}
    backbone = Checkpoint("vgg19.pth", VGG19, "", state, openai=False)
    path = vgg_files.save(tmp_path / "biam.pth", vgg_files.biam_state(vgg, vgg_files.Biam(64), seed))
    checkpoint = load_checkpoint(path)
    model = build_model(checkpoint, vgg_model_config(checkpoint, backbone, CheckpointOptions(path, heads=heads)), backbone)
    pixels = torch.from_numpy(vgg_files.pixels(int(golden["batch"]), 224, int(golden["image_seed"])))
    vectors = torch.from_numpy(vgg_files.word_vectors(int(golden["labels"]), int(golden["label_seed"])))
    rows = vector_rows(checkpoint, vectors)
    assert error(rows[:, ::16], golden["label_matrix"]) < TOLERANCE
    regions, features = model.encode_image(pixels, rows, None)
    assert (regions.shape, features.shape) == ((2, 196, 512), (2, 0))
    assert error(regions[:, ::7, ::16], golden["patches"]) < TOLERANCE
    assert error(model(pixels, rows), golden["scores"]) < TOLERANCE


def reference(vgg: dict[str, Tensor], head: dict[str, Tensor], heads: int, pixels: Tensor, vectors: Tensor) -> Tensor:
    """BiAM's scores in float64, from the formulas of docs/systems.md, with its batch norms as they are."""
    x, index = pixels, 0
    for count in (2, 2, 4, 4, 4):
        for _ in range(count):
            maps = x = F.conv2d(x, vgg[f"features.{index}.weight"], vgg[f"features.{index}.bias"], padding=1).clamp(min=0)
            index += 2
        x, index = F.max_pool2d(x, 2), index + 1
    g = x.flatten(1)
    for layer in ("classifier.0", "classifier.3"):
        g = (g @ vgg[f"{layer}.weight"].T + vgg[f"{layer}.bias"]).clamp(min=0)

    def conv(name: str, given: Tensor, padding: int = 0) -> Tensor:
        return F.conv2d(given, head[f"{name}.weight"], head[f"{name}.bias"], padding=padding)

    def norm(name: str, given: Tensor) -> Tensor:
        weight, bias, mean, variance = (head[f"{name}.{p}"] for p in ("weight", "bias", "running_mean", "running_var"))
        return F.batch_norm(given, mean, variance, weight, bias, eps=1e-3)

    h = norm("conv_3X3.bn", conv("conv_3X3.body", maps, 1).clamp(min=0))
    block = "region_context_block."
    q, k, v = (conv(block + part, h).flatten(2) for part in ("w_q", "w_k", "w_v"))
    attended = []
    for part_q, part_k, part_v in zip(*(part.chunk(heads, dim=1) for part in (q, k, v)), strict=True):
        weights = torch.softmax(torch.einsum("bcn,bcm->bnm", part_q, part_k) / part_q.shape[1] ** 0.5, dim=2)
        attended.append(torch.einsum("bnm,bcm->bcn", weights, part_v))
    o = conv(block + "w_o", torch.cat(attended, dim=1).view_as(h)) + h
    regions = o + conv(block + "sub_network.conv2", conv(block + "sub_network.conv1", o).clamp(min=0))
    v = F.leaky_relu(conv("scene_context_block.channel_conv.body", h), 0.2)
    opened = v.mean((2, 3)) * conv("scene_context_block.w_g", g[:, :, None, None])[:, :, 0, 0]
    c = v / (1 + torch.exp(-opened))[:, :, None, None]
    scene = c + norm("scene_context_block.gcff.bn", conv("scene_context_block.gcff.body", c, 1).clamp(min=0))
    e = F.leaky_relu(conv("conv_1X1.body", torch.cat([regions, scene], dim=1)), 0.2).flatten(2)
    rows = vectors / vectors.norm(dim=1, keepdim=True) @ head["W.weight"].T + head["W.bias"]
    return torch.einsum("bdn,cd->bcn", e, rows).sort(dim=2, descending=True).values[..., :6].mean(2)


@pytest.mark.parametrize("heads", [3, 4])
@pytest.mark.parametrize("wrapped", [False, True])
@torch.inference_mode()
def test_biam_is_the_formulas(heads: int, wrapped: bool, vgg: Path, tmp_path: Path) -> None:
    path, state = vgg / "biam.pth", torch.load(vgg / "biam.pth")
    if wrapped:
        path = tmp_path / "wrapped.pth"
        torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, path)
    loaded = load_model(CheckpointOptions(path, backbone=vgg / "vgg-tiny.pth", heads=heads))
    vectors = torch.from_numpy(vgg_files.word_vectors(5, seed=0))
    pixels = torch.from_numpy(vgg_files.pixels(3, 64, seed=1))
    exact = [{name: tensor.double() for name, tensor in part.items()} for part in (torch.load(vgg / "vgg-tiny.pth"), state)]
    expected = reference(*exact, heads, pixels.double(), vectors.double())
    assert error(loaded.model(pixels, vector_rows(loaded.checkpoint, vectors)), expected) < TOLERANCE


def test_word_vectors_are_found_whatever_the_case(vgg: Path) -> None:
    found = read_word_vectors(vgg / "glove.txt", ["Coffee", "cat"], 300)
    np.testing.assert_array_equal(found, vgg_files.word_vectors(5, seed=0)[[3, 0]])


BAD_WORDS: dict[str, tuple[list[str], str, str]] = {
    "several words": (["hot dog"], "", "labels"),
    "without a vector": (["cat", "zebra"], "", "word_vectors"),
    "too few numbers": (["zebra"], "zebra 1 2 3\n", "word_vectors"),
    "no numbers": (["zebra"], "zebra one two\n", "word_vectors"),
    "not finite": (["zebra"], "zebra " + "nan " * 300 + "\n", "word_vectors"),
    "a line without an end": (["zebra"], "zebra" * 100_000, "word_vectors"),
}


@pytest.mark.parametrize(("labels", "line", "argument"), BAD_WORDS.values(), ids=BAD_WORDS)
def test_word_vectors_that_are_refused(labels: list[str], line: str, argument: str, vgg: Path, tmp_path: Path) -> None:
    path = tmp_path / "glove.txt"
    path.write_text((vgg / "glove.txt").read_text() + line)
    assert refused(lambda: read_word_vectors(path, labels, 300), UsageError)[0] == argument
    assert refused(lambda: read_word_vectors(tmp_path / "none.txt", ["cat"], 300))[0] == "word_vectors"


def test_options_that_are_refused(vgg: Path, weights: Path) -> None:
    biam = CheckpointOptions(vgg / "biam.pth", backbone=vgg / "vgg-tiny.pth", heads=3)

    def argument(**changes: Any) -> str:
        return refused(lambda: load_model(replace(biam, **changes)))[0]

    assert argument(backbone=None) == "backbone"
    assert argument(backbone=vgg / "none.pth") == "backbone"
    assert argument(heads=None) == "heads"
    assert argument(heads=5) == "heads"
    assert argument(checkpoint=vgg / "linear.pth") == "heads"
    assert argument(checkpoint=weights / "mkt.pth") == "backbone"
    assert argument(topk=17) == "topk"
    assert argument(clip_config="ViT-B-16") == "clip_config"
    linear = {"checkpoint": vgg / "linear.pth", "backbone": vgg / "vgg-small.pth", "heads": None}
    assert argument(**linear, topk=4) == "topk"
    assert argument(**linear, clip_config="ViT-B-16") == "clip_config"
    assert refused(lambda: load_eager(replace(biam, backbone=None)))[0] == "checkpoint"


FILES: dict[str, tuple[dict[str, tuple[int, ...]], str]] = {
    "BiAM's network for Open Images": ({"self_attn1.query_conv.weight": (4, 4, 1, 1), "W1.weight": (4, 4)}, "Open Images"),
    "Gen-MLZSL's generator": ({"early_fusion.fc1.weight": (4, 6)}, "generator"),
    "VGG19 alone": ({"features.0.weight": (4, 3, 3, 3), "classifier.0.weight": (4, 4)}, "`backbone`"),
}


@pytest.mark.parametrize(("shapes", "fact"), FILES.values(), ids=FILES)
def test_files_that_hold_no_tagger(shapes: dict[str, tuple[int, ...]], fact: str, tmp_path: Path) -> None:
    torch.save({name: torch.zeros(shape) for name, shape in shapes.items()}, tmp_path / "a.pth")
    assert_refused(lambda: load_model(CheckpointOptions(tmp_path / "a.pth")), CheckpointError, "a.pth", fact)


def test_lesa_is_named_and_refused(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "lesa.npz", **{"conv/conv/weights": np.zeros((2, 2, 4, 4)), "attention_layer/w_att_1": np.zeros((5, 4))}
    )
    # As the first block of a TensorFlow checkpoint's index begins.
    (tmp_path / "model.ckpt.index").write_bytes(b"\0\0\2\x08\1\0\x17\4attention_layer/w_att_1" + bytes(40))
    for name in ("lesa.npz", "model.ckpt.index"):
        assert_refused(lambda name=name: load_checkpoint(tmp_path / name), CheckpointError, name, "LESA")  # type: ignore[misc]
    (tmp_path / "model.ckpt.data-00000-of-00001").write_bytes(bytes(40))
    data = tmp_path / "model.ckpt.data-00000-of-00001"
    assert_refused(lambda: load_checkpoint(data), CheckpointError, "data-00000", "TensorFlow")
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    assert_refused(lambda: load_checkpoint(tmp_path / "other.npz"), CheckpointError, "other.npz", "not a checkpoint")


DAMAGES: dict[str, tuple[str, str, Callable[[Tensor], Tensor | None]]] = {
    "a shorter fc6": ("vgg-tiny.pth", "classifier.0.weight", lambda tensor: tensor[:, :-1]),
    "another convolution": ("vgg-tiny.pth", "features.21.weight", lambda tensor: tensor[:, :1]),
    "no mean": ("biam.pth", "conv_3X3.bn.running_mean", lambda tensor: None),
    "a norm without statistics": ("biam.pth", "scene_context_block.gcff.bn.running_*", lambda tensor: None),
    "no norm": ("biam.pth", "conv_3X3.bn.*", lambda tensor: None),
    "whole numbers": ("biam.pth", "conv_3X3.bn.weight", lambda tensor: tensor.long()),
    "one more layer": ("biam.pth", "region_context_block.w_z.weight", lambda tensor: torch.zeros(3)),
    "one more layer of VGG19": ("vgg-tiny.pth", "classifier.9.weight", lambda tensor: torch.zeros(3)),
    "a variance below 0": ("biam.pth", "scene_context_block.gcff.bn.running_var", lambda tensor: -tensor),
    "another gate": ("biam.pth", "scene_context_block.w_g.weight", lambda tensor: tensor[:, :7]),
}


@pytest.mark.parametrize(("file", "name", "change"), DAMAGES.values(), ids=DAMAGES)
def test_damaged_files_are_refused(
    file: str, name: str, change: Callable[[Tensor], Tensor | None], vgg: Path, tmp_path: Path
) -> None:
    torch.save(changed(torch.load(vgg / file), name, change), tmp_path / file)
    biam, backbone = (tmp_path / name if name == file else vgg / name for name in ("biam.pth", "vgg-tiny.pth"))
    assert_refused(
        lambda: load_model(CheckpointOptions(biam, backbone=backbone, heads=3)), CheckpointError, file, name.rstrip("*")
    )


def test_a_damaged_map_of_word_vectors_is_refused(vgg: Path, tmp_path: Path) -> None:
    torch.save(torch.load(vgg / "biam.pth") | {"W.scale": torch.zeros(3)}, tmp_path / "biam.pth")
    checkpoint = load_checkpoint(tmp_path / "biam.pth")
    assert_refused(lambda: vector_rows(checkpoint, torch.ones(1, 300)), CheckpointError, "biam.pth", "W.scale")


@pytest.mark.parametrize("numbers", [(0, 2, 5), (0, 3, 7)])  # VGG11 or the like, and VGG with batch norms
def test_other_vggs_are_no_backbone(numbers: tuple[int, ...], vgg: Path, tmp_path: Path) -> None:
    shapes = {"classifier.0.weight": (4, 4)} | {f"features.{number}.weight": (4, 3, 3, 3) for number in numbers}
    path = tmp_path / "other.pth"
    torch.save({name: torch.zeros(shape) for name, shape in shapes.items()}, path)
    biam = CheckpointOptions(vgg / "biam.pth", backbone=path, heads=3)
    assert_refused(lambda: load_model(biam), CheckpointError, "other.pth", "not those of VGG19", "vgg19-dcbb9e9d.pth")


SCALINGS: dict[str, Callable[[], dict[str, Any]]] = {
    "of other features": lambda: {"minimum": np.zeros(127), "maximum": np.ones(127)},
    "of another name": lambda: {"low": np.zeros(128), "high": np.ones(128)},
    "with NaN": lambda: {"minimum": np.full(128, np.nan), "maximum": np.ones(128)},
    "the wrong way round": lambda: {"minimum": np.ones(128), "maximum": np.zeros(128)},
    "pickled": lambda: {"minimum": np.array([{}]), "maximum": np.array([{}])},
    "of a range next to nothing": lambda: {"minimum": np.zeros(128), "maximum": np.full(128, 1e-13)},
}


@pytest.mark.parametrize("make", SCALINGS.values(), ids=SCALINGS)
def test_scalings_that_are_refused(make: Callable[[], dict[str, Any]], vgg: Path, tmp_path: Path) -> None:
    checkpoint, path = load_checkpoint(vgg / "linear.pth"), tmp_path / "scaling.npz"
    np.savez(path, **make())
    assert refused(lambda: linear.label_rows(checkpoint, path)) == ("scaling", path)
    assert refused(lambda: linear.label_rows(checkpoint, None))[0] == "scaling"


def test_scikit_learns_names_of_a_scaling(vgg: Path, tmp_path: Path) -> None:
    checkpoint, values = load_checkpoint(vgg / "linear.pth"), np.load(vgg / "scaling.npz")
    np.savez(tmp_path / "a.npz", data_min_=values["minimum"], data_max_=values["maximum"])
    assert torch.equal(linear.label_rows(checkpoint, tmp_path / "a.npz"), linear.label_rows(checkpoint, vgg / "scaling.npz"))


def test_what_scikit_learn_takes_for_constant(vgg: Path, tmp_path: Path) -> None:
    """A feature of fp32 that varies by rounding alone."""
    low = np.full(128, 0.5, np.float32)
    values = np.stack([low, low + np.where(np.arange(128) % 3, 1e-2, 1e-6).astype(np.float32)])
    scaler = MinMaxScaler().fit(values)
    np.savez(tmp_path / "a.npz", data_min_=scaler.data_min_, data_max_=scaler.data_max_)
    assert scaler.data_min_.dtype == np.float32
    rows = linear.label_rows(load_checkpoint(vgg / "linear.pth"), tmp_path / "a.npz")
    np.testing.assert_allclose(rows[:, :-1], torch.load(vgg / "linear.pth")["fc1.weight"].numpy() * scaler.scale_, rtol=1e-5)


def test_words_of_a_cased_file(tmp_path: Path) -> None:
    """The word in lower case goes before others, and is enough where letters have no single lower case."""
    (tmp_path / "glove.txt").write_text("Paris 1 2\nTurkey 3 4\nturkey 5 6\nPARIS 7 8\nstraße 9 10\n")
    found = read_word_vectors(tmp_path / "glove.txt", ["paris", "Turkey", "Straße"], 2)
    assert found.tolist() == [[1, 2], [5, 6], [9, 10]]


def test_labels_of_several_words_are_no_vector(vgg: Path) -> None:
    assert refused(lambda: read_word_vectors(vgg / "glove.txt", ["cup of tea"], 300), LabelError) == ("labels", "cup of tea")
