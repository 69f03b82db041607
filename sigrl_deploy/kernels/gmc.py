"""GMC, fused: GATv2 over the complete graph of labels, in row blocks with a running softmax, as flash attention has it.

    e[i, j] = a · LeakyReLU_s(z[i] + z[j]),   out[i] = Σ_j softmax_j(e)[i, j] z[j],   for each head, z = h Wᵀ

(docs/method.md, "Label graph (GMC)")

By identity 4 the softmax needs (1+s)/2 a·z[j] + (1−s)/2 Σ_f a[f] |z[i, f] + z[j, f]| alone. Shapes: z
[C, H, F] fp32, a [F] → out [C, H·F] fp32. Cost: 5·C²·H·F FLOP and memory of C·H·F; the [C, C, F] tensor is never formed. Both
products h Wᵀ and the ELU between the layers are PyTorch's. The plain form is `graph_attention` of `model/materialised.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from sigrl_deploy.kernels.blocks import Launch, block, check, product
from sigrl_deploy.model.sigrl import GMC, LEAKY_SLOPE, GraphAttention

# As in svfr.py, by BLOCK_WIDTH: (BLOCK_I, BLOCK_J, warps).
CANDIDATES = {
    32: ((16, 32, 8), (32, 32, 8), (16, 64, 8), (16, 16, 4)),
    512: ((16, 32, 16), (16, 16, 8)),
}


@triton.jit
def graph_attention_kernel(
    nodes,  # z [C, H, F] fp32
    attention,  # a [F] fp32
    own,  # (1+s)/2 a · z [C, H] fp32
    out,  # out: [C, H, F] fp32
    rows,  # C
    ABSOLUTE: tl.constexpr,  # (1−s)/2
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):
    head = tl.program_id(1)
    i = tl.program_id(0) * BLOCK_I + tl.arange(0, BLOCK_I)
    feature = tl.arange(0, BLOCK_WIDTH)
    largest = tl.full([BLOCK_I], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_I], tl.float32)
    sums = tl.zeros([BLOCK_I, BLOCK_WIDTH], tl.float32)
    for start in range(0, rows, BLOCK_J):
        j = start + tl.arange(0, BLOCK_J)
        energy = tl.zeros([BLOCK_I, BLOCK_J], tl.float32) + tl.load(own + j * HEADS + head, j < rows, 0.0)[None, :]
        for part in range(0, WIDTH, BLOCK_F):
            f = part + tl.arange(0, BLOCK_F)
            a = tl.load(attention + f, f < WIDTH, 0.0) * ABSOLUTE
            zi = tl.load(
                nodes + (i[:, None] * HEADS + head) * WIDTH + f[None, :], (i < rows)[:, None] & (f < WIDTH)[None, :], 0.0
            )
            zj = tl.load(
                nodes + (j[:, None] * HEADS + head) * WIDTH + f[None, :], (j < rows)[:, None] & (f < WIDTH)[None, :], 0.0
            )
            energy += tl.sum(tl.abs(zi[:, None, :] + zj[None, :, :]) * a[None, None, :], 2)
        energy = tl.where((j < rows)[None, :], energy, float("-inf"))
        new_largest = tl.maximum(largest, tl.max(energy, 1))
        shrink = tl.exp(largest - new_largest)
        weight = tl.exp(energy - new_largest[:, None])
        inside = (j < rows)[:, None] & (feature < WIDTH)[None, :]
        z = tl.load(nodes + (j[:, None] * HEADS + head) * WIDTH + feature[None, :], inside, 0.0)
        sums = product(weight, z, sums * shrink[:, None], False)
        total = total * shrink + tl.sum(weight, 1)
        largest = new_largest
    inside = (i < rows)[:, None] & (feature < WIDTH)[None, :]
    tl.store(out + (i[:, None] * HEADS + head) * WIDTH + feature[None, :], sums / total[:, None], inside)


def launch(width: int) -> Launch:
    """Block sizes for heads of F features."""
    constants = {
        "WIDTH": width,
        "BLOCK_I": 16,
        "BLOCK_J": 32,
        "BLOCK_F": block(width, 16),
        "BLOCK_WIDTH": block(width),
    }
    return Launch(constants, warps=4 if width <= 128 else 8, stages=1)


def candidates(width: int) -> tuple[Launch, ...]:
    """The launches that tuning tries, `launch`'s default first."""
    first = launch(width)
    others = CANDIDATES.get(first.constants["BLOCK_WIDTH"], ())
    return first, *(first.altered(warps, 1, BLOCK_I=i, BLOCK_J=j) for i, j, warps in others)


def graph_attention(nodes: Tensor, attention: Tensor, how: Launch | None = None) -> Tensor:
    """z [C, H, F] fp32, a [F] fp32 → [C, H·F] fp32. `how` is one of `candidates`, by default the first."""
    check("gmc.graph_attention", nodes, attention)
    rows, heads, width = nodes.shape
    how = how or launch(width)
    nodes = nodes.contiguous()
    own = (nodes @ attention) * ((1 + LEAKY_SLOPE) / 2)
    out = torch.empty_like(nodes)
    graph_attention_kernel[triton.cdiv(rows, how.constants["BLOCK_I"]), heads](
        nodes, attention.contiguous(), own, out, rows, ABSOLUTE=(1 - LEAKY_SLOPE) / 2, HEADS=heads,
        **how.constants, num_warps=how.warps, num_stages=how.stages,
    )  # fmt: skip
    return out.flatten(1)


def gmc(module: GMC, label_embedding: Tensor, launches: Mapping[str, Launch] | None = None) -> Tensor:
    """T [C, D] of the module's dtype → G [C, D] of that dtype. Inference only. `launches` are named "gmc F" for heads of F."""
    h = label_embedding
    for index, layer in enumerate(module.layers):
        assert isinstance(layer, GraphAttention)
        h = F.elu(h).to(label_embedding.dtype) if index else h
        nodes = layer.nodes(h)
        h = graph_attention(nodes, layer.attention.float(), (launches or {}).get(f"gmc {nodes.shape[2]}"))
    return h.to(label_embedding.dtype)
