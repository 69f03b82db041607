"""VGG19, BiAM's head and a linear classifier with random weights, in the layouts that were published or that torchvision has.

Weights are drawn per tensor from numpy's frozen legacy generator, so every machine writes the same numbers. Two files in
`tests/golden/` hold what the published implementations compute with them on a CPU in fp32: `linear_small.npz`, with the
weights of `VGG_SMALL` and the seed 0, and `biam_64.npz`, with those of `VGG_REAL`, 64 channels and the seed 1.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.random_weights import Shapes
from sigrl_deploy.arrays import FloatArray

VECTOR = 300
BIAM_LABELS = ("cat", "dog", "rocket", "Coffee", "tree")
LINEAR_LABELS = ("cat", "rocket", *(f"label {i}" for i in range(2, 20)))
_STAGES = (2, 2, 4, 4, 4)


@dataclass(frozen=True)
class Vgg:
    """Sizes of a VGG19: channels of its first stage, the picture's side, numbers of fc6 and fc7."""

    width: int
    image_size: int
    hidden: int


VGG_REAL = Vgg(64, 224, 4096)
VGG_SMALL = Vgg(8, 64, 128)
VGG_TINY = Vgg(4, 64, 24)


@dataclass(frozen=True)
class Biam:
    """Sizes of BiAM's head."""

    channels: int
    width: int = 512  # of what labels are matched with


BIAM_TINY = Biam(12, 20)


def vgg_state(sizes: Vgg, seed: int = 0) -> dict[str, FloatArray]:
    shapes: Shapes = {}
    index, given = 0, 3
    for stage, count in enumerate(_STAGES):
        for _ in range(count):
            made = sizes.width * min(8, 2**stage)
            shapes |= {f"features.{index}.weight": (made, given, 3, 3), f"features.{index}.bias": (made,)}
            index, given = index + 2, made
        index += 1
    flat = given * (sizes.image_size // 32) ** 2
    for layer, taken, made in ((0, flat, sizes.hidden), (3, sizes.hidden, sizes.hidden), (6, sizes.hidden, 10)):
        shapes |= {f"classifier.{layer}.weight": (made, taken), f"classifier.{layer}.bias": (made,)}
    return {name: draw(name, shape, seed) for name, shape in shapes.items() if not name.startswith("classifier.6")}


def biam_state(vgg: Vgg, sizes: Biam, seed: int = 0) -> dict[str, FloatArray]:
    d = sizes.channels
    convolutions = {
        "conv_3X3.body": (d, 8 * vgg.width, 3),
        **{f"region_context_block.{part}": (d, d, 1) for part in ("w_q", "w_k", "w_v", "w_o")},
        "region_context_block.sub_network.conv1": (2 * d, d, 1),
        "region_context_block.sub_network.conv2": (d, 2 * d, 1),
        "scene_context_block.w_g": (d, vgg.hidden, 1),
        "scene_context_block.gcff.body": (d, d, 3),
        "scene_context_block.channel_conv.body": (d, d, 1),
        "conv_1X1.body": (sizes.width, 2 * d, 1),
    }
    shapes: Shapes = {"W.weight": (sizes.width, VECTOR), "W.bias": (sizes.width,)}
    for name, (made, given, side) in convolutions.items():
        shapes |= {f"{name}.weight": (made, given, side, side), f"{name}.bias": (made,)}
    for name in ("conv_3X3.bn", "scene_context_block.gcff.bn"):
        shapes |= {f"{name}.{part}": (d,) for part in ("weight", "bias", "running_mean", "running_var")}
        shapes[f"{name}.num_batches_tracked"] = ()
    return {name: draw(name, shape, seed) for name, shape in shapes.items()}


def classifier_state(sizes: Vgg, labels: int, seed: int = 0) -> dict[str, FloatArray]:
    shapes: Shapes = {"fc1.weight": (labels, sizes.hidden), "fc1.bias": (labels,)}
    return {name: draw(name, shape, seed) for name, shape in shapes.items()}


def scaling(sizes: Vgg, seed: int = 0) -> dict[str, FloatArray]:
    """Minimum and maximum of 24 rows of training features, one feature in 16 constant."""
    rng = np.random.RandomState((zlib.crc32(b"training features") + seed) % 2**32)
    top = 0.8 * np.exp(0.5 * rng.standard_normal(sizes.hidden))
    rows = rng.uniform(0.02, 1, (24, sizes.hidden)) * top
    rows[:, ::16] = np.where(rng.uniform(size=rows[:1, ::16].shape) < 0.5, 0, 0.2 * top[::16])
    rows = rows.astype(np.float32)
    return {"minimum": rows.min(0), "maximum": rows.max(0)}


def word_vectors(count: int, seed: int) -> FloatArray:
    """[count, 300] of the norms that GloVe's vectors have, 4.4 to 8.6."""
    rng = np.random.RandomState(seed)
    values = rng.standard_normal((count, VECTOR))
    norms = rng.uniform(4.4, 8.6, (count, 1))
    return (values / np.sqrt((values**2).sum(1, keepdims=True)) * norms).astype(np.float32)


def pixels(count: int, size: int, seed: int) -> FloatArray:
    """[count, 3, size, size], large patches of colour under noise."""
    rng = np.random.RandomState(seed)
    cell = -(-size // 7)
    coarse = rng.standard_normal((count, 3, 7, 7)).repeat(cell, 2).repeat(cell, 3)[..., :size, :size]
    return (coarse + 0.5 * rng.standard_normal((count, 3, size, size))).astype(np.float32)


def save(path: Path, state: dict[str, FloatArray], prefix: str = "") -> Path:
    torch.save({prefix + name: torch.from_numpy(np.asarray(values)) for name, values in state.items()}, path)
    return path


def write(folder: Path) -> None:
    """A small BiAM (`biam.pth` with `glove.txt` and `words.txt`) and classifier (`linear.pth` with `scaling.npz` and
    `labels.txt`), each with its VGG19: `vgg-tiny.pth` and `vgg-small.pth`.
    """
    save(folder / "vgg-tiny.pth", vgg_state(VGG_TINY))
    save(folder / "biam.pth", biam_state(VGG_TINY, BIAM_TINY))
    (folder / "words.txt").write_text("\n".join(BIAM_LABELS))
    rows = zip([label.lower() for label in BIAM_LABELS], word_vectors(len(BIAM_LABELS), seed=0), strict=True)
    lines = [" ".join([word, *map(repr, map(float, vector))]) for word, vector in rows]
    (folder / "glove.txt").write_text("\n".join(["5 300", "the " + "0.1 " * 300, *reversed(lines)]) + "\n")
    save(folder / "vgg-small.pth", vgg_state(VGG_SMALL))
    save(folder / "linear.pth", classifier_state(VGG_SMALL, len(LINEAR_LABELS)))
    (folder / "labels.txt").write_text("\n".join(LINEAR_LABELS))
    np.savez(folder / "scaling.npz", **scaling(VGG_SMALL))


def draw(name: str, shape: tuple[int, ...], seed: int) -> FloatArray:
    """One tensor's weights, a function of its name, shape and seed; scales keep softmax and sigmoid far from uniform."""
    if name.endswith("num_batches_tracked"):
        return np.array(1000, np.int64)
    values = np.random.RandomState((zlib.crc32(name.encode()) + seed) % 2**32).standard_normal(shape)
    if name.endswith("running_mean"):
        values = 0.3 + 0.1 * values
    elif name.endswith("running_var"):
        values = 0.3 * np.exp(0.3 * values)
    elif name.endswith("bias"):
        values = 0.1 * values
    elif len(shape) == 1:
        values = 1 + 0.1 * values
    elif name == "features.0.weight":
        values = values * np.sqrt(1.6 / np.prod(shape[1:]))
    elif name.startswith("features"):
        # Nearly zero-sum over the input channels: less sensitive to what all pictures have in common.
        values = (values - 0.7 * np.roll(values, 1, axis=1)) * np.sqrt(2 / (1 + 0.7**2) / np.prod(shape[1:]))
    elif name.startswith("classifier"):
        values = values * np.sqrt(3 / shape[1])
    elif name == "fc1.weight" or any(part in name for part in (".w_q", ".w_k", ".w_g", "conv_3X3")):
        values = 2 * values / np.sqrt(np.prod(shape[1:]))
    else:
        values = values / np.sqrt(np.prod(shape[1:]))
    return values.astype(np.float32)
