"""SCPNet's files in the published layout with random weights, to which the numbers in `tests/golden/scpnet_*.npz` belong.

Weights are drawn per tensor from numpy's frozen legacy generator, so every machine writes the same numbers. The files hold what
the published implementation computes with them on a CPU in fp32, `scpnet_tiny.npz` of `TINY` and the seed 0: `gcn_relation` [C,
C], `logits` and `scores` [B, C], and every eighth column of `text_features`, `label_matrix` [C, 1024] and `image_features` [B,
1024].
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.random_weights import Shapes, block_shapes
from sigrl_deploy.arrays import FloatArray

COLUMNS = 8
CONTEXT, LEARNED, EMBED, HIDDEN = 77, 4, 1024, 2048
IMAGE_SIZE = 224


@dataclass(frozen=True)
class Sizes:
    """Of the image tower, with its blocks by stage, and of the text side."""

    width: int
    blocks: tuple[int, int, int, int]
    text_width: int
    text_layers: int


TINY = Sizes(16, (1, 1, 1, 1), 64, 2)
RN50 = Sizes(64, (3, 4, 6, 3), 512, 12)
START, END = 49406, 49407
A_PHOTO_OF_A = (320, 1125, 539, 320)
# CLIP's tokens of each label and the full stop after it.
TOKENS = {
    "aeroplane": (27735, 3980, 269),
    "bicycle": (11652, 269),
    "bird": (3329, 269),
    "boat": (4440, 269),
    "bottle": (5392, 269),
    "bus": (2840, 269),
    "car": (1615, 269),
    "cat": (2368, 269),
    "chair": (4269, 269),
    "cow": (9706, 269),
    "diningtable": (1462, 653, 2175, 269),
    "dog": (1929, 269),
    "horse": (4558, 269),
    "motorbike": (33341, 269),
    "person": (2533, 269),
    "pottedplant": (3547, 4841, 3912, 269),
    "sheep": (9629, 269),
    "sofa": (15723, 269),
    "train": (3231, 269),
    "tvmonitor": (3197, 10198, 269),
}
LABELS = tuple(TOKENS)


def write(folder: Path, sizes: Sizes = TINY, seed: int = 0, relation_seed: int = 100) -> None:
    """`scpnet.ckpt`, `relation.npy` and `labels.txt`."""
    state = {name: torch.from_numpy(np.asarray(values)) for name, values in state_dict(sizes, seed).items()}
    torch.save(state, folder / "scpnet.ckpt")
    np.save(folder / "relation.npy", relation(len(LABELS), relation_seed))
    (folder / "labels.txt").write_text("\n".join(LABELS))  # without a line feed at the end, as published


def state_dict(sizes: Sizes, seed: int) -> dict[str, FloatArray]:
    tensors = {name: _draw(name, shape, seed) for name, shape in (_image_shapes(sizes) | _text_shapes(sizes)).items()}
    tokens = {token for label in LABELS for token in _ids(label)}
    rows = {token: 0.5 * _rng(f"token {token}", seed).standard_normal(sizes.text_width) for token in tokens}
    embedded = np.stack([[rows[token] for token in _ids(label)] for label in LABELS]).astype(np.float32)
    tensors["prompt_learner.token_prefix"] = embedded[:, :1].copy()
    tensors["prompt_learner.token_middle"] = embedded[:, 1 : 1 + LEARNED].copy()
    tensors["prompt_learner.token_suffix"] = embedded[:, 1 + LEARNED :].copy()
    return tensors


def relation(count: int, seed: int) -> FloatArray:
    """[count, count], symmetric, 0.5 to 0.95, ones on the diagonal to 1e-6."""
    rng = np.random.RandomState(seed)
    upper = np.triu(rng.uniform(0.5, 0.95, (count, count)), 1)
    return (upper + upper.T + np.diag(1 + 1e-6 * rng.standard_normal(count))).astype(np.float32)


def pixels(count: int, seed: int) -> FloatArray:
    """[count, 3, 224, 224], large patches of colour under noise."""
    rng = np.random.RandomState(seed)
    coarse = rng.standard_normal((count, 3, 7, 7)).repeat(32, 2).repeat(32, 3)
    return (coarse + 0.5 * rng.standard_normal((count, 3, IMAGE_SIZE, IMAGE_SIZE))).astype(np.float32)


def _ids(label: str) -> list[int]:
    found = [START, *A_PHOTO_OF_A, *TOKENS[label], END]
    return found + [0] * (CONTEXT - len(found))


def _norm(prefix: str, width: int) -> Shapes:
    parts: Shapes = {f"{prefix}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")}
    return parts | {f"{prefix}.num_batches_tracked": ()}


def _image_shapes(sizes: Sizes) -> Shapes:
    half = sizes.width // 2
    shapes: Shapes = {}
    for number, (made, given) in enumerate(((half, 3), (half, half), (sizes.width, half)), start=1):
        shapes |= {f"conv{number}.weight": (made, given, 3, 3)} | _norm(f"bn{number}", made)
    given = sizes.width
    for stage, blocks in enumerate(sizes.blocks, start=1):
        planes = sizes.width << (stage - 1)
        for number in range(blocks):
            block = f"layer{stage}.{number}."
            kernels = {"conv1": (planes, given, 1), "conv2": (planes, planes, 3), "conv3": (4 * planes, planes, 1)}
            for name, (made, taken, side) in kernels.items():
                shapes[f"{block}{name}.weight"] = (made, taken, side, side)
                shapes |= _norm(block + name.replace("conv", "bn"), made)
            if number == 0:
                shapes[f"{block}downsample.0.weight"] = (4 * planes, given, 1, 1)
                shapes |= _norm(f"{block}downsample.1", 4 * planes)
            given = 4 * planes
    shapes["attnpool.positional_embedding"] = ((IMAGE_SIZE // 32) ** 2 + 1, given)
    for name in ("k_proj", "q_proj", "v_proj", "c_proj"):
        made = EMBED if name == "c_proj" else given
        shapes |= {f"attnpool.{name}.weight": (made, given), f"attnpool.{name}.bias": (made,)}
    return {f"image_encoder.{name}": shape for name, shape in shapes.items()}


def _text_shapes(sizes: Sizes) -> Shapes:
    width = sizes.text_width
    tower: Shapes = {
        "positional_embedding": (CONTEXT, width),
        "text_projection": (width, EMBED),
        **block_shapes(sizes.text_layers, width),
        "ln_final.weight": (width,),
        "ln_final.bias": (width,),
    }
    graph: Shapes = {"gc1.weight": (EMBED, HIDDEN), "gc2.weight": (HIDDEN, HIDDEN), "gc3.weight": (HIDDEN, EMBED)}
    own: Shapes = {"logit_scale": (), "prompt_learner.ctx": (LEARNED, width)}
    return own | graph | {f"text_encoder.{name}": shape for name, shape in tower.items()}


def _rng(name: str, seed: int) -> np.random.RandomState:
    return np.random.RandomState((zlib.crc32(name.encode()) + seed) % 2**32)


def _draw(name: str, shape: tuple[int, ...], seed: int) -> FloatArray:
    """One tensor's weights, a function of its name, shape and seed; scales keep softmax and sigmoid far from uniform."""
    if name.endswith("num_batches_tracked"):
        return np.array(1000, np.int64)
    values = _rng(name, seed).standard_normal(shape)
    if name == "logit_scale":
        values = 2.6593 + 0.3 * values
    elif name == "prompt_learner.ctx":
        values = 0.5 * values
    elif name.endswith("running_mean"):
        values = 0.1 * values
    elif name.endswith("running_var"):
        values = np.exp(0.3 * values)
    elif name.endswith("weight") and any(part in name for part in (".bn", "downsample.1", ".ln_")):
        values = (1 + 0.1 * values) * (0.3 if ".layer" in name and name.endswith("bn3.weight") else 1)
    elif name.endswith("bias"):
        values = 0.1 * values
    elif name.endswith("positional_embedding"):
        values = (0.5 if "attnpool" in name else 0.3) * values
    elif name.endswith("text_projection"):
        values = 0.3 * values / np.sqrt(shape[0])
    elif name.startswith("gc"):
        values = 1.4 * values / np.sqrt(shape[0])  # stored [in, out]
    elif len(shape) == 4:
        values = values * np.sqrt(2 / np.prod(shape[1:]))
    elif any(part in name for part in ("in_proj", "q_proj", "k_proj")):
        values = 2 * values / np.sqrt(shape[1])
    else:
        values = values / np.sqrt(shape[1])
    return values.astype(np.float32)
