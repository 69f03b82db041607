"""Write random-weight checkpoints for benchmarks, demos and tests: no trained SigRL checkpoint is public.

The weights are drawn per tensor from numpy's frozen legacy generator, so every machine writes the same numbers, and the SigRL
tensors are those that `tests/golden/reference_*.npz` belong to.

    python -m benchmarks.random_weights tiny out/      # 2 layers, width 128, 80 px, 25 patches; a 2-layer text tower
    python -m benchmarks.random_weights vit-b16 out/   # the real sizes of both towers

writes out/sigrl.pth and out/text.pth (an MKT second-stage text tower).
"""

from __future__ import annotations

import argparse
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sigrl_deploy.arrays import FloatArray

EMBED = 512  # CLIP's joint embedding width; the reference fixes its heads to it
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Variant:
    """Sizes of one random model; the text tower always has CLIP's vocabulary, since its tokenizer is real."""

    layers: int
    width: int
    image_size: int
    text_layers: int
    text_width: int
    patch: int = 16
    context: int = 77
    vocabulary: int = 49408
    embed: int = EMBED


VARIANTS = {
    "tiny": Variant(layers=2, width=128, image_size=80, text_layers=2, text_width=64),
    "vit-b16": Variant(layers=12, width=768, image_size=224, text_layers=12, text_width=512),
}


def block_shapes(layers: int, width: int) -> Shapes:
    """Tensors of one transformer."""
    shapes: Shapes = {}
    for i in range(layers):
        block = f"transformer.resblocks.{i}."
        shapes |= {
            block + "attn.in_proj_weight": (3 * width, width),
            block + "attn.in_proj_bias": (3 * width,),
            block + "attn.out_proj.weight": (width, width),
            block + "attn.out_proj.bias": (width,),
            block + "ln_1.weight": (width,),
            block + "ln_1.bias": (width,),
            block + "mlp.c_fc.weight": (4 * width, width),
            block + "mlp.c_fc.bias": (4 * width,),
            block + "mlp.c_proj.weight": (width, 4 * width),
            block + "mlp.c_proj.bias": (width,),
            block + "ln_2.weight": (width,),
            block + "ln_2.bias": (width,),
        }
    return shapes


def vision_shapes(variant: Variant) -> Shapes:
    """Tensors of an MKT first-stage checkpoint: the ViT and its projection under the reference's names."""
    width, patch = variant.width, variant.patch
    return {
        "class_embedding": (width,),
        "positional_embedding": ((variant.image_size // patch) ** 2 + 1, width),
        "projection_dist": (width, variant.embed),
        "conv1.weight": (width, 3, patch, patch),
        "ln_pre.weight": (width,),
        "ln_pre.bias": (width,),
        **block_shapes(variant.layers, width),
        "ln_post.weight": (width,),
        "ln_post.bias": (width,),
    }


def sigrl_shapes(variant: Variant) -> Shapes:
    """Tensors of a SigRL checkpoint."""
    return {
        **vision_shapes(variant),
        "projection.fc1.weight": (variant.embed, variant.width),  # saved by the reference code, unused at inference
        "projection.fc1.bias": (variant.embed,),
        "projection.fc2.weight": (variant.embed, variant.embed),
        "projection.fc2.bias": (variant.embed,),
        "SemanticDecoupling.fc3.weight": (variant.embed, variant.embed),
        "SemanticDecoupling.fc3.bias": (variant.embed,),
        "DecouplingSemantic.fc1.weight": (variant.embed, 2 * variant.embed),
        "DecouplingSemantic.fc3.weight": (variant.embed, variant.embed),
        "DecouplingSemantic.fc3.bias": (variant.embed,),
        "GATv2_1.layer1.linear_l.weight": (128, variant.embed),
        "GATv2_1.layer1.linear_r.weight": (128, variant.embed),  # the same tensor as linear_l
        "GATv2_1.layer1.attn.weight": (1, 32),
        "GATv2_1.output.linear_l.weight": (variant.embed, 128),
        "GATv2_1.output.linear_r.weight": (variant.embed, 128),
        "GATv2_1.output.attn.weight": (1, variant.embed),
    }


def text_shapes(variant: Variant) -> Shapes:
    """Tensors of a CLIP text tower under OpenAI's names."""
    width = variant.text_width
    return {
        "token_embedding.weight": (variant.vocabulary, width),
        "positional_embedding": (variant.context, width),
        **block_shapes(variant.text_layers, width),
        "ln_final.weight": (width,),
        "ln_final.bias": (width,),
        "text_projection": (width, variant.embed),
    }


def draw(name: str, shape: tuple[int, ...], seed: int = 0) -> FloatArray:
    """One tensor's weights, a function of its name, its shape and the seed alone."""
    name = name.replace("linear_r", "linear_l")
    values = np.random.RandomState((zlib.crc32(name.encode()) + seed) % 2**32).standard_normal(shape)
    if ".ln_" in name or name.startswith("ln_"):
        values = 1 + 0.1 * values if name.endswith("weight") else 0.1 * values
    elif name.endswith("bias"):
        values *= 0.05
    elif name in ("positional_embedding", "token_embedding.weight"):
        values *= 0.3
    elif name == "projection_dist":
        values /= np.sqrt(shape[0])
    elif name == "text_projection":
        values *= 8 / np.sqrt(shape[0] * shape[1])  # label embeddings of CLIP's norm, about 8
    elif "fc3.weight" in name:
        values *= 3.0 / np.sqrt(shape[1])  # the softmax over patches is far from uniform
    elif "GATv2_1" in name and name.endswith("attn.weight"):
        values *= 8.0 / np.sqrt(shape[1])  # the softmax over labels is far from uniform
    elif "GATv2_1" in name:
        values *= 2.0 / np.sqrt(shape[1])
    elif name.endswith("weight"):
        values /= np.sqrt(np.prod(shape[1:]))
    return values.astype(np.float32)


def tensors(shapes: Shapes, seed: int = 0) -> dict[str, FloatArray]:
    """A state dict of random weights."""
    return {name: draw(name, shape, seed) for name, shape in shapes.items()}


def label_embeddings(count: int, seed: int, embed: int = EMBED) -> FloatArray:
    """[count, embed] stand-ins for CLIP text features, which are not normalised: norms from 6 to 10."""
    rng = np.random.RandomState(seed)
    values = rng.standard_normal((count, embed))
    norms = rng.uniform(6, 10, (count, 1))
    return (values / np.linalg.norm(values, axis=1, keepdims=True) * norms).astype(np.float32)


def images(count: int, size: int, seed: int) -> FloatArray:
    """[count, 3, size, size] stand-ins for preprocessed pictures."""
    return np.random.RandomState(seed).standard_normal((count, 3, size, size)).astype(np.float32)


def save(path: Path, values: dict[str, FloatArray]) -> None:
    """Save as `torch.save(model.state_dict(), path)` does."""
    import torch

    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({name: torch.from_numpy(value) for name, value in values.items()}, path)
    print(f"wrote {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variant", choices=VARIANTS)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    variant = VARIANTS[args.variant]
    save(args.out / "sigrl.pth", tensors(sigrl_shapes(variant)))
    save(args.out / "text.pth", tensors(text_shapes(variant)))


if __name__ == "__main__":
    main()
