"""CLIP's ViT, eight kernels a layer: what lies between its products and its attention is fused.

    rows      = pixels cut into patches                                      [B·P, 3·p·p]
    x         = LN_pre(concat(class token, rows Wᵀ) + positions),  h = LN_1(x)
    each layer: x += attention(h);  h = LN_2(x);  x += MLP(h);  h = LN_1 of the next layer, or LN_post
    X, g      = h · projection

Shapes: pixels [B, 3, S, S] → X [B, P, D], g [B, D], N = P + 1 tokens of width W. A layer is 2·N·12·W² + 4·N²·W FLOP in the
products and attention of PyTorch's libraries, where it spends its time with many pictures; with one, each kernel costs about a
microsecond and a half whatever it does. So a residual is added where the norm that follows reads it, a norm computes in fp32
without casts around it, QuickGELU is one kernel, and the patch embedding is a copy and a product, not a convolution. The plain
form is `encode_image` of `model/sigrl.py`.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.nn import functional as F

from sigrl_deploy.errors import UsageError
from sigrl_deploy.kernels.blocks import DTYPES, Launch, check

ELEMENTS = 1024  # of a program that works on single elements
ROW_WARPS = (1, 2, 4)  # for a row of LayerNorm, beside `launch`'s choice


@triton.jit
def patches_kernel(
    pixels,  # [B, 3, S, S]
    statistics,  # mean and standard deviation [2, 3] fp32 of pixels in [0, 1], where NORMALISE
    rows,  # out: [B, P, 3·p·p], in the order of a convolution's weights
    SIZE: tl.constexpr,
    PATCH: tl.constexpr,
    NORMALISE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    picture = tl.program_id(1).to(tl.int64)
    grid: tl.constexpr = SIZE // PATCH
    width: tl.constexpr = 3 * PATCH * PATCH
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < grid * grid * width
    patch, element = index // width, index % width
    channel, i, j = element // (PATCH * PATCH), element // PATCH % PATCH, element % PATCH
    source = (channel * SIZE + patch // grid * PATCH + i) * SIZE + patch % grid * PATCH + j
    value = tl.load(pixels + picture * 3 * SIZE * SIZE + source, inside, 0).to(tl.float32)
    if NORMALISE:  # divisions rounded as the CPU's are, so that both give the same pixels
        mean = tl.load(statistics + channel, inside, 0.0)
        deviation = tl.load(statistics + 3 + channel, inside, 1.0)
        value = tl.div_rn(tl.div_rn(value, tl.full([BLOCK], 255.0, tl.float32)) - mean, deviation)
    tl.store(rows + picture * grid * grid * width + index, value.to(rows.dtype.element_ty), inside)


@triton.jit
def _norm(x, weight, bias, inside, WIDTH: tl.constexpr, EPS: tl.constexpr):
    """LayerNorm of one row in fp32; x is 0 behind the row's end."""
    centred = tl.where(inside, x - tl.sum(x, 0) / WIDTH, 0.0)
    return centred * tl.rsqrt(tl.sum(centred * centred, 0) / WIDTH + EPS) * weight + bias


@triton.jit
def embed_kernel(
    embedded,  # rows Wᵀ [B, P, W]
    class_token,  # [W]
    positions,  # [N, W]
    pre_weight,  # of LN_pre [W]
    pre_bias,  # [W]
    weight,  # of the first LN_1 [W]
    bias,  # [W]
    x,  # out: [B, N, W]
    normed,  # out: [B, N, W]
    TOKENS: tl.constexpr,
    WIDTH: tl.constexpr,
    EPS: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    token, picture = tl.program_id(0), tl.program_id(1).to(tl.int64)
    column = tl.arange(0, BLOCK_W)
    inside = column < WIDTH
    patch = embedded + (picture * (TOKENS - 1) + token - 1) * WIDTH + column
    value = tl.load(patch, inside & (token > 0), 0.0).to(tl.float32)
    value += tl.load(class_token + column, inside & (token == 0), 0.0).to(tl.float32)
    value += tl.load(positions + token * WIDTH + column, inside, 0.0).to(tl.float32)
    # What a norm needs is loaded before it, since nothing is loaded while a sum waits for all warps.
    w_pre = tl.load(pre_weight + column, inside, 0.0).to(tl.float32)
    b_pre = tl.load(pre_bias + column, inside, 0.0).to(tl.float32)
    w = tl.load(weight + column, inside, 0.0).to(tl.float32)
    b = tl.load(bias + column, inside, 0.0).to(tl.float32)
    value = _norm(value, w_pre, b_pre, inside, WIDTH, EPS)
    out = (picture * TOKENS + token) * WIDTH + column
    tl.store(x + out, value.to(x.dtype.element_ty), inside)
    tl.store(normed + out, _norm(value, w, b, inside, WIDTH, EPS).to(normed.dtype.element_ty), inside)


@triton.jit
def add_norm_kernel(
    x,  # [B, N, W]; out: x + delta, unless LAST
    delta,  # [B, N, W]
    weight,  # [W]
    bias,  # [W]
    normed,  # out: [B, N, W]; where LAST, the B·P patches before the B class tokens [B·N, W]
    TOKENS: tl.constexpr,
    WIDTH: tl.constexpr,
    EPS: tl.constexpr,
    LAST: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    token, picture = tl.program_id(0), tl.program_id(1).to(tl.int64)
    column = tl.arange(0, BLOCK_W)
    inside = column < WIDTH
    row = picture * TOKENS + token
    value = tl.load(x + row * WIDTH + column, inside, 0.0).to(tl.float32)
    value += tl.load(delta + row * WIDTH + column, inside, 0.0).to(tl.float32)
    w = tl.load(weight + column, inside, 0.0).to(tl.float32)
    b = tl.load(bias + column, inside, 0.0).to(tl.float32)
    if LAST:
        patches = tl.num_programs(1).to(tl.int64) * (TOKENS - 1)
        row = tl.where(token == 0, patches + picture, row - picture - 1)
    else:
        tl.store(x + row * WIDTH + column, value.to(x.dtype.element_ty), inside)
    result = _norm(value, w, b, inside, WIDTH, EPS)
    tl.store(normed + row * WIDTH + column, result.to(normed.dtype.element_ty), inside)


@triton.jit
def quick_gelu_kernel(
    x,  # any shape
    out,  # out: x σ(1.702 x)
    size,
    BLOCK: tl.constexpr,
):
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + index, index < size, 0.0).to(tl.float32)
    tl.store(out + index, (value / (1.0 + tl.exp(-1.702 * value))).to(out.dtype.element_ty), index < size)


def launch(width: int) -> Launch:
    """How a row of width W is normed: eight elements a thread."""
    block_w = max(32, triton.next_power_of_2(width))
    return Launch({"WIDTH": width, "BLOCK_W": block_w}, warps=max(1, min(8, block_w // 256)), stages=1)


def candidates(width: int) -> tuple[Launch, ...]:
    """The launches that tuning tries, `launch`'s default first."""
    first = launch(width)
    return first, *(first.altered(warps, 1) for warps in ROW_WARPS if warps != first.warps)


def cut(pixels: Tensor, patch: int, dtype: torch.dtype, statistics: Tensor | None = None) -> Tensor:
    """pixels [B, 3, S, S] → [B, P, 3·p·p] in `dtype`, the operand of the patch embedding; pixels beyond whole patches are left.

    With `statistics` [2, 3] fp32 on the device, mean and standard deviation of each channel, pixels are 0 to 255, and become
    (pixels / 255 − mean) / deviation. Raises UsageError for other shapes.
    """
    batch, channels, height, width = pixels.shape
    if channels != 3 or height != width:
        raise UsageError(f"pixels are {list(pixels.shape)}; expected [B, 3, S, S]")
    grid = height // patch
    rows = torch.empty(batch, grid * grid, 3 * patch * patch, dtype=dtype, device=pixels.device)
    patches_kernel[triton.cdiv(rows[0].numel(), ELEMENTS), batch](
        pixels.contiguous(), pixels if statistics is None else statistics, rows,
        SIZE=height, PATCH=patch, NORMALISE=statistics is not None, BLOCK=ELEMENTS, num_warps=4,
    )  # fmt: skip
    return rows


def add_norm(x: Tensor, delta: Tensor, norm: nn.LayerNorm, last: bool = False, how: Launch | None = None) -> Tensor:
    """x [B, N, W] and delta [B·N, W] → LN(x + delta) [B·N, W]; x becomes x + delta.

    With `last` x is left as it is, and the class tokens, which come first in a picture, come after the patches of all
    pictures: [B·P + B, W]. `how` is one of `candidates`, by default the first.
    """
    check("vit.add_norm", x, delta)
    batch, tokens, width = x.shape
    how, normed = how or launch(width), torch.empty_like(delta)
    add_norm_kernel[tokens, batch](
        x, delta, norm.weight, norm.bias, normed,
        TOKENS=tokens, EPS=norm.eps, LAST=last, **how.constants, num_warps=how.warps, num_stages=how.stages,
    )  # fmt: skip
    return normed


def quick_gelu(x: Tensor) -> Tensor:
    """x σ(1.702 x) of a contiguous tensor."""
    out = torch.empty_like(x)
    quick_gelu_kernel[(triton.cdiv(x.numel(), ELEMENTS),)](x, out, x.numel(), BLOCK=ELEMENTS, num_warps=4)
    return out


def encode_image(
    visual: Any, pixels: Tensor, statistics: Tensor | None = None, how: Launch | None = None
) -> tuple[Tensor, Tensor]:
    """pixels [B, 3, S, S] → patches X [B, P, D], global g [B, D], both contiguous, in the dtype of the module's weights.

    `visual` is a ViT with the tensors of OpenAI's CLIP. `statistics` as in `cut`, `how` as in `add_norm`. Inference only.
    """
    x, normed = _embedded(visual, pixels, statistics, how)
    blocks = visual.transformer.resblocks
    for block, following in zip(blocks, [*blocks[1:], None], strict=True):
        normed = add_norm(x, _attention(block.attn, normed, x.shape[0]), block.ln_2, how=how)
        delta = F.linear(_activated(block, normed), block.mlp.c_proj.weight, block.mlp.c_proj.bias)
        normed = add_norm(x, delta, following.ln_1 if following else visual.ln_post, last=following is None, how=how)
    batch, tokens, _ = x.shape
    patches, class_tokens = (normed @ visual.proj).split([batch * (tokens - 1), batch])
    return patches.view(batch, tokens - 1, -1), class_tokens


def _embedded(visual: Any, pixels: Tensor, statistics: Tensor | None, how: Launch | None) -> tuple[Tensor, Tensor]:
    """pixels → x [B, N, W] and LN_1(x) [B·N, W] of the first layer."""
    weight, first, pre = visual.conv1.weight, visual.transformer.resblocks[0].ln_1, visual.ln_pre
    if weight.dtype not in DTYPES:
        raise UsageError(f"vit.encode_image: the weights are {weight.dtype}; expected fp32, fp16 or bf16")
    embedded = F.linear(cut(pixels, weight.shape[-1], weight.dtype, statistics), weight.flatten(1))
    check("vit.encode_image", embedded, visual.class_embedding, visual.positional_embedding)
    (tokens, width), batch = visual.positional_embedding.shape, len(pixels)
    if embedded.shape[1] != tokens - 1:
        raise UsageError(f"pixels are {list(pixels.shape)}, {embedded.shape[1]} patches; the model has {tokens - 1}")
    how = how or launch(width)
    x = torch.empty(batch, tokens, width, dtype=weight.dtype, device=pixels.device)
    normed = torch.empty_like(x).view(-1, width)
    embed_kernel[tokens, batch](
        embedded, visual.class_embedding, visual.positional_embedding,
        pre.weight, pre.bias, first.weight, first.bias, x, normed,
        TOKENS=tokens, EPS=pre.eps, **how.constants, num_warps=how.warps, num_stages=how.stages,
    )  # fmt: skip
    return x, normed


def _attention(attention: Any, normed: Tensor, batch: int) -> Tensor:
    """LN_1(x) [B·N, W] → its attention's output [B·N, W]. Heads are views of the product, before and after."""
    qkv = F.linear(normed, attention.in_proj_weight, attention.in_proj_bias)
    q, k, v = qkv.view(batch, -1, 3, attention.heads, normed.shape[1] // attention.heads).permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(normed.shape)
    return F.linear(mixed, attention.out_proj.weight, attention.out_proj.bias)


def _activated(block: Any, normed: Tensor) -> Tensor:
    """LN_2(x) [B·N, W] → the hidden layer of the MLP [B·N, 4·W]."""
    hidden = F.linear(normed, block.mlp.c_fc.weight, block.mlp.c_fc.bias)
    return quick_gelu(hidden) if block.quick_gelu else F.gelu(hidden)
