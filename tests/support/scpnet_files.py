"""SCPNet's files in the published layout with random weights, to which the numbers in `tests/golden/scpnet_tiny.npz` belong.

Weights are drawn per tensor from numpy's frozen legacy generator, so every machine writes the same numbers. The golden file
holds what the published implementation computes with them on a CPU in fp32: `gcn_relation` [C, C], `logits` and `scores`
[B, C], and every eighth column of `text_features`, `label_matrix` [C, 1024] and `image_features` [B, 1024].
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import torch

from benchmarks.random_weights import Shapes, block_shapes
from sigrl_deploy.arrays import FloatArray

COLUMNS = 8
CONTEXT, LEARNED, EMBED, HIDDEN = 77, 4, 1024, 2048
WIDTH, TEXT_WIDTH, TEXT_LAYERS = 16, 64, 2  # of the image tower, whose stages have one block each, and of the text side
IMAGE_SIZE = 224
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


def write(folder: Path) -> None:
    """`scpnet.ckpt`, `relation.npy` and `labels.txt`."""
    torch.save({name: torch.from_numpy(np.asarray(values)) for name, values in state_dict().items()}, folder / "scpnet.ckpt")
    np.save(folder / "relation.npy", relation(len(LABELS), seed=100))
    (folder / "labels.txt").write_text("\n".join(LABELS))  # without a line feed at the end, as published


def state_dict() -> dict[str, FloatArray]:
    tensors = {name: _draw(name, shape) for name, shape in (_image_shapes() | _text_shapes()).items()}
    rows = {
        token: 0.5 * _rng(f"token {token}").standard_normal(TEXT_WIDTH) for token in {t for each in LABELS for t in _ids(each)}
    }
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


def _image_shapes() -> Shapes:
    half = WIDTH // 2
    shapes: Shapes = {}
    for number, (made, given) in enumerate(((half, 3), (half, half), (WIDTH, half)), start=1):
        shapes |= {f"conv{number}.weight": (made, given, 3, 3)} | _norm(f"bn{number}", made)
    given = WIDTH
    for stage in range(1, 5):
        planes, block = WIDTH << (stage - 1), f"layer{stage}.0."
        kernels = {"conv1": (planes, given, 1), "conv2": (planes, planes, 3), "conv3": (4 * planes, planes, 1)}
        for name, (made, taken, side) in kernels.items():
            shapes[f"{block}{name}.weight"] = (made, taken, side, side)
            shapes |= _norm(block + name.replace("conv", "bn"), made)
        shapes[f"{block}downsample.0.weight"] = (4 * planes, given, 1, 1)
        shapes |= _norm(f"{block}downsample.1", 4 * planes)
        given = 4 * planes
    shapes["attnpool.positional_embedding"] = ((IMAGE_SIZE // 32) ** 2 + 1, given)
    for name in ("k_proj", "q_proj", "v_proj", "c_proj"):
        made = EMBED if name == "c_proj" else given
        shapes |= {f"attnpool.{name}.weight": (made, given), f"attnpool.{name}.bias": (made,)}
    return {f"image_encoder.{name}": shape for name, shape in shapes.items()}


def _text_shapes() -> Shapes:
    tower: Shapes = {
        "positional_embedding": (CONTEXT, TEXT_WIDTH),
        "text_projection": (TEXT_WIDTH, EMBED),
        **block_shapes(TEXT_LAYERS, TEXT_WIDTH),
        "ln_final.weight": (TEXT_WIDTH,),
        "ln_final.bias": (TEXT_WIDTH,),
    }
    graph: Shapes = {"gc1.weight": (EMBED, HIDDEN), "gc2.weight": (HIDDEN, HIDDEN), "gc3.weight": (HIDDEN, EMBED)}
    own: Shapes = {"logit_scale": (), "prompt_learner.ctx": (LEARNED, TEXT_WIDTH)}
    return own | graph | {f"text_encoder.{name}": shape for name, shape in tower.items()}


def _rng(name: str) -> np.random.RandomState:
    return np.random.RandomState(zlib.crc32(name.encode()))


def _draw(name: str, shape: tuple[int, ...]) -> FloatArray:
    """One tensor's weights, a function of its name and shape alone; scales keep softmax and sigmoid far from uniform."""
    if name.endswith("num_batches_tracked"):
        return np.array(1000, np.int64)
    values = _rng(name).standard_normal(shape)
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
