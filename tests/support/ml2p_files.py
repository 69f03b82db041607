"""An (ML)²P-Encoder with random weights in the published layout, to which `tests/golden/ml2p_3groups.npz` belongs.

Weights are drawn per tensor from numpy's frozen legacy generator, so every machine writes the same numbers. The file holds
what the published implementation computes with those of `REAL` and the seed 1 on a CPU in fp32.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.random_weights import Shapes
from sigrl_deploy.arrays import FloatArray
from tests.support.vgg_files import save

_STAGES = (2, 2, 4, 4, 4)
_NORM = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True)
class Sizes:
    """Of one model: the numbers of `Ml2pConfig`, and `positions` N."""

    groups: int
    width: int
    taps: tuple[int, int, int]
    vector: int
    positions: int
    token_hidden: int
    channel_hidden: int


def real(groups: int) -> Sizes:
    """The published sizes, which have 7 groups."""
    return Sizes(groups, 64, (512, 512, 1024), 300, 49, 9, 60)


REAL = real(3)
TINY = Sizes(3, 2, (5, 6, 7), 20, 4, 3, 6)
LABELS = ("cat", "dog", "rocket", "coffee", "tree")


def write(folder: Path) -> None:
    """`ml2p.pth`, `glove.txt` of 20 numbers a word, and `words.txt`."""
    save(folder / "ml2p.pth", state(TINY), prefix="module.")
    (folder / "words.txt").write_text("\n".join(LABELS))
    rows = zip(LABELS, word_vectors(), strict=True)
    (folder / "glove.txt").write_text("".join(f"{word} {' '.join(map(repr, map(float, row)))}\n" for word, row in rows))


def word_vectors() -> FloatArray:
    """[5, 20], those of `glove.txt`."""
    return (1.5 * np.random.RandomState(0).standard_normal((len(LABELS), TINY.vector))).astype(np.float32)


def state(sizes: Sizes, seed: int = 0) -> dict[str, FloatArray]:
    return {name: _draw(name, shape, seed) for name, shape in _shapes(sizes).items()}


def _linear(name: str, made: int, given: int) -> Shapes:
    return {f"{name}.weight": (made, given), f"{name}.bias": (made,)}


def _conv(name: str, made: int, given: int, side: int = 1) -> Shapes:
    return {f"{name}.weight": (made, given, side, side), f"{name}.bias": (made,)}


def _norm(name: str, channels: int) -> Shapes:
    parts: Shapes = {f"{name}.{part}": (channels,) for part in _NORM}
    return parts | {f"{name}.num_batches_tracked": ()}


def _shapes(sizes: Sizes) -> Shapes:
    shapes: Shapes = {}
    index, given = 0, 3
    for stage, count in enumerate(_STAGES):
        for _ in range(count):
            made = sizes.width * min(8, 2**stage)
            shapes |= _conv(f"vgg.features.{index}", made, given, 3) | _norm(f"vgg.features.{index + 1}", made)
            index, given = index + 3, made
        index += 1
    for number, (made, factor) in enumerate(zip(sizes.taps, (4, 8, 8), strict=True)):
        shapes[f"ft_module.{number}.conv.weight"] = (made, factor * sizes.width, 1, 1)
        shapes |= _norm(f"ft_module.{number}.bn", made)
    channels = sizes.groups * sizes.vector
    attention, mixer = "Channel_MLP.channel_attn.", "Channel_MLP.channel_mlp."
    shapes |= _conv("conv_embedding", channels, sum(sizes.taps))
    shapes[f"{attention}temperature"] = (sizes.groups, 1, 1)
    shapes |= _conv(f"{attention}qkv", 3 * channels, channels) | _conv(f"{attention}qkv_dwconv", 3 * channels, 1, 3)
    shapes |= _conv(f"{attention}project_out", channels, channels)  # saved, and never used
    for name, width, hidden in (
        (f"{mixer}mlp_token", sizes.positions, sizes.token_hidden),
        (f"{mixer}mlp_channel", sizes.vector, sizes.channel_hidden),
        ("Group_Attention.Linear1", sizes.vector, sizes.vector),
        ("Group_Attention.Linear2", sizes.vector, sizes.vector),
    ):
        shapes |= _linear(f"{name}.dense_1", hidden, width) | _linear(f"{name}.dense_2", width, hidden)
    for number in (1, 2):
        shapes |= {f"{mixer}layer_norm_{number}.{part}": (sizes.vector,) for part in _NORM[:2]}
    return shapes


def _draw(name: str, shape: tuple[int, ...], seed: int) -> FloatArray:
    """One tensor's weights, a function of its name, shape and seed; scales keep softmax and sigmoid far from uniform."""
    if name.endswith("num_batches_tracked"):
        return np.array(1000, np.int64)
    values = np.random.RandomState((zlib.crc32(name.encode()) + seed) % 2**32).standard_normal(shape)
    if name.endswith("running_mean"):
        values = 0.1 * values
    elif name.endswith("running_var"):
        values = np.exp(0.3 * values)
    elif name.endswith("weight") and len(shape) == 1:
        values = 1 + 0.1 * values
    elif name.endswith("mlp_channel.dense_2.bias"):
        values = -2 + 0.7 * values
    elif name.endswith("bias"):
        values = 0.1 * values
    elif name.endswith("temperature"):
        values = 5 + values
    elif name == "vgg.features.0.weight":
        values = values * np.sqrt(1.6 / np.prod(shape[1:]))
    elif name.startswith(("vgg", "ft_module", "conv_embedding")):
        # Nearly zero-sum over the input channels: less sensitive to what all pictures have in common.
        values = (values - 0.7 * np.roll(values, 1, axis=1)) * np.sqrt(2 / (1 + 0.7**2) / np.prod(shape[1:]))
    elif name.endswith("qkv.weight"):
        values = 2 * values / np.sqrt(shape[1])
    elif name.startswith("Group_Attention"):
        values = 0.7 * values / np.sqrt(shape[1])
    else:
        values = values / np.sqrt(np.prod(shape[1:]))
    return values.astype(np.float32)
